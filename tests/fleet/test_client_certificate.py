"""An upstream that asks for a client certificate, and a certificate that is renewed while the node runs."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.est_authority import Authority
from edge.fleet.member import Member
from edge.fleet.upstreams import read_upstreams
from edge.settings import Fleet


class Gateway(ThreadingHTTPServer):
    """Answers `models` to whom its CA knows, and remembers their names."""

    daemon_threads = True

    def __init__(self, home: Path, authority: Authority) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.server_pem(home / "gateway.pem", "localhost"))
        context.load_verify_locations(authority.trusted_pem(home / "ca.pem"))
        context.verify_mode = ssl.CERT_REQUIRED
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.names: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who is not let in makes no noise."""


class _Answering(BaseHTTPRequestHandler):
    server: Gateway
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_GET(self) -> None:
        subject = dict(part[0] for part in self.connection.getpeercert()["subject"])  # type: ignore[attr-defined]
        self.server.names.append(subject["commonName"])
        body = json.dumps({"data": [{"id": "big"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    found = Gateway(tmp_path, Authority())
    yield found
    found.shutdown()
    found.server_close()


def test_it_is_shown_and_the_renewed_one_after_it(tmp_path: Path, gateway: Gateway) -> None:
    authority = Authority()
    gateway.socket.context.load_verify_locations(authority.trusted_pem(tmp_path / "clients.pem"))  # type: ignore[attr-defined]
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        authority.client_pem(tmp_path / name / "node.pem", name)
    (tmp_path / "current").symlink_to("first")
    pem = Path("current/node.pem")
    settings = Fleet(
        url=f"https://localhost:{gateway.server_address[1]}/v1", ca_file=Path("ca.pem"), cert_file=pem, key_file=pem
    )

    async def main() -> None:
        member = Member(read_upstreams(settings, tmp_path)[0])
        await probed(member)
        (tmp_path / "next").symlink_to("second")
        (tmp_path / "next").replace(tmp_path / "current")
        await probed(member)
        await member.lanes.close()

    asyncio.run(main())
    assert list(dict.fromkeys(gateway.names)) == ["first", "second"]


async def probed(member: Member) -> None:
    """A probe has a few seconds, and on a busy machine it may need another."""
    said = ""
    for _ in range(10):
        if not (said := await member.probe()):
            return
    pytest.fail(said)


def test_certificate_and_key_belong_together() -> None:
    with pytest.raises(ValueError, match="belong together"):
        Fleet(url="https://g/v1", cert_file=Path("a.pem"))
