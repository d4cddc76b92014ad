"""Bounds on connections and heads, over real sockets against the real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge.api.gate import HEALTH
from edge.connection import MAX_HEAD_BYTES, MOST_QUEUED, RESERVE
from edge.listener import bind, http_server
from edge.settings import Server

Client = Callable[[str, int], Awaitable[None]]
ASKED = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


LARGE_BYTES = 32 << 20
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers once the whole request is there; `/slow` takes its time, `/early` does not wait for a body, `/echo` answers with
    it, `/large` with a lot."""
    body = b""
    while scope["path"] != "/early":
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5)
    answer = {"/echo": body, "/large": bytes(LARGE_BYTES)}.get(scope["path"], b"ok")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


def against_server(client: Client, **changes: Any) -> None:
    """Run a client against a server with these settings."""

    async def run() -> None:
        settings = Server(port=0, **changes)
        server, listener = http_server(application, settings), bind(settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(60):
                await client("127.0.0.1", listener.getsockname()[1])
        finally:
            server.should_exit = True
            await serving

    asyncio.run(run())


async def answered(host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has had one answer and is idle."""
    reader, writer = await asyncio.open_connection(host, port)
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
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(sent)
            assert refusal(await reader.read()) == (408, "request_timeout")
            writer.close()

    against_server(client, header_timeout_s=0.1)


def test_a_second_request_has_its_own_time() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(1.5)  # idle between requests: no head is awaited
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /")
        assert refusal(await reader.read()) == (408, "request_timeout")
        writer.close()

    against_server(client, header_timeout_s=1)


def test_a_pipelined_half_request_does_not_spoil_the_answer_before_it() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\nGET / HT")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\n\r\nokHTTP/1.1 408" in answer
        writer.close()

    against_server(client, header_timeout_s=0.6)


def test_an_endless_head_is_refused() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES)
        assert refusal(await reader.read()) == (431, "head_too_large")
        writer.close()

    against_server(client)


@pytest.mark.parametrize("sent", [b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_refused(sent: bytes) -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(sent)
        assert refusal(await reader.read()) == (400, "invalid_value")
        writer.close()

    against_server(client)


def test_one_connection_too_many_is_refused_and_the_others_stay() -> None:
    async def client(host: str, port: int) -> None:
        kept = [await asyncio.open_connection(host, port) for _ in range(3)]
        for sent in (ASKED, b"GET / HT", b"", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(sent)
            answer = await reader.read()
            assert refusal(answer) == (429, "overloaded")
            assert b"retry-after: 1\r\n" in answer
            writer.close()
        for reader, writer in kept:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()

    against_server(client, max_connections=3)


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
        slow = [await asyncio.open_connection(host, port) for _ in range(2)]
        for _, writer in slow:
            writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(ASKED)
        assert refusal(await reader.read()) == (429, "overloaded")
        writer.close()
        for reader, writer in slow:
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            writer.close()

    against_server(client, max_connections=2)


def test_bytes_that_begin_no_request_keep_no_connection_for_ever() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await answered(host, port)
        writer.write(b"\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.1)
        _, other = await answered(host, port)
        assert await reader.read() == b""
        for end in (writer, other):
            end.close()

    against_server(client, max_connections=1)


@pytest.mark.parametrize("path", sorted(HEALTH))
def test_the_health_is_told_when_all_connections_are_taken(path: str) -> None:
    async def client(host: str, port: int) -> None:
        kept = [await asyncio.open_connection(host, port) for _ in range(3)]
        for method in ("GET", "HEAD"):
            reader, writer = await asyncio.open_connection(host, port)
            asked = f"{method} {path}?verbose HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            writer.write(asked + ASKED)  # the second gets nothing
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200") and answer.count(b"HTTP/1.1") == 1
            assert b"connection: close\r\n" in answer
            writer.close()
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        assert refusal(await reader.read()) == (429, "overloaded")
        writer.close()
        for _, writer in kept:
            writer.close()

    against_server(client, max_connections=3)


def test_half_heads_above_the_limit_keep_no_probe_away() -> None:
    async def client(host: str, port: int) -> None:
        kept = [await asyncio.open_connection(host, port) for _ in range(2)]
        half = [await asyncio.open_connection(host, port) for _ in range(3 * RESERVE)]
        for _, writer in half:
            writer.write(b"GET /health/live HT")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        for reader, writer in half:  # those too many at once, the others after a while
            assert refusal(await reader.read()) == (429, "overloaded")
            writer.close()
        for _, writer in kept:
            writer.close()

    against_server(client, max_connections=2)


def test_a_long_head_above_the_limit_is_refused() -> None:
    async def client(host: str, port: int) -> None:
        _, kept = await asyncio.open_connection(host, port)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /health/live HTTP/1.1\r\nX: " + b"a" * 9000)
        assert refusal(await reader.read()) == (429, "overloaded")
        writer.close()
        kept.close()

    against_server(client, max_connections=1)


def test_places_are_free_again_when_connections_end() -> None:
    async def client(host: str, port: int) -> None:
        for _ in range(3):
            kept = [await asyncio.open_connection(host, port) for _ in range(2)]
            extra = [await asyncio.open_connection(host, port) for _ in range(RESERVE)]
            for _, writer in (*kept, *extra):
                writer.close()
                await writer.wait_closed()
            await asyncio.sleep(0.1)
        for _, writer in [await answered(host, port) for _ in range(2)]:
            writer.close()

    against_server(client, max_connections=2)


def test_a_connection_that_ends_leaves_no_timer() -> None:
    async def client(host: str, port: int) -> None:
        for _ in range(20):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(1.2)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client, header_timeout_s=1)


@pytest.mark.parametrize("form", [b"Content-Length: 10\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\na\r\n"])
def test_who_has_the_answer_and_leaves_the_request_unfinished_is_closed(form: bytes) -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\n" + form)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"z")  # uvicorn's own timer ends with it
        assert await reader.read() == b""
        writer.close()

    against_server(client, header_timeout_s=0.2)


def test_who_completes_a_request_that_was_answered_early_keeps_the_connection() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"0123456789")
        await asyncio.sleep(2.5)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client, header_timeout_s=2)


@pytest.mark.parametrize("piece", [b"x" * 1024, b"a: " + b"y" * 1000 + b"\r\n"])
def test_an_endless_trailer_is_refused(piece: bytes) -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
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
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            chunk = b"z" * (8 * 1024)
            for part in (b"%x\r\n" % len(chunk), chunk + b"\r\n"):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.write(b"0\r\nx: y\r\n")
        await writer.drain()
        writer.write(b"z: z\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()

    against_server(client)


@pytest.mark.parametrize("form", ["length", "chunked"])
@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_a_request_that_offers_another_protocol_keeps_its_body(form: str, pause_s: float) -> None:
    """Java's client offers HTTP/2 with each request to a plain address."""
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + H2C
    body = b"0123456789"
    if form == "length":
        head, body = head + b"Content-Length: 10\r\n\r\n", body
    else:
        head, body = head + b"Transfer-Encoding: chunked\r\n\r\n", b"a\r\n0123456789\r\n0\r\n\r\n"

    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for _ in range(2):  # and the connection stays good
            writer.write(head)
            await asyncio.sleep(pause_s)
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
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert refusal(await reader.read()) == (400, "invalid_value")
        writer.close()

    against_server(client)


async def asked_for_much(host: str, port: int, fields: bytes) -> socket.socket:
    """A connection with a small window, on which a large answer waits."""
    loop, connection = asyncio.get_running_loop(), socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    connection.setblocking(False)
    await loop.sock_connect(connection, (host, port))
    await loop.sock_sendall(connection, b"GET /large HTTP/1.1\r\nHost: x\r\n%s\r\n" % fields)
    return connection


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"])
def test_who_does_not_read_a_large_answer_is_given_up(fields: bytes) -> None:
    async def client(host: str, port: int) -> None:
        loop, size = asyncio.get_running_loop(), 0
        connection = await asked_for_much(host, port, fields)
        await asyncio.sleep(3)
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
                await asyncio.sleep(0.5)
        assert size > LARGE_BYTES
        connection.close()

    against_server(client, write_timeout_s=2)


def test_a_refusal_has_an_id_and_a_reason() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"nonsense\r\n\r\n")
        head = (await reader.read()).partition(b"\r\n\r\n")[0]
        assert b"x-request-id: req-" in head and b"x-edge-reason: invalid_value" in head
        writer.close()

    against_server(client)


def test_no_more_requests_are_kept_than_a_client_may_mean() -> None:
    async def client(host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        more = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n%02d"
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + b"".join(more % number for number in range(90)))
        answers = (await reader.read()).split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert [answer[-2:] for answer in answers] == [b"ok", *(b"%02d" % number for number in range(MOST_QUEUED))]
        assert [b"connection: close" in answer for answer in answers] == [False] * MOST_QUEUED + [True]
        writer.close()

    against_server(client)
