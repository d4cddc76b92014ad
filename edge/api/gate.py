"""What every request passes before a route sees it: identity, authority, room, and a body of bounded size in bounded
time.

Pure ASGI. Work is refused here before a byte of its body is parsed.
"""

from __future__ import annotations

import logging
import re
import secrets
import socket
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.admission.policy import may_leave
from edge.api.ask import asked
from edge.api.auth import Scope as KeyScope
from edge.api.auth import authorize
from edge.api.bodies import BodyRoom, Vanished, hand_over, replayed, whole_body
from edge.api.front import Front
from edge.api.hosts import host_of, sent_unasked
from edge.api.page import PATH as PAGE
from edge.api.polled import POLLED
from edge.api.render import error_response
from edge.errors import EdgeError, EngineFault, HostNotAllowed, InvalidRequest, PermissionDenied, RouteNotFound
from edge.printable import printable

log = logging.getLogger(__name__)

GENERATION = frozenset({"/v1/chat/completions", "/v1/completions"})
INFERENCE = GENERATION | {"/tokenize", "/detokenize", "/v1/embeddings", "/v1/rerank", "/v1/classify", "/v1/detect"}
HEALTH = frozenset({"/health", "/healthz", "/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
PUBLIC = HEALTH | {PAGE}
_V2_MODELS = "/v2/models/"
READ_AT = "edge.read_s"
"""Key of the ASGI scope: monotonic time at which the request's last byte was read."""

KEY_NAME = "edge.key"
"""Key of the ASGI scope: name of the API key, empty when none is asked for."""

TRACE = "edge.trace"
"""Key of the ASGI scope: the request's trace; generations only."""

REQUEST_ID = "edge.request_id"
"""Key of the ASGI scope: the id that the answer carries."""

_BODIES = 32
"""So many of the largest may be held at a time."""
_SANE_ID = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")


class Gate:
    """Middleware around the application."""

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app = app
        self._front = front
        self._room = BodyRoom(_BODIES * front.config.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, read the body, and hand over; or answer with the error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server leaves the body out by a scope of its own
            scope = {**scope, "method": "GET"}
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        if scope["path"] not in GENERATION or scope["method"] != "POST":
            await self._checked(scope, receive, self._tagged(send, request_id, scope["path"]), request_id)
            return
        trace = scope[TRACE] = self._front.tracing.begin(scope["path"], headers, time.monotonic())
        status: int | None = None

        async def traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message.setdefault("headers", [])).update(trace.answered())
            await send(message)

        try:
            await self._checked(scope, receive, self._tagged(traced, request_id, scope["path"]), request_id)
        finally:
            trace.ended(status)

    async def _checked(self, scope: Scope, receive: Receive, tagged: Send, request_id: str) -> None:
        """Read the body and hand over, or answer with the error."""
        with self._room.place() as take:
            await self._in_its_place(scope, receive, tagged, request_id, take)

    async def _in_its_place(
        self, scope: Scope, receive: Receive, tagged: Send, request_id: str, take: Callable[[int], None]
    ) -> None:
        headers = Headers(scope=scope)
        try:
            if not scope["path"].isprintable():  # a router may read "/metrics\n" as "/metrics"; a check here would not
                raise RouteNotFound("the path holds characters that no path here has")
            scope[KEY_NAME] = self._admit(scope["method"], scope["path"], headers)
            scope[REQUEST_ID] = request_id
            has_body = scope["method"] in ("POST", "PUT", "PATCH", "DELETE")
            body = await self._body(headers, receive, take) if has_body else b""
        except EdgeError as error:
            await error_response(error, scope["path"])(scope, receive, tagged)
            return
        except Vanished:
            return
        scope[READ_AT] = time.monotonic()

        def failed(error: Exception) -> Response:
            log.error("unexpected error", extra={"event": "bug", "path": scope["path"]}, exc_info=error)
            fault = EngineFault("the node met an error of its own; its log says more")
            return error_response(fault, scope["path"])

        app = self._answer_polled if scope["method"] == "GET" and scope["path"] in POLLED else self._app
        await hand_over(app, scope, replayed(body, receive), tagged, failed)

    async def _answer_polled(self, scope: Scope, receive: Receive, send: Send) -> None:
        """In the application's place."""
        answer = await POLLED[scope["path"]](self._front)
        await answer(scope, receive, send)

    def _admit(self, method: str, path: str, headers: Headers) -> str:
        """Raises EdgeError unless the request may go on. Returns the name of its key."""
        front, name = self._front, ""
        if path in HEALTH:  # probes call a node as they like
            return name
        if not front.config.keys_required:
            self._refuse_pages(method, headers)
        if path in PUBLIC:
            return name
        wanted = _scope(method, path)
        if wanted == "admin" and "origin" in headers:  # a web page may send to loopback, and needs no key there
            raise PermissionDenied(
                "models are not loaded or unloaded from a web page: send the request without `Origin`"
            )
        if front.config.keys_required:
            key = authorize(front.keys, _secret(headers), wanted)
            name = key.name
            if wanted == "inference":
                front.rates.take(key)
        if wanted == "inference" and (obstacle := front.shut()) is not None and not self._may_leave(path, headers):
            raise obstacle.error
        return name

    def _refuse_pages(self, method: str, headers: Headers) -> None:
        """Raises what keeps pages of other sites out, where no key does. See `edge.api.hosts`."""
        host = headers.get("host")
        if not self._front.config.hosts.include(host, socket.gethostname()):
            raise HostNotAllowed(
                f"this node does not go by the name {printable(host_of(host or ''))[:100]!r}, and it asks for no API key: "
                "a web page could reach it so. Call it by its address, add the name to server.allowed_hosts, or have it "
                'ask for keys: auth.mode = "always"'
            )
        if method == "POST" and sent_unasked(headers):
            raise PermissionDenied("a web page has to say what it sends: `Content-Type: application/json`, say")

    def _may_leave(self, path: str, headers: Headers) -> bool:
        """Whether the fleet might answer: then the request is read although the engine cannot take it."""
        ask = asked(headers, None)
        return path in GENERATION and may_leave(ask, self._front.config.mode, self._front.fleet_view()) is None

    async def _body(self, headers: Headers, receive: Receive, take: Callable[[int], None]) -> bytes:
        config = self._front.config
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise InvalidRequest("compressed bodies are not read here: send it without Content-Encoding")
        return await whole_body(
            headers,
            receive,
            most_bytes=config.max_body_bytes,
            timeout_s=config.body_timeout_s,
            setting="server.max_body_bytes",
            take=take,
        )

    def _tagged(self, send: Send, request_id: str, path: str) -> Send:
        """Add the headers that every answer has, and count it."""
        inference = _is_inference(path)
        route = path if path in INFERENCE or path in PUBLIC or path in ("/metrics", "/v1/models") else "other"
        if inference and path not in INFERENCE:
            route = "/v2/models"

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = request_id
                if inference:
                    headers.setdefault("x-edge-route", "local")
                self._front.metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        return tagged


def _scope(method: str, path: str) -> KeyScope | None:
    """What a key must be good for."""
    if path == "/metrics" or path.startswith("/edge/v1/"):
        return "metrics" if method in ("GET", "HEAD") else "admin"
    return "inference" if _is_inference(path) else None


def _is_inference(path: str) -> bool:
    """Asks a model, or has one loaded."""
    return path in INFERENCE or path.startswith(_V2_MODELS)


def _secret(headers: Headers) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return headers.get("api-key") or headers.get("x-api-key")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else fresh_id()


def fresh_id() -> str:
    """An id for a request that brings none."""
    return f"req-{secrets.token_hex(12)}"
