"""One HTTP connection, with bounds that uvicorn lacks: time and size of a request's head, size of its trailer, time for a rest
that nobody waits for, time for an answer to be read, number of connections.

When all connections are taken, the one that has been idle longest goes for a new one. Where none is idle, it is still asked
what it wants, since a probe that is refused gets the node killed: it is answered if it asks for the health.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from edge.api.gate import HEALTH, fresh_id
from edge.api.render import error_headers, error_object
from edge.errors import EdgeError, InvalidRequest, Overloaded, SlowClient
from edge.plainhttp import PlainParser

MAX_HEAD_BYTES = 64 * 1024
RESERVE = 16
"""Connections above the limit whose head is awaited. One more, and the first of them is refused: whoever leaves heads unfinished
takes the place of nobody who sends his at once, as a probe does."""
MOST_QUEUED = 16
"""Requests that wait on one connection for the answers before them. Hardly any client sends one; thousands fit into one read."""
_RESERVE_S = 2.0
_RESERVE_HEAD_BYTES = 8 * 1024
_LEAST_READ_BYTES = 48 * 1024
"""What a client must take of its answer in `write_timeout_s`, if it does not take all."""


class HeadTooLarge(EdgeError):
    """Request line and headers are over MAX_HEAD_BYTES."""

    status = 431
    kind = "invalid_request_error"
    code = "head_too_large"


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection; it refuses in the same words and form as the routes do, and then closes."""

    parser: PlainParser
    header_timeout_s: float
    write_timeout_s: float
    max_connections: int
    idle: dict[BoundedConnection, None]
    """The listener's connections that have been answered and ask nothing, the longest idle first."""
    reserve: dict[BoundedConnection, None]
    """The listener's connections above the limit whose head is not there yet, the first first."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.parser = PlainParser(self)
        self._running: RequestResponseCycle | None = None
        self._is_extra = False  # above the limit
        self._is_full = False  # what was asked is answered, and nothing more is taken
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._rest_timer: asyncio.TimerHandle | None = None
        self._whole = True  # no request's body is awaited
        self._chunk = 0
        self._in_trailer = False
        self._trailer_bytes = 0
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's head; for one connection too many an idle one goes, or it is for the health only."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections and not self._closed_an_idle_one():
            self._is_extra = True
            self.connections.discard(self)  # so it takes the place of nobody
            if len(self.reserve) >= RESERVE:
                next(iter(self.reserve))._refuse_extra()
            self.reserve[self] = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Neither timers nor places may outlive the connection, nor answers."""
        self.idle.pop(self, None)
        self._head_is_there()
        self._rest_is_there()
        self._answer_is_read()
        if (
            self._running is not None
        ):  # uvicorn tells the last of several requests only, not the one that is being answered
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what belongs to an unfinished head or trailer."""
        if self.transport.is_closing():  # refused already
            return
        trailer_of = self._chunk if self._in_trailer else None
        super().data_received(data)
        if self in self.idle and self.timeout_keep_alive_task is None:  # what came did not begin a request
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        if (
            self._in_trailer and self._chunk == trailer_of
        ):  # what came together with its chunk is one read, and so bounded
            self._trailer_bytes += len(data)
            if self._trailer_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLarge(f"the request's trailer is over {MAX_HEAD_BYTES} bytes"))
        if self._head_timer is not None:
            self._head_bytes += len(data)
            if self._is_extra and self._head_bytes > _RESERVE_HEAD_BYTES and not self.transport.is_closing():
                self._refuse_extra()
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLarge(f"the request's head is over {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        self.idle.pop(self, None)
        super().on_message_begin()
        if self._head_timer is None:
            self._expect_head()

    def on_headers_complete(self) -> None:
        """The head is whole; its body is the gate's concern, until it has answered."""
        if self.parser.met_offer:
            return
        self._head_is_there()
        if self._is_full or self.transport.is_closing():
            return
        if self._is_extra and not self._asks_for_health():
            self._refuse_extra()
            return
        self._whole = False
        super().on_headers_complete()
        if self._is_extra or len(self.pipeline) >= MOST_QUEUED:
            self._is_full, self.cycle.keep_alive = True, False

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
        if not self._whole:  # else the request was not taken
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._in_trailer = False
        if self._whole:  # it was not taken
            return
        self._whole = True
        self._rest_is_there()
        super().on_message_complete()
        if not self._answering:  # it was answered before it was whole
            self.idle[self] = None

    def on_response_complete(self) -> None:
        """An answer is out. Nobody waits for the rest of its request any more, so it has as long as a head has; closing at once
        could take the answer from a client that still sends (RFC 9112, section 9.6)."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._let_go()
        elif self._answering:
            return
        elif not self._whole:
            self._rest_is_there()
            self._rest_timer = self.loop.call_later(self.header_timeout_s, self._let_go)
        elif self._head_timer is None:
            self.idle[self] = None

    def pause_writing(self) -> None:
        """More of an answer waits than is kept for a client that reads."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._answer_is_read()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked for so long."""
        if not self.transport.is_closing():
            self._let_go()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets an error object as well."""
        self._refuse(InvalidRequest(f"this is not HTTP/1.1: {msg.lower().rstrip('.')}"))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _let_go(self) -> None:
        """Close, when what waits is written; and if the client does not read it, without."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._await_reader()

    def _await_reader(self) -> None:
        if self._unread_timer is None:
            self._unread_bytes = self.transport.get_write_buffer_size()
            self._unread_timer = self.loop.call_later(self.write_timeout_s, self._look_at_reader)

    def _look_at_reader(self) -> None:
        """A client that does not read must not hold memory and a place for ever."""
        self._unread_timer = None
        left_bytes = self.transport.get_write_buffer_size()
        if left_bytes > max(0, self._unread_bytes - _LEAST_READ_BYTES):
            self.transport.abort()
        elif left_bytes:
            self._await_reader()

    def _answer_is_read(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _expect_head(self) -> None:
        self._head_bytes = 0
        patience_s = min(self.header_timeout_s, _RESERVE_S) if self._is_extra else self.header_timeout_s
        self._head_timer = self.loop.call_later(patience_s, self._head_is_late)

    def _head_is_there(self) -> None:
        self.reserve.pop(self, None)
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
        elif self.transport.is_closing():
            return
        elif self._is_extra:
            self._refuse_extra()
        else:
            self._refuse(SlowClient(f"the request's head did not arrive within {self.header_timeout_s:g} s"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _closed_an_idle_one(self) -> bool:
        """Whether the connection that has been idle longest was closed, as other servers do when they have no more: its client
        opens another one for its next request. One that has not read its answer yet is not idle."""
        found = next((other for other in self.idle if not other.transport.get_write_buffer_size()), None)
        if found is None:
            return False
        del self.idle[found]
        self.connections.discard(found)  # its place is free now, and not when the loop comes to it
        found.transport.close()
        return True

    def _asks_for_health(self) -> bool:
        """Whether that is all, so that the answer takes no time; and nothing of it was written in another way."""
        return self.parser.get_method() in (b"GET", b"HEAD") and self.url.partition(b"?")[0].decode("latin-1") in HEALTH

    def _refuse_extra(self) -> None:
        self._refuse(Overloaded(f"{self.max_connections} connections are open, the node takes no more"))

    def _refuse(self, error: EdgeError) -> None:
        self._head_is_there()
        if not self._answering:  # an answer under way is not mixed with another one
            self._write(error)
        self._let_go()

    def _write(self, error: EdgeError) -> None:
        body = orjson.dumps(error_object(error))
        fields = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "x-request-id": fresh_id(),
            **error_headers(error),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(STATUS_LINE[error.status] + head.encode() + b"\r\n" + body)


def bounded_connection(
    header_timeout_s: float,
    write_timeout_s: float,
    max_connections: int,
    base: type[BoundedConnection] = BoundedConnection,
) -> type[asyncio.Protocol]:
    """A protocol class for uvicorn with these bounds, for one listener."""
    shared_idle: dict[BoundedConnection, None] = {}
    shared_reserve: dict[BoundedConnection, None] = {}

    class Bounded(base):  # type: ignore[misc, valid-type]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.header_timeout_s, self.write_timeout_s = header_timeout_s, write_timeout_s
            self.max_connections = max_connections
            self.idle, self.reserve = shared_idle, shared_reserve

    return Bounded
