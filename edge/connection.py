"""One HTTP connection, with bounds that uvicorn lacks: time and size of a request's head, size of its trailer, time for a rest
that nobody waits for, number of connections."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from edge.api.render import error_object
from edge.errors import EdgeError, InvalidRequest, Overloaded, SlowClient

MAX_HEAD_BYTES = 64 * 1024


class HeadTooLarge(EdgeError):
    """Request line and headers are over MAX_HEAD_BYTES."""

    status = 431
    kind = "invalid_request_error"
    code = "head_too_large"


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection; it refuses in the same words and form as the routes do, and then closes."""

    header_timeout_s: float
    max_connections: int

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._rest_timer: asyncio.TimerHandle | None = None
        self._whole = True  # no request's body is awaited
        self._chunk = 0
        self._in_trailer = False
        self._trailer_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse one connection too many; otherwise wait for the first request's head."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(Overloaded(f"{self.max_connections} connections are open, the node takes no more"))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The timers must not outlive the connection."""
        self._head_is_there()
        self._rest_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what belongs to an unfinished head or trailer."""
        if self.transport.is_closing():  # refused already
            return
        trailer_of = self._chunk if self._in_trailer else None
        super().data_received(data)
        if (
            self._in_trailer and self._chunk == trailer_of
        ):  # what came together with its chunk is one read, and so bounded
            self._trailer_bytes += len(data)
            if self._trailer_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLarge(f"the request's trailer is over {MAX_HEAD_BYTES} bytes"))
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLarge(f"the request's head is over {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is whole; its body is the gate's concern, until it has answered."""
        self._head_is_there()
        self._whole = False
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head. One of the trailer means nothing here, and is not kept."""
        if self._whole:
            super().on_header(name, value)

    def on_chunk_header(self) -> None:
        """A chunk begins. Unless bytes of it follow it is the last one, and then comes the trailer."""
        self._chunk += 1
        self._in_trailer, self._trailer_bytes = True, 0

    def on_body(self, body: bytes) -> None:
        """Bytes of the body."""
        self._in_trailer = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._whole, self._in_trailer = True, False
        self._rest_is_there()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out. Nobody waits for the rest of its request any more, so it has as long as a head has; closing at once
        could take the answer from a client that still sends (RFC 9112, section 9.6)."""
        super().on_response_complete()
        if not self._whole and not self._answering and not self.transport.is_closing():
            self._rest_is_there()
            self._rest_timer = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error object as well."""
        self._refuse(InvalidRequest(f"this is not HTTP/1.1: {msg.lower().rstrip('.')}"))

    def _expect_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _rest_is_there(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._answering:  # a pipelined request waits for the answer before it: not the client's fault
            self._expect_head()
        elif not self.transport.is_closing():
            self._refuse(SlowClient(f"the request's head did not arrive within {self.header_timeout_s:g} s"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: EdgeError) -> None:
        self._head_is_there()
        if not self._answering:  # an answer under way is not mixed with another one
            self._write(error)
        self.transport.close()

    def _write(self, error: EdgeError) -> None:
        body = orjson.dumps(error_object(error))
        retry = [b"retry-after: 1\r\n"] if error.retryable else []
        self.transport.write(
            b"".join(
                [
                    STATUS_LINE[error.status],
                    b"content-type: application/json\r\nconnection: close\r\n",
                    *retry,
                    b"content-length: %d\r\n\r\n" % len(body),
                    body,
                ]
            )
        )


def bounded_connection(
    header_timeout_s: float, max_connections: int, base: type[BoundedConnection] = BoundedConnection
) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn with these bounds."""

    class Bounded(base):  # type: ignore[misc, valid-type]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.header_timeout_s = header_timeout_s
            self.max_connections = max_connections

    return Bounded
