"""What the routes share: settings, authority, database, and the thread that makes decisions hold."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edge.control.authority import Authority, load_authority
from edge.control.database import Database
from edge.control.enforcement import enforce
from edge.control.enrollment import Registrar
from edge.control.files import read_file
from edge.control.settings import FleetHome, FleetSettings
from edge.errors import EdgeError
from edge.identity.wire import MOST_COMMAND_KEYS
from edge.telemetry.commands import parse_public_keys

log = logging.getLogger(__name__)

_GATHER_S, _GATHER_MORE_S, _MANY_NODES = 0.1, 1.0, 5000
"""So long further changes are waited for, so that many enrollments make one list: with so many nodes, so much longer, since
mosquitto stands still while it reads."""
_LOOK_S = 1.0
_LATEST_S = 3600.0
"""Revocation lists end; they are made anew long before."""


class Enforcer:
    """A thread that writes the broker's and the gateways' lists whenever the database was changed, by whoever."""

    def __init__(
        self, home: FleetHome, settings: FleetSettings, authority: Callable[[], Authority], database: Database
    ) -> None:
        self._home, self._settings, self._authority, self._database = home, settings, authority, database
        self._wanted = 0
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="enforcer", daemon=True)
        self._said: list[tuple[str, str]] = []
        self._nodes = 0
        self._ended: set[str] = set()
        self.done = 0
        """All that was asked for up to this number was tried. Written by the thread alone."""
        self.holds = False
        """Whether the last try succeeded."""

    @property
    def problems(self) -> list[str]:
        """Why decisions do not hold everywhere; empty if they do."""
        return [reason for _, reason in self._said]

    def start(self) -> None:
        """Begin; what is in the database is enforced at once."""
        self._thread.start()

    def stop(self) -> None:
        """End, when what was asked for is done."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        self._thread.join(10)

    def ask(self) -> int:
        """Something has changed. Returns the number that `done` will reach. Any thread may call it."""
        with self._condition:
            self._wanted += 1
            self._condition.notify()
            return self._wanted

    def _run(self) -> None:
        version, looked_s, wait_s = -1, 0.0, 0.0
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._wanted > self.done or self._stopping, wait_s)
                ending = self._stopping
            wait_s = _LOOK_S
            if not ending and self._wanted > self.done:
                time.sleep(_GATHER_S + min(1.0, self._nodes / _MANY_NODES) * _GATHER_MORE_S)
            wanted = self._wanted
            # Commands such as `edge fleet revoke` change the database too; they enforce by themselves, and this is the net below.
            now = self._version()
            if wanted > self.done or now != version or not self.holds or time.monotonic() - looked_s > _LATEST_S:
                self.enforce()
                version, self.done, looked_s = now, wanted, time.monotonic()
            if ending:
                return

    def _version(self) -> int:
        try:
            return self._database.version()
        except EdgeError:  # said by `enforce`, which is next
            return -1

    def enforce(self) -> None:
        """Once. A failure is logged, and tried again by the thread."""
        try:
            done = enforce(self._home, self._settings, self._authority(), self._database, self._ended)
        except EdgeError as error:
            self.holds = False
            self._say([("fleet_unenforced", error.message)])
            return
        except Exception as error:  # a thread that ends here would leave revocations without effect
            self.holds = False
            log.error("decisions do not hold", extra={"event": "bug"}, exc_info=error)
            return
        self.holds, self._nodes = not (done.broker or done.gateway), done.nodes
        told = (("broker_reload_failed", done.broker), ("gateway_reload_failed", done.gateway))
        self._say([(event, reason) for event, reason in told if reason])

    def _say(self, problems: list[tuple[str, str]]) -> None:
        """Each once, until it is another."""
        for event, reason in problems:
            if (event, reason) not in self._said:
                log.error("decisions do not hold everywhere", extra={"event": event, "reason": reason})
        if self._said and not problems:
            log.info("decisions hold again", extra={"event": "fleet_enforced"})
        self._said = problems


class Fleet:
    """One fleet's server as its routes see it."""

    def __init__(self, home: FleetHome, settings: FleetSettings, database: Database) -> None:
        """Raises ConfigurationError."""
        self.home, self.settings, self.database = home, settings, database
        self.authority = load_authority(home)
        """Replaced by `reload_authority` alone."""
        self._left_out: set[Path] = set()
        self.watched: list[Callable[[], str]] = []
        """Each says what is wrong with a part of the server, or nothing."""
        self.enforcer = Enforcer(home, settings, lambda: self.authority, database)
        self.now: Callable[[], float] = time.time

    @property
    def registrar(self) -> Registrar:
        """Who decides on requests, with the authority as it is now."""
        return Registrar(self.authority, self.settings)

    def reload_authority(self) -> bool:
        """Whether it has changed. Raises ConfigurationError."""
        found = load_authority(self.home)
        changed = found.state != self.authority.state
        self.authority = found
        return changed

    def command_keys(self) -> tuple[str, ...]:
        """PEM of the keys that may command nodes: what lies in commands/ and ends in .pub. What nodes do not take would keep all
        of them from enrolling and renewing: it is left out, and said once. Raises ConfigurationError."""
        own = Path(f"{self.home.commands}.pub")
        found: list[str] = []
        for path in sorted(own.parent.glob("*.pub"), key=lambda path: (path != own, path)):
            try:
                keys = parse_public_keys(read_file(path, "the command key"))
            except (ValueError, UnsupportedAlgorithm):
                self._leave_out(path, "it is no Ed25519 public key in PEM, as `edge fleet key FILE` makes them")
                continue
            if len(found) + len(keys) > MOST_COMMAND_KEYS:
                self._leave_out(path, f"nodes take {MOST_COMMAND_KEYS} keys")
                continue
            found += [key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for key in keys]
        return tuple(found)

    def _leave_out(self, path: Path, reason: str) -> None:
        if path not in self._left_out:
            self._left_out.add(path)
            log.error("a command key is left out", extra={"event": "command_key", "file": str(path), "reason": reason})

    def problems(self) -> list[str]:
        """What is wrong with the server itself, for people."""
        return [*self.enforcer.problems, *filter(None, (look() for look in self.watched))]

    def facts(self) -> dict[str, Any]:
        """For the page."""
        authority = self.authority
        return {
            "fleet": self.settings.name,
            "root_ends_s": authority.current_root.not_valid_after_utc.timestamp(),
            "issuing_ends_s": authority.issuer.certificate.not_valid_after_utc.timestamp(),
            "rolling_over": len(authority.state.roots) > 1 or len(authority.state.issuing) > 1,
        }
