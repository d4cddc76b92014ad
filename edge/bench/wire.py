"""A thin HTTP/1.1 client for measuring: its own cost is some ten microseconds an event, a general client's a millisecond.

On two shared cores the client competes with the server that it measures, so what it costs shows up in the figures.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, Self, cast
from urllib.parse import urlsplit

import httptools

_MOST_BODY_BYTES = 64 << 20
_EXCERPT_BYTES = 300


class RefusedError(Exception):
    """The server answered with a status other than 200."""


class BrokenAnswer(ConnectionError):
    """What came is not HTTP, or more than a measurement needs."""


class Exchange:
    """One request and its answer as it arrives. Times are perf_counter's, in seconds.

    `sent_s`: when the last byte of the request left for the kernel. `chunks`: (time, bytes) of each piece of the body.
    """

    def __init__(self) -> None:
        self.sent_s = 0.0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[tuple[float, bytes]] = []
        self.done = asyncio.get_running_loop().create_future()

    def excerpt(self) -> str:
        """The beginning of the body, for a message."""
        return b"".join(data for _, data in self.chunks)[:_EXCERPT_BYTES].decode("utf-8", "replace")

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)


class Connection(asyncio.Protocol):
    """A keep-alive connection; one exchange at a time."""

    def __init__(self) -> None:
        self.usable = True
        """False once it cannot carry another exchange."""
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._exchange: Exchange | None = None
        self._host = ""
        self._now_s = 0.0
        self._body_bytes = 0

    @classmethod
    async def open(cls, url: str, tls: ssl.SSLContext | None = None) -> Self:
        """Connect to http://HOST:PORT or, with `tls`, https://HOST:PORT. Raises OSError (ssl.SSLError is one)."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            cls,
            str(parts.hostname),
            parts.port or (443 if secure else 80),
            ssl=(tls or ssl.create_default_context()) if secure else None,
        )
        connection._host = parts.netloc.rpartition("@")[2]
        return connection

    async def post(self, path: str, body: bytes, key: str = "none") -> tuple[float, Exchange]:
        """Send a request and wait for the whole answer. Returns when it was sent, and the answer.

        Raises RefusedError, ConnectionError.
        """
        exchange = await self.exchange(path, body, key)
        if exchange.status != 200:
            raise RefusedError(f"status {exchange.status}: {exchange.excerpt()}")
        return exchange.sent_s, exchange

    async def exchange(self, path: str, body: bytes, key: str = "none") -> Exchange:
        """Send a request and wait for the whole answer, whatever its status. Raises ConnectionError."""
        exchange = self.start(path, body, key)
        await exchange.done
        return exchange

    def start(self, path: str, body: bytes, key: str = "none") -> Exchange:
        """Send a request; the answer fills the exchange, whose `done` ends with it or with a ConnectionError."""
        assert self._transport is not None
        exchange = self._exchange = Exchange()
        self._parser = httptools.HttpResponseParser(self)
        self._body_bytes = 0
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\n{authorization}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        if self._transport.is_closing():
            self.usable = False
            exchange.fail(ConnectionResetError("the server closed the connection"))
        # Both moments: a body too long for the socket's buffer is noted again by resume_writing when its end has left.
        exchange.sent_s = time.perf_counter()
        self._transport.write(head.encode() + body)
        return exchange

    def close(self) -> None:
        """Hang up."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio and httptools call these -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods without being one
        self._transport.set_write_buffer_limits(high=0)

    def resume_writing(self) -> None:
        """The rest of a long request has left."""
        if self._exchange is not None and not self._exchange.chunks:
            self._exchange.sent_s = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        """Note the time, then parse."""
        self._now_s = time.perf_counter()
        if self._parser is None:
            self._break("it spoke before it was asked, which HTTP servers do not")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._break(f"the answer is not HTTP ({error})")

    def connection_lost(self, exc: Exception | None) -> None:
        """An answer that was not complete has failed, unless the end of the connection is what ends it (HTTP/1.0)."""
        self.usable = False
        exchange = self._exchange
        if exchange is None or exchange.done.done():
            return
        framed = exchange.headers.keys() & {"content-length", "transfer-encoding"}
        if exc is None and exchange.status and not framed:
            exchange.done.set_result(None)
        else:
            exchange.fail(exc or ConnectionResetError("the server closed the connection"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it."""
        assert self._exchange is not None
        self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Keep the status, also of an answer that will not come to its end."""
        assert self._exchange is not None
        self._exchange.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep it with its time."""
        assert self._exchange is not None
        self._body_bytes += len(data)
        if self._body_bytes > _MOST_BODY_BYTES:
            self._break(f"the answer is longer than {_MOST_BODY_BYTES >> 20} MiB")
            return
        self._exchange.chunks.append((self._now_s, data))

    def on_message_complete(self) -> None:
        """The exchange is over."""
        exchange = self._exchange
        assert exchange is not None
        self.usable = self.usable and self._parser.should_keep_alive()
        if not exchange.done.done():
            exchange.done.set_result(None)

    def _break(self, why: str) -> None:
        if self._exchange is not None:
            self._exchange.fail(BrokenAnswer(why))
        self.close()
