"""A small strict EST server for trials (RFC 7030, 8951): not the product's fleet side, and made without its code, so that the two
cannot be wrong in the same way.

It refuses what a node must not send, keeps count of what it gave to whom, and misbehaves when it is told to.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from bench.est_authority import Authority, now

_NO_CHECK_TIME = 0x200000
_MOST_BYTES = 64 * 1024


@dataclass
class TokenState:
    """One token. `bound` holds the hashes of the keys that used it."""

    secret: str
    uses: int = 1
    expired: bool = False
    revoked: bool = False
    bound: dict[str, str] = field(default_factory=dict)
    """SPKI hash to node."""


@dataclass
class NodeState:
    """One node."""

    label: str
    keys: list[str] = field(default_factory=list)
    revoked: bool = False
    certificates: list[x509.Certificate] = field(default_factory=list)


@dataclass
class Manner:
    """How the server behaves."""

    approval: bool = False
    reasons: bool = True
    bootstrap: bool = True
    wrapped: bool = False
    lose: str = ""
    """The answer to this path (`simpleenroll`, ...) is lost, once, after the work was done."""
    break_with: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    """Who answers instead, by the path's last word."""
    begins: datetime | None = None
    days: float = 30.0
    grace_s: float = 30 * 86_400.0
    date: Callable[[], float] = time.time
    """The Date that answers carry."""
    issue: Callable[[str], str] = lambda node: node
    """The name that is put into the certificate of a node."""


class EstServer:
    """Runs in threads of its own, on a port of its own. `stop` it."""

    def __init__(self, home: Path, *, host: str = "localhost", fleet: str = "trial") -> None:
        self.home, self.fleet, self.authority, self.manner = home, fleet, Authority(), Manner()
        self.tokens: dict[str, TokenState] = {}
        self.nodes: dict[str, NodeState] = {}
        self.approved: set[str] = set()
        self.complaints: list[str] = []
        """What a node did that it must not do."""
        self.asked: list[str] = []
        self.more: dict[str, Any] = {}
        """What the bootstrap says beside the node."""
        self.lock = threading.Lock()
        home.mkdir(parents=True, exist_ok=True)
        self._server = _Listener(("127.0.0.1", 0), _Handler)
        self._server.est = self
        self.url = f"https://{host}:{self._server.server_address[1]}"
        self.renew_server()
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def renew_server(self, *names: str, begins: datetime | None = None, days: float = 90) -> None:
        """Take a certificate of the CA as it is now, and its client CAs."""
        place = self.home / "server.pem"
        self.authority.server_pem(place, *(names or ("localhost", "127.0.0.1")), begins=begins, days=days)
        self.trust_clients()

    def trust_clients(self) -> None:
        """Let in whom the CA as it is now has signed, with the certificate that there is."""
        pem = self.home / "server.pem"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= _NO_CHECK_TIME
        context.load_verify_locations(self.authority.trusted_pem(self.home / "clients.pem"))
        self._server.context = context

    def token(self, token_id: str = "tok1", **state: Any) -> str:
        """Make a token; returns its text."""
        state.setdefault("secret", "s" * 24)
        self.tokens[token_id] = TokenState(**state)
        pin = hashlib.sha256(self.authority.root.certificate.public_bytes(serialization.Encoding.DER)).hexdigest()
        return f"E10{pin}::{token_id}:{state['secret']}"

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()

    def bootstrap(self, node: str) -> dict[str, Any]:
        """What that node is told."""
        return {
            "version": 1,
            "fleet": self.fleet,
            "node": node,
            "renewal": {"at_share": 2 / 3, "grace_s": int(self.manner.grace_s)},
            **self.more,
        }


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    est: EstServer
    context: ssl.SSLContext

    def get_request(self) -> tuple[Any, Any]:
        sock, address = super().get_request()
        return self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is the node's affair."""


class _Refused(Exception):
    def __init__(self, status: int, reason: str, text: str = "", retry_s: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.text, self.retry_s = status, reason, text or f"Refused: {reason}.", retry_s


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def setup(self) -> None:
        self.request.settimeout(self.timeout)
        self.request.do_handshake()
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        return email.utils.formatdate(self.est.manner.date(), usegmt=True)

    @property
    def est(self) -> EstServer:
        """The server."""
        assert isinstance(self.server, _Listener)
        return self.server.est

    def do_GET(self) -> None:
        """Reads."""
        self._serve("GET")

    def do_POST(self) -> None:
        """Enrollments."""
        self._serve("POST")

    def _serve(self, method: str) -> None:
        name = self.path.rpartition("/")[2]
        self.est.asked.append(name)
        if (instead := self.est.manner.break_with.get(name)) is not None:
            instead(self)
            self.close_connection = True
            return
        known = {
            ("GET", "/.well-known/est/cacerts"): self._cacerts,
            ("POST", "/.well-known/est/simpleenroll"): self._enroll,
            ("POST", "/.well-known/est/simplereenroll"): self._renew,
            ("GET", "/fleet/v1/bootstrap"): self._bootstrap,
        }
        try:
            work = known.get((method, self.path))
            if work is None or (name == "bootstrap" and not self.est.manner.bootstrap):
                raise _Refused(404, "", "There is nothing here.")
            with self.est.lock:
                kind, body = work()
        except _Refused as refused:
            self._answer(refused.status, "text/plain", refused.text.encode(), refused.reason, refused.retry_s)
            return
        if self.est.manner.lose == name:
            self.est.manner.lose = ""
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(2)
            return
        self._answer(200, kind, body)

    def _answer(self, status: int, kind: str, body: bytes, reason: str = "", retry_s: int | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        if reason and self.est.manner.reasons:
            self.send_header("Edge-Reason", reason)
        if retry_s is not None:
            self.send_header("retry-after", str(retry_s))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _complain(self, what: str) -> NoReturn:
        self.est.complaints.append(what)
        raise _Refused(400, "request_malformed", what)

    def _pkcs7(self, found: list[x509.Certificate]) -> tuple[str, bytes]:
        der = pkcs7.serialize_certificates(found, serialization.Encoding.DER)
        body = base64.encodebytes(der) if self.est.manner.wrapped else base64.b64encode(der)
        return "application/pkcs7-mime; smime-type=certs-only", body

    def _cacerts(self) -> tuple[str, bytes]:
        if "authorization" in self.headers or self._peer() is not None:
            self._complain("something of the node was told to who asks for nothing")
        return self._pkcs7(self.est.authority.listed)

    def _request(self) -> tuple[x509.CertificateSigningRequest, str]:
        length = int(self.headers.get("content-length", "0"))
        if not 0 < length <= _MOST_BYTES:
            self._complain("no body, or too much")
        body = self.rfile.read(length)
        if self.headers.get("content-type") != "application/pkcs10":
            self._complain("the content type is not application/pkcs10")
        if (b"\n" in body or b"\r" in body) and "edge/" in self.headers.get("user-agent", ""):
            self._complain("the request is not base64 in one line")  # others may wrap it (RFC 7030, section 3.2.4)
        request = x509.load_der_x509_csr(base64.b64decode(b"".join(body.split()), validate=True))
        if not request.is_signature_valid:
            self._complain("the request does not prove that its sender has the key")
        key = request.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp256r1":
            return request, _hash(key)
        self._complain("the key is not on P-256")

    def _enroll(self) -> tuple[str, bytes]:
        est = self.est
        request, key = self._request()
        if self._peer() is not None:
            self._complain("a client certificate at the first enrollment")
        token_id, token = self._token()
        if key not in token.bound:
            if token.expired:
                raise _Refused(401, "token_expired")
            if len(token.bound) >= token.uses:
                if token.uses == 1:
                    raise _Refused(409, "token_bound")
                raise _Refused(401, "token_used")
        node = token.bound.setdefault(key, f"{token_id}-{len(token.bound) + 1}")
        label = str(request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        state = est.nodes.setdefault(node, NodeState(label, [key]))
        if state.revoked:
            raise _Refused(403, "node_revoked")
        if est.manner.approval and node not in est.approved:
            raise _Refused(202, "pending", retry_s=1)
        return self._issue(node, state, request)

    def _token(self) -> tuple[str, TokenState]:
        scheme, _, given = self.headers.get("authorization", "").partition(" ")
        if scheme != "Basic":
            raise _Refused(401, "token_unknown")
        token_id, _, secret = base64.b64decode(given).decode().partition(":")
        token = self.est.tokens.get(token_id)
        if token is None or token.secret != secret:
            raise _Refused(401, "token_unknown")
        if token.revoked:
            raise _Refused(401, "token_revoked")
        return token_id, token

    def _renew(self) -> tuple[str, bytes]:
        request, key = self._request()
        if "authorization" in self.headers:
            self._complain("a token at a renewal")
        node, state = self._node(grace_s=self.est.manner.grace_s)
        if key not in state.keys:
            state.keys.append(key)
        return self._issue(node, state, request)

    def _issue(self, node: str, state: NodeState, request: x509.CertificateSigningRequest) -> tuple[str, bytes]:
        manner = self.est.manner
        public_key = request.public_key()
        assert isinstance(public_key, ec.EllipticCurvePublicKey)
        name = manner.issue(node)
        made = self.est.authority.client(name, public_key, fleet=self.est.fleet, begins=manner.begins, days=manner.days)
        state.certificates.append(made)
        return self._pkcs7([made])

    def _bootstrap(self) -> tuple[str, bytes]:
        node, _ = self._node(grace_s=0)
        return "application/json", json.dumps(self.est.bootstrap(node)).encode()

    def _node(self, *, grace_s: float) -> tuple[str, NodeState]:
        peer = self._peer()
        if peer is None:
            raise _Refused(401, "node_unknown", "A client certificate is needed.")
        node = str(peer.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        state = self.est.nodes.get(node)
        if state is None:
            raise _Refused(403, "node_unknown")
        if state.revoked:
            raise _Refused(403, "node_revoked")
        if peer.not_valid_after_utc.timestamp() + grace_s < now().timestamp():
            raise _Refused(403, "certificate_expired")
        return node, state

    def _peer(self) -> x509.Certificate | None:
        der = self.connection.getpeercert(binary_form=True)
        return x509.load_der_x509_certificate(der) if der else None


def _hash(key: ec.EllipticCurvePublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
