"""Bounds on connections and heads, over real sockets against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import socket
import struct
import termios
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge.api.gate import HEALTH
from edge.connection import MAX_HEAD_BYTES, MOST_QUEUED, RESERVE
from edge.listener import bind, http_server
from edge.settings import Server
from tests.shell.hand_loop import HandLoop, clock, turns

Client = Callable[[str, int], Awaitable[None]]
ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


LARGE_BYTES = 32 << 20
SLOW_S = 1.5
PATIENCE_S = 120.0
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers once the whole request is there; `/slow` begins to answer and takes its time, `/early` does not wait for a body,
    `/echo` answers with it, `/large` with a lot."""
    body = b""
    while scope["path"] != "/early":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    answer = {"/echo": body, "/large": bytes(LARGE_BYTES)}.get(scope["path"], b"ok")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    if scope["path"] == "/slow":
        await asyncio.sleep(SLOW_S)
    await send({"type": "http.response.body", "body": answer})


def against_server(client: Client, **changes: Any) -> None:
    """Run a client against a server with these settings, in one loop. No time passes but what the client lets pass."""

    async def run() -> None:
        settings = Server(port=0, **changes)
        server, listener = http_server(application, settings), bind(settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        asking = asyncio.create_task(client("127.0.0.1", listener.getsockname()[1]))
        given_up = threading.Timer(PATIENCE_S, clock().call_soon_threadsafe, [asking.cancel])
        given_up.start()
        try:
            await asking
        finally:
            given_up.cancel()
            clock().go()
            server.should_exit = True
            await serving

    with asyncio.Runner(loop_factory=HandLoop) as runner:
        runner.run(run())


class Reader(asyncio.StreamReader):
    """Keeps what was said before a reset: a server that closes when it has not read all may end so, or may not."""

    def set_exception(self, exc: Exception) -> None:
        """It is an end as well."""
        self.feed_eof()


async def connected(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked nothing yet."""
    loop = asyncio.get_running_loop()
    reader = Reader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(lambda: protocol, host, port)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def taken(writer: asyncio.StreamWriter) -> None:
    """The server has read all that was written: the kernel has brought it there, and the server had its turns."""
    while struct.unpack("i", fcntl.ioctl(writer.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))) != (0,):
        await asyncio.sleep(0)
    await turns()


async def begun(host: str, port: int, more: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A connection on which a slow answer is under way, and its head. `more` was sent together with the request."""
    reader, writer = await connected(host, port)
    writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + more)
    return reader, writer, await reader.readuntil(b"\r\n\r\n")


async def answered(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has had one answer and is idle."""
    reader, writer = await connected(host, port)
    writer.write(ASKED)
    assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
    return reader, writer


def refusal(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_a_head_that_does_not_arrive_is_given_up() -> None:
    async def client(host: str, port: int) -> None:
        for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"):
            reader, writer = await connected(host, port)
            writer.write(sent)
            clock().go()
            assert refusal(await reader.read()) == (408, "request_timeout")
            clock().stand()
            writer.close()

    against_server(client, header_timeout_s=0.1)


def test_a_second_request_has_its_own_time() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await answered(host, port)
        await clock().passes(1.5)  # idle between requests: no head is awaited
        writer.write(ASKED)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /")
        clock().go()
        assert refusal(await reader.read()) == (408, "request_timeout")
        writer.close()

    against_server(client, header_timeout_s=1)


def test_a_pipelined_half_request_does_not_spoil_the_answer_before_it() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer, head = await begun(host, port, b"GET / HT")
        await clock().passes(1)  # its head is late, and waits for the answer before it
        await clock().passes(SLOW_S)
        assert head.startswith(b"HTTP/1.1 200") and await reader.readexactly(2) == b"ok"
        clock().go()
        assert refusal(await reader.read()) == (408, "request_timeout")
        writer.close()

    against_server(client, header_timeout_s=0.6)


def test_an_endless_head_is_refused() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"GET / HTTP/1.1\r\nX: ".ljust(MAX_HEAD_BYTES + 1, b"a"))
        assert refusal(await reader.read()) == (431, "head_too_large")
        writer.close()

    against_server(client)


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_refused(sent: bytes) -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(sent)
        assert refusal(await reader.read()) == (400, "invalid_value")
        writer.close()

    against_server(client)


def test_one_connection_too_many_is_refused_and_the_others_stay() -> None:
    async def client(host: str, port: int) -> None:
        kept = [await connected(host, port) for _ in range(3)]
        for sent in (ASKED, b"GET / HT", b"", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"):
            reader, writer = await connected(host, port)
            writer.write(sent)
            clock().go()
            answer = await reader.read()
            clock().stand()
            assert refusal(answer) == (429, "overloaded")
            assert b"retry-after: 1\r\n" in answer
            writer.close()
        for reader, writer in kept:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()

    against_server(client, max_connections=3, header_timeout_s=3600)


def test_the_connection_that_was_idle_longest_goes_for_a_new_one() -> None:
    async def client(host: str, port: int) -> None:
        kept = [await answered(host, port) for _ in range(3)]
        kept[0][1].write(ASKED)  # so the second is idle longest
        await kept[0][0].readuntil(b"ok")
        kept.append(await answered(host, port))
        assert await kept[1][0].read() == b""
        for reader, writer in (kept[0], kept[2], kept[3]):
            writer.write(ASKED)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        for _, writer in kept:
            writer.close()

    against_server(client, max_connections=3)


def test_a_request_under_way_is_never_given_up_for_a_new_connection() -> None:
    async def client(host: str, port: int) -> None:
        slow = [await begun(host, port) for _ in range(2)]
        reader, writer = await connected(host, port)
        writer.write(ASKED)
        assert refusal(await reader.read()) == (429, "overloaded")
        writer.close()
        await clock().passes(SLOW_S)
        for reader, writer, head in slow:
            assert head.startswith(b"HTTP/1.1 200") and await reader.readexactly(2) == b"ok"
            writer.close()

    against_server(client, max_connections=2)


def test_bytes_that_begin_no_request_keep_no_connection_for_ever() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await answered(host, port)
        writer.write(b"\r\n\r\n")
        await taken(writer)
        _, other = await answered(host, port)
        assert await reader.read() == b""
        for end in (writer, other):
            end.close()

    against_server(client, max_connections=1)


@pytest.mark.parametrize("path", sorted(HEALTH))
def test_the_health_is_told_when_all_connections_are_taken(path: str) -> None:
    async def client(host: str, port: int) -> None:
        kept = [await connected(host, port) for _ in range(3)]
        for method in ("GET", "HEAD"):
            reader, writer = await connected(host, port)
            asked = f"{method} {path}?verbose HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            writer.write(asked + ASKED)  # the second gets nothing
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
            assert b"connection: close\r\n" in answer
            writer.close()
        reader, writer = await connected(host, port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        assert refusal(await reader.read()) == (429, "overloaded")
        writer.close()
        for _, writer in kept:
            writer.close()

    against_server(client, max_connections=3)


def test_half_heads_above_the_limit_keep_no_probe_away() -> None:
    async def client(host: str, port: int) -> None:
        kept = [await connected(host, port) for _ in range(2)]
        half = [await connected(host, port) for _ in range(3 * RESERVE)]
        for _, writer in half:
            writer.write(b"GET /health/live HT")
        reader, writer = await connected(host, port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        clock().go()
        for reader, writer in half:  # those too many at once, the others after a while
            assert refusal(await reader.read()) == (429, "overloaded")
            writer.close()
        for _, writer in kept:
            writer.close()

    against_server(client, max_connections=2)


def test_a_long_head_above_the_limit_is_refused() -> None:
    async def client(host: str, port: int) -> None:
        _, kept = await connected(host, port)
        reader, writer = await connected(host, port)
        writer.write(b"GET /health/live HTTP/1.1\r\nX: " + b"a" * 9000)
        assert refusal(await reader.read()) == (429, "overloaded")
        writer.close()
        kept.close()

    against_server(client, max_connections=1)


def test_places_are_free_again_when_connections_end() -> None:
    async def client(host: str, port: int) -> None:
        for _ in range(3):
            kept = [await connected(host, port) for _ in range(2)]
            extra = [await connected(host, port) for _ in range(RESERVE)]
            for _, writer in (*kept, *extra):
                writer.close()
            for _, writer in [await placed(host, port) for _ in range(2)]:
                writer.close()

    async def placed(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `answered`, once the server knows that others have ended."""
        while True:
            reader, writer = await connected(host, port)
            writer.write(ASKED)
            if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200"):
                return reader, writer
            writer.close()

    against_server(client, max_connections=2)


def test_a_connection_that_ends_leaves_no_timer() -> None:
    async def client(host: str, port: int) -> None:
        for _ in range(20):
            _, writer = await connected(host, port)
            writer.close()
            await writer.wait_closed()
        _, kept = await answered(host, port)  # so the server knows of all before it
        await clock().passes(1.2)
        kept.close()
        reader, writer = await connected(host, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client, header_timeout_s=1)


@pytest.mark.parametrize("form", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\na\r\n"])
def test_who_has_the_answer_and_leaves_the_request_unfinished_is_closed(form: bytes) -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\n" + form)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"z")  # uvicorn's own timer ends with it
        clock().go()
        assert await reader.read() == b""
        writer.close()

    against_server(client, header_timeout_s=0.2)


def test_who_completes_a_request_that_was_answered_early_keeps_the_connection() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"0123456789")
        await taken(writer)
        await clock().passes(2.5)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client, header_timeout_s=2)


@pytest.mark.parametrize("piece", [b"x" * 1024, b"a: " + b"y" * 1000 + b"\r\n"])
def test_an_endless_trailer_is_refused(piece: bytes) -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(3 * MAX_HEAD_BYTES // 1024):
                writer.write(piece)
                await writer.drain()
            assert await reader.read() == b""
        writer.close()

    against_server(client)


def test_chunks_and_a_small_trailer_are_taken() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            chunk = b"z" * (8 * 1024)
            for part in (b"%x\r\n" % len(chunk), chunk + b"\r\n"):
                writer.write(part)
                await taken(writer)
        writer.write(b"0\r\nx: y\r\n")
        await taken(writer)
        writer.write(b"z: z\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client)


@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_request_that_offers_another_protocol_keeps_its_body(form: str, apart: bool) -> None:
    """Java's client offers HTTP/2 with each request to a plain address."""
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + H2C
    body = b"0123456789"
    if form == "length":
        head, body = head + b"Content-Length: 10\r\n\r\n", body
    else:
        head, body = head + b"Transfer-Encoding: chunked\r\n\r\n", b"a\r\n0123456789\r\n0\r\n\r\n"

    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        for _ in range(2):  # and the connection stays good
            writer.write(head)
            if apart:
                await taken(writer)
            writer.write(body)
            assert (await reader.readuntil(b"0123456789")).startswith(b"HTTP/1.1 200")
        writer.write(3 * (head + body))  # one behind the other
        for _ in range(3):
            await reader.readuntil(b"0123456789")
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client)


def test_a_tunnel_is_refused() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert refusal(await reader.read()) == (400, "invalid_value")
        writer.close()

    against_server(client)


async def asked_for_much(host: str, port: int, fields: bytes) -> socket.socket:
    """A connection with a small window, on which a large answer has begun, and waits."""
    loop, connection = asyncio.get_running_loop(), socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    connection.setblocking(False)
    await loop.sock_connect(connection, (host, port))
    await loop.sock_sendall(connection, b"GET /large HTTP/1.1\r\nHost: x\r\n%s\r\n" % fields)
    here = asyncio.Event()
    loop.add_reader(connection, here.set)
    await here.wait()
    loop.remove_reader(connection)
    return connection


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"])
def test_who_does_not_read_a_large_answer_is_given_up(fields: bytes) -> None:
    async def client(host: str, port: int) -> None:
        loop, size = asyncio.get_running_loop(), 0
        connection = await asked_for_much(host, port, fields)
        for _ in range(10):  # what the kernel takes is taken soon
            await clock().passes(0.4)
        with contextlib.suppress(ConnectionError):
            while data := await loop.sock_recv(connection, 1 << 20):
                size += len(data)
        assert size < LARGE_BYTES
        connection.close()

    against_server(client, write_timeout_s=0.3)


def test_who_reads_a_large_answer_slowly_gets_it_whole() -> None:
    async def client(host: str, port: int) -> None:
        loop, size, pauses = asyncio.get_running_loop(), 0, 0
        connection = await asked_for_much(host, port, b"Connection: close\r\n")
        while data := await loop.sock_recv(connection, 256 * 1024):
            size += len(data)
            if size > (pauses + 1) * LARGE_BYTES // 8:
                pauses += 1
                await clock().passes(0.5)
        assert size > LARGE_BYTES and pauses * 0.5 > 3
        connection.close()

    against_server(client, write_timeout_s=2)


def test_a_refusal_has_an_id_and_a_reason() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await connected(host, port)
        writer.write(b"nonsense\r\n\r\n")
        head = (await reader.read()).partition(b"\r\n\r\n")[0]
        assert b"x-request-id: req-" in head and b"x-edge-reason: invalid_value" in head
        writer.close()

    against_server(client)


def test_no_more_requests_are_kept_than_a_client_may_mean() -> None:
    async def client(host: str, port: int) -> None:
        more = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n%02d"
        reader, writer, head = await begun(host, port, b"".join(more % number for number in range(90)))
        await clock().passes(SLOW_S)
        answers = (head + await reader.read()).split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert [answer[-2:] for answer in answers] == [b"ok", *(b"%02d" % number for number in range(MOST_QUEUED))]
        assert [b"connection: close" in answer for answer in answers] == [False] * MOST_QUEUED + [True]
        writer.close()

    against_server(client)
