"""A gateway that trusts our authority through the shipped example: Debian's nginx."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.fleet_side import Box, FleetSide
from bench.servers import free_port
from tests.waiting import until

EXAMPLE = Path(__file__).resolve().parents[2] / "provisioning" / "gateway" / "nginx.conf"


class Nginx:
    """nginx with the example, put onto a free port and before a stand-in for an inference gateway."""

    def __init__(self, home: Path, fleet: FleetSide) -> None:
        self.port = free_port()
        self.home = home
        text = EXAMPLE.read_text()
        for shipped, ours in (
            ("/etc/edge-gateway/", f"{fleet.home.gateway}/"), ("listen 8445 ", f"listen 127.0.0.1:{self.port} "),
            ("/etc/ssl/gateway.pem", f"{fleet.home.tls}/server.pem"), ("/etc/ssl/gateway.key", f"{fleet.home.tls}/server.key"),
            ("server 127.0.0.1:8000;", f"server 127.0.0.1:{fleet.ports[1]};"),
        ):  # fmt: skip
            assert shipped in text, f"the example has no {shipped!r} any more"
            text = text.replace(shipped, ours)
        temporary = " ".join(
            f"{kind}_temp_path {home};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        wrapped = (
            f"pid {home}/nginx.pid; error_log {home}/error.log; daemon off; events {{}}\n"
            f"http {{ access_log off; {temporary}\n{text}\n}}\n"
        )
        (home / "nginx.conf").write_text(wrapped)
        program = shutil.which("nginx") or "/usr/sbin/nginx"
        self.process = subprocess.Popen(
            [program, "-c", str(home / "nginx.conf"), "-e", str(home / "error.log"), "-p", str(home)]
        )
        until(lambda: (home / "nginx.pid").exists() and (home / "nginx.pid").read_text().strip())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@pytest.fixture
def gateway(own_fleet: FleetSide, tmp_path: Path) -> Iterator[Nginx]:
    home = tmp_path / "nginx"
    home.mkdir()
    own_fleet.start()
    found = Nginx(home, own_fleet)
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [program, "-c", str(home / "nginx.conf"), "-e", str(home / "error.log"), "-p", str(home), "-s", "reload"]
    own_fleet.stop()
    own_fleet.set(f"gateway.reload_command = {json.dumps(command)}")
    own_fleet.start()
    yield found
    found.stop()


def ask(gateway: Nginx, fleet: FleetSide, box: Box | None) -> int:
    context = ssl.create_default_context(cafile=fleet.home.ca / "root-1.pem")
    if box is not None:
        context.load_cert_chain(box.cert_file, box.key_file)
    return httpx.get(
        f"https://localhost:{gateway.port}/health", verify=context, trust_env=False, timeout=60
    ).status_code


def test_it_lets_nodes_in_and_refuses_a_revoked_one(own_fleet: FleetSide, gateway: Nginx, tmp_path: Path) -> None:
    good, bad = Box(tmp_path / "good", own_fleet, "good"), Box(tmp_path / "bad", own_fleet, "bad")
    for box in (good, bad):
        assert box.enroll(own_fleet.token()).status_code == 200
    assert ask(gateway, own_fleet, good) == ask(gateway, own_fleet, bad) == 200
    assert ask(gateway, own_fleet, None) == 400, "without a certificate nobody gets through"
    assert own_fleet.cli("revoke", "bad").returncode == 0

    def is_refused() -> bool:
        with contextlib.suppress(httpx.TransportError):  # nginx reads its lists anew, and may cut who comes meanwhile
            return ask(gateway, own_fleet, bad) == 400
        return False

    until(is_refused)
    assert ask(gateway, own_fleet, good) == 200
