"""Checked by somebody else: openssl reads what we send, and makes everything that an EST server of others would answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge.identity.certificates import est_body, key_pem, new_key, request_der
from edge.identity.enroll import Wish, enroll
from edge.identity.renew import renew
from edge.identity.store import Store
from edge.identity.token import EnrollmentToken
from tests.identity.conftest import now_clock

_CA = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
_SERVER = "subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n"
_CLIENT = "extendedKeyUsage=clientAuth\nsubjectAltName=URI:spiffe://others/node/box-1\n"


def openssl(*words: str | Path, data: bytes = b"") -> bytes:
    """Run it; fails if it does."""
    done = subprocess.run(["openssl", *map(str, words)], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class OpensslServer(ThreadingHTTPServer):
    """EST in which every key, certificate and PKCS7 is openssl's. It knows no bootstraps and no reasons, and wraps its lines."""

    daemon_threads = True

    def __init__(self, home: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        home.mkdir()
        self.home = home
        self.enrolled = self.renewed = 0
        for name in ("root", "issuing", "server"):
            openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", home / f"{name}.key")
        (home / "ca.ext").write_text(_CA)
        (home / "server.ext").write_text(_SERVER)
        (home / "client.ext").write_text(_CLIENT)
        openssl(
            "req", "-x509", "-new", "-key", home / "root.key", "-subj", "/O=Others/CN=Root of others", "-days", "99",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-out", home / "root.pem",
        )  # fmt: skip
        self._sign("issuing", "/O=Others/CN=Issuing CA of others", "root", "ca.ext")
        self._sign("server", "/CN=localhost", "issuing", "server.ext")
        (home / "chain.pem").write_bytes((home / "server.pem").read_bytes() + (home / "issuing.pem").read_bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(home / "chain.pem", home / "server.key")
        context.load_verify_locations(home / "root.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
        self.socket = context.wrap_socket(self.socket, server_side=True)
        self.url = f"https://localhost:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def _sign(self, name: str, subject: str, by: str, extensions: str) -> None:
        home = self.home
        request = openssl("req", "-new", "-key", home / f"{name}.key", "-subj", subject)
        made = openssl(
            "x509", "-req", "-CA", home / f"{by}.pem", "-CAkey", home / f"{by}.key", "-CAcreateserial", "-days", "30",
            "-extfile", home / extensions, data=request,
        )  # fmt: skip
        (home / f"{name}.pem").write_bytes(made)

    @property
    def pin(self) -> str:
        """sha256 of the root's DER."""
        return hashlib.sha256(openssl("x509", "-in", self.home / "root.pem", "-outform", "DER")).hexdigest()

    def certify(self, body: bytes) -> bytes:
        """Of a request as EST carries it. openssl checks that the sender has the key."""
        request = openssl("base64", "-d", "-A", data=body)
        openssl("req", "-inform", "DER", "-verify", "-noout", data=request)
        made = openssl(
            "x509", "-req", "-inform", "DER", "-CA", self.home / "issuing.pem", "-CAkey", self.home / "issuing.key",
            "-CAcreateserial", "-days", "30", "-subj", "/CN=box-1", "-extfile", self.home / "client.ext", data=request,
        )  # fmt: skip
        (self.home / "made.pem").write_bytes(made)
        return self.certs_only("made.pem")

    def certs_only(self, *names: str) -> bytes:
        """PKCS7 in base64 of 64 columns."""
        files = [word for name in names for word in ("-certfile", self.home / name)]
        der = openssl("crl2pkcs7", "-nocrl", *files, "-outform", "DER")
        return openssl("base64", data=der)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is the node's affair."""


class _Answering(BaseHTTPRequestHandler):
    server: OpensslServer

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        if self.path == "/.well-known/est/cacerts":
            self._answer(200, self.server.certs_only("issuing.pem", "root.pem"))
        else:
            self._answer(404, b"not found")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        peer = self.connection.getpeercert()  # type: ignore[attr-defined]
        good = self.headers.get("authorization") == "Basic " + base64.b64encode(b"tok1:" + b"s" * 24).decode()
        if self.path == "/.well-known/est/simpleenroll" and good:
            self.server.enrolled += 1
            self._answer(200, self.server.certify(body))
        elif self.path == "/.well-known/est/simplereenroll" and peer and "box-1" in str(peer["subject"]):
            self.server.renewed += 1
            self._answer(200, self.server.certify(body))
        else:
            self._answer(401, b"no")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/pkcs7-mime")
        self.send_header("content-transfer-encoding", "base64")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def others(tmp_path: Path) -> Iterator[OpensslServer]:
    server = OpensslServer(tmp_path / "others")
    yield server
    server.shutdown()
    server.server_close()


def test_openssl_reads_our_key_and_request() -> None:
    key = new_key()
    assert b"prime256v1" in openssl("ec", "-noout", "-text", data=key_pem(key))
    request = openssl("base64", "-d", "-A", data=est_body(request_der(key, "Press 7")))
    said = openssl("req", "-inform", "DER", "-verify", "-noout", "-text", data=request)
    assert b"CN = Press 7" in said and b"ecdsa-with-SHA256" in said


def test_a_node_enrolls_and_renews_at_an_est_server_of_others(others: OpensslServer, tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    token = EnrollmentToken(others.pin, "tok1", "s" * 24)
    clock = now_clock()
    identity = asyncio.run(enroll(Wish(others.url, token, "box"), store, clock, lambda _: None)).identity
    assert (identity.node, identity.bootstrap, others.enrolled) == ("box-1", None, 1)
    renewed = asyncio.run(renew(store, clock, lambda _: ""))
    assert (renewed.generation, others.renewed) == (2, 1)
    place = renewed.directory
    said = openssl("verify", "-CAfile", others.home / "root.pem", "-untrusted", place / "cert.pem", place / "cert.pem")
    assert said.strip().endswith(b"OK")
    assert openssl("x509", "-in", place / "cert.pem", "-noout", "-pubkey") == openssl(
        "pkey", "-in", place / "key.pem", "-pubout"
    )
