"""A thin HTTP/1.1 client for measuring: its own cost is some ten microseconds an event, a general client's a millisecond.

On two shared cores the client competes with the server that it measures, so what it costs shows up in the figures.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Self
from urllib.parse import urlsplit

import httptools


class RefusedError(Exception):
    """The server answered with a status other than 200."""


class Exchange:
    """One answer as it arrives. `chunks`: (perf_counter, bytes) of each piece of the body."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.chunks: list[tuple[float, bytes]] = []
        self.done = asyncio.get_running_loop().create_future()


class Connection(asyncio.Protocol):
    """A keep-alive connection; one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._host = ""

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to http://HOST:PORT."""
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(cls, str(parts.hostname), parts.port or 80)
        connection._host = parts.netloc
        return connection

    async def post(self, path: str, body: bytes, key: str = "none") -> tuple[float, Exchange]:
        """Send a request and wait for the whole answer. Returns when it was sent, and the answer.

        Raises RefusedError, ConnectionError.
        """
        assert self._transport is not None
        self._exchange, self._parser = Exchange(), httptools.HttpResponseParser(self)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sent = time.perf_counter()
        self._transport.write(head.encode() + body)
        await self._exchange.done
        return sent, self._exchange

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    # --- asyncio and httptools call these -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that was not complete has failed."""
        if self._exchange is not None and not self._exchange.done.done():
            self._exchange.done.set_exception(exc or ConnectionResetError("the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it."""
        assert self._exchange is not None
        self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        """Note when it came."""
        assert self._exchange is not None
        self._exchange.chunks.append((time.perf_counter(), data))

    def on_message_complete(self) -> None:
        """The exchange is over."""
        exchange = self._exchange
        assert exchange is not None
        if (status := self._parser.get_status_code()) != 200:
            text = b"".join(d for _, d in exchange.chunks)[:300].decode("utf-8", "replace")
            exchange.done.set_exception(RefusedError(f"status {status}: {text}"))
        else:
            exchange.done.set_result(None)
