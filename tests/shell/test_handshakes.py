"""TLS handshakes that lead nowhere, against the real server on its real loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme

from edge.handshakes import HandshakeLoop
from edge.listener import bind, http_server
from edge.settings import Server

Client = Callable[[int, ssl.SSLContext], Awaitable[None]]


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def against_server(home: Path, client: Client, *, timeout_s: float, most: int) -> None:
    """Run a client against a server with TLS; when both have ended nothing is left."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.cert_chain_pems[0].write_to_path(home / "tls.crt")
    leaf.private_key_pem.write_to_path(home / "tls.key")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)

    async def run() -> None:
        settings = Server(port=0, tls_cert=home / "tls.crt", tls_key=home / "tls.key")
        server, listener = http_server(application, settings), bind(settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(60):
                await client(listener.getsockname()[1], trusting)
        finally:
            server.should_exit = True
            await serving
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=partial(HandshakeLoop, timeout_s, most)) as runner:
        runner.run(run())


async def answer(port: int, trusting: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    found = await reader.read()
    writer.close()
    return found


async def closed(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        return await reader.read() == b""
    return True


def test_who_never_shakes_hands_is_given_up(tmp_path: Path) -> None:
    async def client(port: int, trusting: ssl.SSLContext) -> None:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await answer(port, trusting)).startswith(b"HTTP/1.1 200")
        for reader, writer in silent:
            assert await closed(reader)
            writer.close()

    against_server(tmp_path, client, timeout_s=5, most=100)


def test_too_many_take_nobodys_place_who_goes_on(tmp_path: Path) -> None:
    async def client(port: int, trusting: ssl.SSLContext) -> None:
        before = len(os.listdir("/proc/self/fd"))
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
        assert (await answer(port, trusting)).startswith(b"HTTP/1.1 200")
        for reader, writer in silent[:32]:  # the first ones
            assert await closed(reader)
            writer.close()
        while len(os.listdir("/proc/self/fd")) > before + 2 * 8:  # theirs and ours are closed
            await asyncio.sleep(0.02)
        for _, writer in silent:
            writer.close()

    against_server(tmp_path, client, timeout_s=60, most=8)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x05hello"])
def test_what_is_no_tls_is_closed(tmp_path: Path, sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def client(port: int, trusting: ssl.SSLContext) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        assert (await answer(port, trusting)).startswith(b"HTTP/1.1 200")

    against_server(tmp_path, client, timeout_s=60, most=8)
    assert not caplog.records


def test_small_writes_are_not_held_back(tmp_path: Path) -> None:
    """Between two tokens there is no time for Nagle's algorithm."""
    seen: list[int] = []

    async def client(port: int, trusting: ssl.SSLContext) -> None:
        loop, accepted = asyncio.get_running_loop(), asyncio.Event()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                sock = transport.get_extra_info("socket")
                seen.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                accepted.set()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        server = await loop.create_server(Accepted, sock=listener, ssl=context)
        _, writer = await asyncio.open_connection("127.0.0.1", listener.getsockname()[1], ssl=trusting)
        await accepted.wait()  # the handshake is over here before it is over there
        writer.close()
        server.close()
        await server.wait_closed()
        listener.close()

    against_server(tmp_path, client, timeout_s=60, most=8)
    assert seen == [1]
