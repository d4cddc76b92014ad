"""The service manager's notification protocol, sd_notify(3): one datagram for each change of state."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping

_MICROSECONDS = 1_000_000
_PATIENCE_S = 2.0
"""For what is said once: while a machine boots the manager may be behind, and what it does not hear it acts on."""


class Notifier:
    """Tells systemd how the service is. Does nothing where NOTIFY_SOCKET is not set, so callers need not ask."""

    def __init__(self, env: Mapping[str, str], pid: int, patience_s: float = _PATIENCE_S) -> None:
        """`patience_s`: for what is said once, while the manager is behind."""
        self._patience_s = patience_s
        self._address = _address(env.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(env, pid)
        """How often `alive` must be called, at the least; None: no watchdog is set."""

    def ready(self, status: str) -> None:
        """The service does its work from now on."""
        self._send("READY=1", f"STATUS={status}", patience_s=self._patience_s)

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def busy(self, status: str, extend_s: float) -> None:
        """What it does now, at its start or at its end, may take `extend_s` seconds more: neither the unit's time for it nor the
        watchdog is to end it before."""
        self._send(f"STATUS={status}", f"EXTEND_TIMEOUT_USEC={int(extend_s * _MICROSECONDS)}")

    def stopping(self, status: str, extend_s: float) -> None:
        """The service is ending in good order, within `extend_s` seconds. The unit's own time may be shorter."""
        extend = f"EXTEND_TIMEOUT_USEC={int(extend_s * _MICROSECONDS)}"
        self._send("STOPPING=1", f"STATUS={status}", extend, patience_s=self._patience_s)

    def reloading(self, status: str) -> None:
        """The service takes no work for a while and will say that it is ready again, as the same process."""
        now = f"MONOTONIC_USEC={time.monotonic_ns() // 1000}"
        self._send("RELOADING=1", now, f"STATUS={status}", patience_s=self._patience_s)

    def alive(self) -> None:
        """Keep the watchdog from restarting the service."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str, patience_s: float = 0.0) -> None:
        if self._address is None:
            return
        payload = "\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "replace")
        # A manager that has gone away or is slow must not stop the service.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.settimeout(patience_s)
            peer.connect(self._address)  # only then does the wait end when the manager has read what is queued
            peer.send(payload)


def _address(path: str) -> bytes | None:
    if path.startswith("@"):
        return b"\0" + path[1:].encode()  # Linux's abstract namespace
    return path.encode() if path.startswith("/") else None


def _watchdog_s(env: Mapping[str, str], pid: int) -> float | None:
    try:
        interval = int(env.get("WATCHDOG_USEC", ""))
        ours = int(env.get("WATCHDOG_PID", pid)) == pid
    except ValueError:
        return None
    return interval / _MICROSECONDS / 2 if interval > 0 and ours else None
