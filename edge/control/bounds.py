"""What a client may cost: a body of bounded size in bounded time, answers of our own for our own errors. Pure ASGI."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.errors import BodyTooLarge, EdgeError, EngineFault, InvalidRequest, SlowClient, Unavailable

log = logging.getLogger(__name__)

MOST_BODY_BYTES = 64 * 1024
_WITH_BODY = frozenset({"POST", "PUT", "PATCH", "DELETE"})
Render = Callable[[EdgeError], Response]


class Bounds:
    """Middleware around an application: reads the body before a route runs."""

    def __init__(self, app: ASGIApp, *, timeout_s: float, render: Render) -> None:
        self._app, self._timeout_s, self._render = app, timeout_s, render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read, and hand over; or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._body(Headers(scope=scope), receive) if scope["method"] in _WITH_BODY else b""
        except EdgeError as error:
            answer = self._render(error)
            answer.headers["connection"] = "close"
            await answer(scope, receive, send)
            return
        except _Vanished:
            return
        await self._pass(scope, _replayed(body, receive), send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise InvalidRequest("Content-Length is no number")
        if int(length) > MOST_BODY_BYTES:
            raise BodyTooLarge(f"the request's body is over {MOST_BODY_BYTES} bytes")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Vanished
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > MOST_BODY_BYTES:
                        raise BodyTooLarge(f"the request's body is over {MOST_BODY_BYTES} bytes")
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise SlowClient(f"the request's body did not arrive within {self._timeout_s:g} s") from None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            log.error("a request failed", extra={"event": "bug"}, exc_info=error)
            if begun:
                raise
            await self._render(EngineFault("the fleet's server failed on this request; its log says how"))(
                scope, receive, send
            )


class _Vanished(Exception):
    """The client left before its request was whole."""


def as_error(error: Exception) -> EdgeError:
    """What a failure of the fleet's own files means to a client: try again later."""
    return Unavailable(error.message if isinstance(error, EdgeError) else "the fleet's server cannot answer now")


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay
