"""A real broker for trials: mosquitto with certificates and an access list, and a relay that spoils the way to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import trustme

from bench.servers import free_port
from edge.telemetry.mqtt import BrokerAddress

_START_S = 60.0
_CHUNK = 16_384
Mode = Literal["open", "black hole", "refuse"]

_CONFIG = """\
per_listener_settings false
listener {port} 127.0.0.1
cafile {home}/ca.pem
certfile {home}/broker.pem
keyfile {home}/broker.pem
require_certificate true
use_identity_as_username true
acl_file {home}/acl
persistence true
persistence_location {home}/
autosave_interval 1
max_queued_messages 2000
log_dest file {home}/broker.log
"""

ACCESS = """\
user fleet
topic readwrite edge/v1/#

pattern write edge/v1/+/%u/up/#
pattern read edge/v1/+/%u/down/#
"""


def executable() -> str:
    """Where mosquitto lies. Raises RuntimeError where it is missing: trials without a broker prove nothing."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise RuntimeError("mosquitto is not installed; it is the package `mosquitto` of Debian and others")
    return found


class Broker:
    """mosquitto on a port of its own, TLS with client certificates, persistence on. `kill` and `start` it at will."""

    def __init__(self, home: Path, *, access: str = ACCESS, certify: Callable[[Path], None] | None = None) -> None:
        """`certify` puts ca.pem and broker.pem into `home`, for a CA of its own."""
        self.home = home
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._ca = trustme.CA()
        if certify is not None:
            certify(home)
        else:
            self._ca.cert_pem.write_to_path(home / "ca.pem")
            issued = self._ca.issue_cert("localhost", "127.0.0.1")
            issued.private_key_and_cert_chain_pem.write_to_path(home / "broker.pem")
        self.allow(access)
        (home / "mosquitto.conf").write_text(_CONFIG.format(port=self.port, home=home))
        # Started by root, mosquitto becomes another user unless told not to.
        with (home / "mosquitto.conf").open("a") as config:
            config.write("user root\n" if _is_root() else "")

    def allow(self, access: str) -> None:
        """Change the access list; in force after `reload` or a start."""
        (self.home / "acl").write_text(access)
        (self.home / "acl").chmod(0o600)

    def reload(self) -> None:
        """Have it read the access list again."""
        assert self._process is not None
        self._process.send_signal(1)

    def start(self) -> None:
        """Run it, and wait until it listens."""
        self._process = subprocess.Popen(
            [executable(), "-c", str(self.home / "mosquitto.conf")],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + _START_S
        while time.monotonic() < deadline_s:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"mosquitto does not listen:\n{(self.home / 'broker.log').read_text()}")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def connections(self) -> int:
        """How many clients have connected so far."""
        return (self.home / "broker.log").read_text("utf-8", "replace").count("New client connected")

    def identity(self, name: str) -> Path:
        """A client certificate with its key, in one PEM file; the broker takes the common name as the user's."""
        path = self.home / f"{name}.pem"
        if not path.exists():
            self._ca.issue_cert(common_name=name).private_key_and_cert_chain_pem.write_to_path(path)
        return path

    def address(self, name: str, *, port: int | None = None, client_id: str | None = None) -> BrokerAddress:
        """How `name` connects; `port` of a relay instead of the broker's own."""
        pem = self.identity(name)
        url = f"mqtts://localhost:{port or self.port}"
        return BrokerAddress(url, client_id or name, ca_file=self.home / "ca.pem", cert_file=pem, key_file=pem)


def _is_root() -> bool:
    return os.geteuid() == 0


class Relay:
    """TCP to the broker with spoiled ways: swallows everything, resets, delays, or lets bytes through at a rate."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.mode: Mode = "open"
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        """0: as fast as it goes."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End it and all connections."""
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """Cut every connection, with RST."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                try:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)
                    end.close()
                except OSError:
                    pass

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target_port), 2)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._pairs.append((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK):
                if self.mode == "black hole":
                    continue  # taken, and gone
                if self.delay_s:
                    time.sleep(self.delay_s)
                if self.bytes_per_s:
                    time.sleep(len(data) / self.bytes_per_s)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # a close alone is not told while the other thread reads
            with contextlib.suppress(OSError):
                end.close()
