"""The routes for people: a JSON API over nodes, tokens and the audit log, and the page that uses it."""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edge.api.auth import KeyStore
from edge.api.render import error_response
from edge.control.audit import entries
from edge.control.bounds import Bounds, as_error
from edge.control.fleet import Fleet
from edge.control.nodes import NodeRow, State, approve, counts, node_row, node_rows, online, revoke
from edge.control.page import page_router
from edge.control.sessions import CSRF_HEADER, Opened, Sessions
from edge.control.shapes import (
    AuditPage,
    Changed,
    KeyGiven,
    NodesPage,
    Overview,
    SessionAnswer,
    TokenAsked,
    TokenMade,
    TokensPage,
)
from edge.control.tokens import TokenWish, create_token, revoke_token, token_rows
from edge.errors import (
    ConfigurationError,
    EdgeError,
    InvalidApiKey,
    InvalidRequest,
    MethodNotAllowed,
    NoSuchRecord,
    PermissionDenied,
    RecordConflict,
    RouteNotFound,
)

_NODE = Path(pattern=r"^[a-z0-9][a-z0-9\-]{0,62}$")
_TOKEN = Path(pattern=r"^[a-z0-9]{4,32}$")
_ENFORCED_S = 4.0
_ERROR: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _ERROR}
    for status, text in (
        (400, "The request is wrong; the message names the field."),
        (401, "No session and no admin key."),
        (403, "The CSRF token is missing or wrong."),
        (404, "There is none of that name."),
        (408, "The body did not arrive in time."),
        (409, "It is in a state in which that cannot be done."),
        (413, "The body is too large."),
        (503, "The fleet's database cannot be used now."),
    )
}


def _fleet(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


def _sessions(request: Request) -> Sessions:
    found: Sessions = request.app.state.sessions
    return found


def cookie_name(request: Request) -> str:
    """Over TLS one that no other host or port without TLS can set."""
    return "__Host-edge-fleet" if request.url.scheme == "https" else "edge-fleet"


def _opened(request: Request) -> Opened:
    """Of the cookie. Raises InvalidApiKey."""
    cookie = request.cookies.get(cookie_name(request))
    if not cookie:
        raise InvalidApiKey("sign in, or send an admin key as `Authorization: Bearer KEY`")
    return _sessions(request).find(cookie, _fleet(request).now())


def who(request: Request) -> str:
    """The caller's name for the audit log. Raises InvalidApiKey; PermissionDenied for a forged request."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return f"admin:{_sessions(request).by_key(secret.strip())}"
    opened = _opened(request)
    if request.method not in ("GET", "HEAD"):
        _unforged(request, opened)
    return f"admin:{opened.name}"


def _unforged(request: Request, opened: Opened) -> None:
    if not hmac.compare_digest(request.headers.get(CSRF_HEADER, "").encode(), opened.csrf.encode()):
        raise PermissionDenied(f"the request lacks the session's {CSRF_HEADER}: load the page anew")


Who = Annotated[str, Depends(who)]
At = Annotated[Fleet, Depends(_fleet)]
router = APIRouter(prefix="/fleet/v1", responses=_ERRORS)


def build_people_application(fleet: Fleet, version: str) -> FastAPI:
    """Routes for people."""
    app = FastAPI(title="edge fleet", version=version, docs_url=None, redoc_url=None)
    app.state.fleet = fleet
    app.state.sessions = Sessions(
        fleet.database, KeyStore(fleet.home.admin_keys), fleet.settings.admin.session_hours * 3600
    )
    app.include_router(router)
    app.include_router(page_router)
    app.add_exception_handler(EdgeError, _edge_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Bounds, timeout_s=fleet.settings.est.timeout_s, render=lambda error: error_response(error, ""))
    return app


# --- sessions ---------------------------------------------------------------------------------------------------------


@router.post("/session", tags=["session"])
def sign_in(request: Request, response: Response, given: KeyGiven) -> SessionAnswer:
    """Open a session: the cookie is for browsers."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise PermissionDenied("another site may not sign in here")
    opened = _sessions(request).open(given.key, _fleet(request).now())
    response.set_cookie(
        cookie_name(request), opened.id, max_age=int(_sessions(request).life_s), path="/", httponly=True,
        samesite="strict", secure=request.url.scheme == "https",
    )  # fmt: skip
    response.headers["cache-control"] = "no-store"
    return SessionAnswer(name=opened.name, csrf=opened.csrf, expires_s=opened.expires_s)


@router.get("/session", tags=["session"])
def session(request: Request, response: Response) -> SessionAnswer:
    """Who is signed in."""
    opened = _opened(request)
    response.headers["cache-control"] = "no-store"
    return SessionAnswer(name=opened.name, csrf=opened.csrf, expires_s=opened.expires_s)


@router.delete("/session", status_code=204, tags=["session"])
def sign_out(request: Request, response: Response) -> None:
    """Close the session."""
    opened = _opened(request)
    _unforged(request, opened)
    _sessions(request).close(opened.id)
    response.delete_cookie(
        cookie_name(request), path="/", httponly=True, samesite="strict", secure=request.url.scheme == "https"
    )


# --- nodes ------------------------------------------------------------------------------------------------------------

Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/overview", tags=["nodes"])
def overview(fleet: At, _: Who) -> Overview:
    """How many nodes there are, and until when the authority lasts."""
    with fleet.database.read() as session:
        found, there = counts(session), online(session)
    return Overview(nodes=found, online=there, now_s=fleet.now(), problems=fleet.problems(), **fleet.facts())


@router.get("/nodes", tags=["nodes"])
def nodes(
    fleet: At, _: Who,
    after: Annotated[str | None, Query(max_length=63)] = None,
    limit: Limit = 100,
    state: State | None = None,
    group: Annotated[str | None, Query(max_length=63)] = None,
    q: Annotated[str | None, Query(max_length=100, description="Part of a name or label.")] = None,
) -> NodesPage:  # fmt: skip
    """Nodes by name, a page at a time."""
    with fleet.database.read() as session:
        rows = node_rows(session, after=after, limit=limit + 1, state=state, group=group, search=q)
    return NodesPage(items=rows[:limit], next=rows[limit - 1].id if len(rows) > limit else None)


@router.get("/nodes/{node_id}", tags=["nodes"])
def node(fleet: At, _: Who, node_id: Annotated[str, _NODE]) -> NodeRow:
    """One node."""
    with fleet.database.read() as session:
        return _existing(node_row(session, node_id), node_id)


@router.post("/nodes/{node_id}/approve", tags=["nodes"])
def approve_node(fleet: At, actor: Who, node_id: Annotated[str, _NODE]) -> Changed:
    """Let a pending node in."""
    with fleet.database.write() as session:
        _existing(node_row(session, node_id), node_id)
        if (problem := approve(session, node_id, fleet.now(), actor)) is not None:
            raise RecordConflict(problem)
    return _changed(fleet, node_id)


@router.post("/nodes/{node_id}/revoke", tags=["nodes"])
def revoke_node(fleet: At, actor: Who, node_id: Annotated[str, _NODE]) -> Changed:
    """Shut a node out, for good."""
    with fleet.database.write() as session:
        _existing(node_row(session, node_id), node_id)
        revoke(session, node_id, fleet.now(), actor)
    return _changed(fleet, node_id)


def _existing(row: NodeRow | None, node_id: str) -> NodeRow:
    if row is None:
        raise NoSuchRecord(f"there is no node {node_id!r}")
    return row


def _changed(fleet: Fleet, node_id: str) -> Changed:
    wanted, give_up_s = fleet.enforcer.ask(), time.monotonic() + _ENFORCED_S
    while fleet.enforcer.done < wanted and time.monotonic() < give_up_s:
        time.sleep(0.02)
    with fleet.database.read() as session:
        row = _existing(node_row(session, node_id), node_id)
    return Changed(node=row, enforced=fleet.enforcer.done >= wanted and fleet.enforcer.holds)


# --- tokens and the audit log -----------------------------------------------------------------------------------------


@router.get("/tokens", tags=["tokens"])
def tokens(
    fleet: At, _: Who, after: Annotated[str | None, Query(max_length=32)] = None, limit: Limit = 100
) -> TokensPage:
    """Tokens by id, never their secrets."""
    with fleet.database.read() as session:
        rows = token_rows(session, fleet.now(), after=after, limit=limit + 1)
    return TokensPage(items=rows[:limit], next=rows[limit - 1].id if len(rows) > limit else None)


@router.post("/tokens", status_code=201, tags=["tokens"])
def make_token(fleet: At, actor: Who, response: Response, asked: Annotated[TokenAsked, Body()]) -> TokenMade:
    """A new token. This is the only time that it is shown."""
    wish = TokenWish(**asked.model_dump())
    try:
        with fleet.database.write() as session:
            made = create_token(session, wish, fleet.authority.pin, fleet.now(), actor)
    except ConfigurationError as error:
        if error.__cause__ is not None:  # the database, and no wish out of bounds
            raise
        raise InvalidRequest(error.message) from None
    response.headers["cache-control"] = "no-store"
    return TokenMade(id=made.id, token=str(made), url=fleet.settings.nodes_url)


@router.delete("/tokens/{token_id}", status_code=204, tags=["tokens"])
def drop_token(fleet: At, actor: Who, token_id: Annotated[str, _TOKEN]) -> None:
    """No further node comes in with it."""
    with fleet.database.write() as session:
        if not revoke_token(session, token_id, fleet.now(), actor):
            raise NoSuchRecord(f"there is no token {token_id!r}")


@router.get("/audit", tags=["audit"])
def audit(
    fleet: At, _: Who,
    before: Annotated[int | None, Query(ge=1, le=2**62)] = None,
    limit: Limit = 100,
    subject: Annotated[str | None, Query(max_length=100)] = None,
) -> AuditPage:  # fmt: skip
    """Who did what, newest first."""
    with fleet.database.read() as session:
        rows = entries(session, before=before, subject=subject, limit=limit + 1)
    return AuditPage(items=rows[:limit], next=rows[limit - 1].id if len(rows) > limit else None)


# --- errors -----------------------------------------------------------------------------------------------------------


async def _edge_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeError)
    if isinstance(error, ConfigurationError):
        error = as_error(error)
    return error_response(error, request.url.path)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    return error_response(
        InvalidRequest(f"`{where}`: {first['msg']}" if where else str(first["msg"])), request.url.path
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    found: EdgeError = InvalidRequest(f"the request cannot be read: {error.detail}")
    if error.status_code == 404:
        found = RouteNotFound("no such path; the API is described at /openapi.json")
    elif error.status_code == 405:
        found = MethodNotAllowed("this path has no such method")
    return error_response(found, request.url.path, dict(error.headers or {}))
