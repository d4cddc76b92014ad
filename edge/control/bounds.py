"""What a client may cost: a body of bounded size in bounded time, answers of our own for our own errors. Pure ASGI."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from edge.api.bodies import Vanished, hand_over, replayed, whole_body
from edge.errors import EdgeError, EngineFault, InvalidRequest, Unavailable

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
            await self._render(error)(scope, receive, send)
            return
        except Vanished:
            return
        await hand_over(self._app, scope, replayed(body, receive), send, self._failed)

    async def _body(self, headers: Headers, receive: Receive) -> bytes:
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise InvalidRequest("Content-Length is no number")
        return await whole_body(headers, receive, most_bytes=MOST_BODY_BYTES, timeout_s=self._timeout_s)

    def _failed(self, error: Exception) -> Response:
        log.error("a request failed", extra={"event": "bug"}, exc_info=error)
        return self._render(EngineFault("the fleet's server failed on this request; its log says how"))


def as_error(error: Exception) -> EdgeError:
    """What a failure of the fleet's own files means to a client: try again later."""
    return Unavailable(error.message if isinstance(error, EdgeError) else "the fleet's server cannot answer now")
