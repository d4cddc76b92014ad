"""A fleet's server and its broker as processes, and boxes that enroll with them: for trials."""

from __future__ import annotations

import base64
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from bench.broker import executable
from bench.servers import free_port
from edge.control.database import Database
from edge.control.founding import Wish, found_fleet
from edge.control.settings import FleetHome
from edge.control.tokens import TokenWish, create_token
from edge.control.x509 import key_pem, new_key, pem
from edge.identity.token import EnrollmentToken
from edge.telemetry.mqtt import BrokerAddress

_START_S = 240.0


class FleetSide:
    """`edge fleet serve` and mosquitto with the configuration that was written for it, on free ports."""

    def __init__(self, root: Path, *, extra: str = "", name: str = "plant") -> None:
        self.ports = (free_port(), free_port(), free_port())
        found = found_fleet(root, Wish(name, ("localhost", "127.0.0.1"), *self.ports), "trial")
        self.home: FleetHome = found.home
        self.admin_key, self.pin = found.admin_key, found.pin
        if extra:
            self.set(extra)
        self.url = f"https://localhost:{self.ports[0]}"
        self.people_url = f"http://127.0.0.1:{self.ports[1]}"
        self.people_trust: ssl.SSLContext | bool = True
        self.broker_url = f"mqtts://localhost:{self.ports[2]}"
        self.log, self.broker_log = root / "serve.log", root / "broker.log"
        self.server: subprocess.Popen[bytes] | None = None
        self.broker: subprocess.Popen[bytes] | None = None

    def set(self, extra: str) -> None:
        """Replace lines `name = value` of fleet.toml; `section.name = value`, one a line."""
        text = self.home.settings_file.read_text()
        for line in extra.strip().splitlines():
            key, _, value = line.partition("=")
            section, _, name = key.strip().rpartition(".")
            kept = text.splitlines()
            if section and f"[{section}]" not in kept:
                kept += ["", f"[{section}]"]
            at = kept.index(f"[{section}]") if section else -1
            kept = [
                k
                for i, k in enumerate(kept)
                if not (i > at and k.split(" =")[0] == name and _section(kept, i) == section)
            ]
            kept.insert(kept.index(f"[{section}]") + 1 if section else 0, f"{name} = {value.strip()}")
            text = "\n".join(kept) + "\n"
        self.home.settings_file.write_text(text)

    def start(self) -> None:
        """Run the server, and wait until it answers. Raises RuntimeError."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "edge", "fleet", "serve", "--dir", str(self.home.root)]
            self.server = subprocess.Popen(command, stdout=log, stderr=log)
        give_up_s = time.monotonic() + _START_S
        while time.monotonic() < give_up_s:
            try:
                httpx.get(
                    f"{self.people_url}/health", verify=self.people_trust, timeout=60, trust_env=False
                ).raise_for_status()
                return
            except httpx.HTTPError:
                if self.server.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"the fleet's server does not start:\n{self.log.read_text()[-3000:]}")

    def start_broker(self) -> None:
        """Run mosquitto, and wait until it listens. Raises RuntimeError."""
        with self.broker_log.open("ab") as log:
            command = [executable(), "-c", str(self.home.broker / "mosquitto.conf")]
            self.broker = subprocess.Popen(command, stdout=log, stderr=log)
        give_up_s = time.monotonic() + _START_S
        while time.monotonic() < give_up_s:
            if (self.home.broker / "mosquitto.pid").exists() and b"running" in self.broker_log.read_bytes():
                return
            time.sleep(0.02)
        raise RuntimeError(f"mosquitto does not start:\n{self.broker_log.read_text()[-3000:]}")

    def stop_broker(self) -> None:
        """SIGTERM."""
        if self.broker is not None:
            self.broker.terminate()
            self.broker.wait(60)
            self.broker = None

    def kill(self) -> None:
        """SIGKILL to the server."""
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            self.server = None

    def stop(self) -> int:
        """SIGTERM to the server; its exit status."""
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        code = self.server.wait(60)
        self.server = None
        return code

    def end(self) -> None:
        """Both, for good."""
        self.kill()
        if self.broker is not None:
            self.broker.kill()
            self.broker.wait()

    def cli(self, *arguments: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """`edge fleet ...` on this fleet."""
        return subprocess.run(
            [sys.executable, "-m", "edge", "fleet", *arguments],
            env={**os.environ, "EDGE_FLEET_DIR": str(self.home.root)},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def token(self, now_s: float | None = None, **wish: Any) -> EnrollmentToken:
        """A new one."""
        database = Database(self.home.database)
        try:
            with database.write() as session:
                return create_token(session, TokenWish(**wish), self.pin, now_s or time.time(), "trial")
        finally:
            database.close()

    def people(self, *, key: bool = True) -> httpx.Client:
        """A client of the JSON API."""
        headers = {"authorization": f"Bearer {self.admin_key}"} if key else {}
        return httpx.Client(base_url=self.people_url, headers=headers, trust_env=False, timeout=60)

    def node(self, name: str) -> dict[str, Any]:
        """As the API shows it."""
        with self.people() as client:
            answer = client.get(f"/fleet/v1/nodes/{name}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found


class Box:
    """A machine with a key, as EST sees it. What it holds lies in `directory`."""

    def __init__(self, directory: Path, fleet: FleetSide, label: str = "box") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.fleet, self.label = directory, fleet, label
        self.key = new_key()
        self.certificate: x509.Certificate | None = None
        self.trusted = fleet.home.ca / "root-1.pem"
        """The only root that it trusts."""
        self._write_key()

    @property
    def key_file(self) -> Path:
        """PEM."""
        return self.directory / "box.key"

    @property
    def cert_file(self) -> Path:
        """PEM."""
        return self.directory / "box.pem"

    @property
    def name(self) -> str:
        """What the fleet calls it."""
        assert self.certificate is not None
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def _write_key(self) -> None:
        self.key_file.write_bytes(key_pem(self.key))
        self.key_file.chmod(0o600)

    def rekey(self) -> None:
        """A new key; the certificate in hand is for the old one."""
        (self.directory / "old.key").write_bytes(self.key_file.read_bytes())
        self.key = new_key()

    def csr(self, key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
        """DER."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.label)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key or self.key, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.DER)

    def client(self, *, certificate: bool = True) -> httpx.Client:
        """Speaks TLS."""
        context = ssl.create_default_context(cafile=self.trusted)
        if certificate and self.certificate is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        return httpx.Client(base_url=self.fleet.url, verify=context, trust_env=False, timeout=60)

    def enroll(self, token: EnrollmentToken, client: httpx.Client | None = None) -> httpx.Response:
        """simpleenroll; the certificate is kept if there is one."""
        with client or self.client(certificate=False) as opened:
            answer = opened.post(
                "/.well-known/est/simpleenroll",
                content=base64.b64encode(self.csr()),
                headers={"content-type": "application/pkcs10"},
                auth=(token.id, token.secret),
            )
        self.keep(answer)
        return answer

    def renew(self) -> httpx.Response:
        """simplereenroll with the certificate in hand."""
        with self.client() as opened:
            answer = opened.post(
                "/.well-known/est/simplereenroll",
                content=base64.b64encode(self.csr()),
                headers={"content-type": "application/pkcs10"},
            )
        self.keep(answer)
        return answer

    def bootstrap(self) -> httpx.Response:
        """Its own."""
        with self.client() as opened:
            return opened.get("/fleet/v1/bootstrap")

    def keep(self, answer: httpx.Response) -> None:
        """The certificate of an answer, if there is one."""
        if answer.status_code == 200:
            self.hold(pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.content))[0])

    def hold(self, certificate: x509.Certificate) -> None:
        """Have this certificate from now on, for the key as it is."""
        self.certificate = certificate
        issuing = b"".join(path.read_bytes() for path in sorted(self.fleet.home.ca.glob("issuing-*.pem")))
        self.cert_file.write_bytes(pem(certificate) + issuing)
        self._write_key()

    def address(self, client_id: str | None = None, **more: Any) -> BrokerAddress:
        """How it connects to the broker."""
        return BrokerAddress(
            self.fleet.broker_url, client_id or f"edge-{self.name}", ca_file=self.trusted,
            cert_file=self.cert_file, key_file=self.key_file, **more,
        )  # fmt: skip


def _section(lines: list[str], index: int) -> str:
    return next((line[1:-1] for line in reversed(lines[:index]) if line.startswith("[") and line.endswith("]")), "")
