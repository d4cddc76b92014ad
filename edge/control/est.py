"""Enrollment over Secure Transport (RFC 7030, RFC 8951) and the bootstrap document: the routes for nodes."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Callable
from typing import Annotated, Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import pkcs7
from fastapi import APIRouter, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response

from edge.control.bounds import Bounds, as_error
from edge.control.enrollment import UNKNOWN_TOKEN, Issued, Outcome, Refused
from edge.control.fleet import Fleet
from edge.control.peer import PEER
from edge.control.tokens import find_token
from edge.control.x509 import RequestRefused, now_utc, read_request
from edge.errors import EdgeError
from edge.identity.wire import BOOTSTRAP_PATH, EST_PATH, REASON_HEADER, Bootstrap

_PKCS7 = "application/pkcs7-mime"
_CERTS_ONLY = f"{_PKCS7}; smime-type=certs-only"
_CSR_ATTRS = bytes.fromhex("3021301506072a8648ce3d0201310a06082a8648ce3d03010706082a8648ce3d040302")
"""SEQUENCE { attribute ecPublicKey { secp256r1 }, ecdsa-with-SHA256 }: what is asked of requests."""
_ENFORCED_S = 3.0
"""How long a bootstrap waits until the broker lets its node in."""

router = APIRouter()
_STRING: dict[str, Any] = {"schema": {"type": "string"}}
_TEXT: dict[str, Any] = {"text/plain": _STRING}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": _TEXT}
    for status, text in (
        (202, "The node waits for approval; ask again after Retry-After."),
        (400, "The request cannot be read."),
        (401, "The token is refused; Edge-Reason says why."),
        (403, "The node is refused; Edge-Reason says why."),
        (408, "The body did not arrive in time."),
        (409, "The token or the key belongs to another."),
        (413, "The body is too large."),
        (503, "The fleet cannot do it now, and the body says why; ask again after Retry-After."),
    )
}
_CERTIFICATES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Certificates, as base64 of PKCS #7 certs-only.",
        "content": {_PKCS7: {"schema": {"type": "string"}}},
    }
}
_REQUEST: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/pkcs10": {"schema": {"type": "string"}}}}
}


def build_nodes_application(fleet: Fleet, version: str) -> FastAPI:
    """Routes for nodes."""
    app = FastAPI(title="edge fleet: nodes", version=version, docs_url=None, redoc_url=None)
    app.state.fleet = fleet
    app.include_router(router)
    app.add_exception_handler(EdgeError, _edge_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _http_error)
    app.add_middleware(Bounds, timeout_s=fleet.settings.est.timeout_s, render=render)
    return app


@router.get(f"{EST_PATH}/cacerts", response_class=Response, responses=_CERTIFICATES)
async def cacerts(request: Request) -> Response:
    """All authorities that count, for who knows the hash of one."""
    return _certificates(_fleet(request).authority.published)


@router.get(
    f"{EST_PATH}/csrattrs",
    response_class=Response,
    responses={200: {"description": "What a request should hold.", "content": {"application/csrattrs": _STRING}}},
)  # fmt: skip
async def csrattrs() -> Response:
    """What is asked of requests: a P-256 key. Names are given here and not taken from requests."""
    return Response(
        _one_line(_CSR_ATTRS), headers={"content-transfer-encoding": "base64"}, media_type="application/csrattrs"
    )


@router.post(f"{EST_PATH}/simpleenroll", response_class=Response, responses={**_CERTIFICATES, **_REFUSALS}, openapi_extra=_REQUEST)  # fmt: skip  # noqa: E501
async def simpleenroll(request: Request, authorization: Annotated[str | None, Header()] = None) -> Response:
    """A first certificate, for who has a token: its id and secret as name and password of HTTP Basic."""
    fleet, credentials = _fleet(request), _basic(authorization)
    if credentials is None:
        refused = Refused("token_unknown", "send the enrollment token's id and secret as HTTP Basic")
        return _refusal(fleet, refused)
    token_id, secret = credentials
    body = await request.body()
    if not await run_in_threadpool(_knows, fleet, token_id, secret):  # before any work for strangers
        return _refusal(fleet, UNKNOWN_TOKEN)
    csr = await run_in_threadpool(_csr, body)
    if isinstance(csr, Refused):
        return _refusal(fleet, csr)
    return await _decided(fleet, lambda session: fleet.registrar.enroll(session, token_id, secret, csr, now_utc()))


@router.post(f"{EST_PATH}/simplereenroll", response_class=Response, responses={**_CERTIFICATES, **_REFUSALS}, openapi_extra=_REQUEST)  # fmt: skip  # noqa: E501
async def simplereenroll(request: Request) -> Response:
    """A further certificate, for who comes with one of ours; for the same key or a new one."""
    fleet, peer = _fleet(request), _peer(request)
    if peer is None:
        return _refusal(fleet, Refused("node_unknown", "renewal needs the node's certificate (mTLS)"))
    csr = await run_in_threadpool(_csr, await request.body())
    if isinstance(csr, Refused):
        return _refusal(fleet, csr)
    return await _decided(fleet, lambda session: fleet.registrar.renew(session, peer, csr, now_utc()))


@router.get(BOOTSTRAP_PATH, response_model=Bootstrap, responses={status: _REFUSALS[status] for status in (403, 503)})
async def bootstrap(request: Request) -> Any:
    """What a node is to do with its identity: its own document, and nobody else's."""
    fleet, peer = _fleet(request), _peer(request)
    if peer is None:
        return _refusal(fleet, Refused("node_unknown", "this needs the node's certificate (mTLS)"))
    found = await run_in_threadpool(_bootstrap, fleet, peer)
    if isinstance(found, Refused):
        return _refusal(fleet, found)
    wanted = fleet.enforcer.ask()  # it connects to the broker next, and should be let in
    give_up_s = time.monotonic() + _ENFORCED_S
    while fleet.enforcer.done < wanted and time.monotonic() < give_up_s:
        await asyncio.sleep(0.02)
    return found


def _bootstrap(fleet: Fleet, peer: x509.Certificate) -> Bootstrap | Refused:
    settings = fleet.settings
    with fleet.database.read() as session:
        node = fleet.registrar.node_of(session, peer, now_utc())
    if isinstance(node, Refused):
        return node
    return Bootstrap(
        fleet=settings.name, node=node.id, group=node.group, mqtt=settings.mqtt, fallback=settings.fallback,
        command_keys=fleet.command_keys(), renewal=settings.renewal,
    )  # fmt: skip


async def _decided(fleet: Fleet, decide: Callable[[Session], Outcome]) -> Response:
    def work() -> Outcome:
        with fleet.database.write() as session:
            return decide(session)

    outcome = await run_in_threadpool(work)
    if isinstance(outcome, Refused):
        return _refusal(fleet, outcome)
    assert isinstance(outcome, Issued)
    fleet.enforcer.ask()
    return _certificates([outcome.certificate])


def _knows(fleet: Fleet, token_id: str, secret: str) -> bool:
    with fleet.database.read() as session:
        return find_token(session, token_id, secret) is not None


def _csr(body: bytes) -> x509.CertificateSigningRequest | Refused:
    """Base64 of PKCS #10, in one line or several."""
    text = b"".join(body.split())
    try:
        return read_request(base64.b64decode(text, validate=True))
    except binascii.Error:
        return Refused("request_malformed", "the body must be base64 of a PKCS #10 request (RFC 7030, section 4.2.1)")
    except RequestRefused as refused:
        return Refused("request_malformed", refused.text)


def _basic(authorization: str | None) -> tuple[str, str] | None:
    scheme, _, rest = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name, colon, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (name, password) if colon else None


def _peer(request: Request) -> x509.Certificate | None:
    der = request.scope.get(PEER)
    try:
        return None if der is None else x509.load_der_x509_certificate(der)
    except ValueError:
        return None


def _fleet(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


def _certificates(certificates: list[x509.Certificate]) -> Response:
    der = pkcs7.serialize_certificates(certificates, serialization.Encoding.DER)
    return Response(_one_line(der), headers={"content-type": _CERTS_ONLY, "content-transfer-encoding": "base64"})


def _one_line(data: bytes) -> bytes:
    """RFC 8951 leaves line breaks open; strongSwan's client takes none, everybody else takes a single line."""
    return base64.b64encode(data)


def _refusal(fleet: Fleet, refused: Refused) -> Response:
    headers = {REASON_HEADER: refused.reason, "cache-control": "no-store"}
    if refused.status == 401:
        headers["www-authenticate"] = 'Basic realm="edge fleet", charset="UTF-8"'
    if refused.reason == "pending":
        headers["retry-after"] = str(fleet.settings.nodes.retry_after_s)
    return PlainTextResponse(f"{refused.text}\n", refused.status, headers)


def render(error: EdgeError) -> Response:
    """An error as these clients read it: a sentence."""
    headers = {"retry-after": "5"} if error.retryable else {}
    return PlainTextResponse(f"{error.message}\n", error.status, headers)


async def _edge_error(_: Request, error: Exception) -> Response:
    return render(as_error(error))


async def _http_error(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 400
    text = {404: f"there is nothing here; EST is at {EST_PATH}", 405: "this path has no such method"}.get(status)
    return PlainTextResponse(f"{text or 'the request cannot be read'}\n", status, getattr(error, "headers", None))
