"""The uplink: a thread that keeps a session with the broker, and says what is wrong while there is none."""

from __future__ import annotations

import logging
import random
import threading
import time

from edge.telemetry.alarms import Alarms
from edge.telemetry.mqtt import SESSION_TAKEN_OVER, ConnectionFailed
from edge.telemetry.outbox import Outbox
from edge.telemetry.pacing import Backoff
from edge.telemetry.session import Answerer, Presence, Session, UplinkConfig

log = logging.getLogger(__name__)

_TOO_MANY_SHORT = 4
_TAKEN_AGAIN = 2
"""Of brokers that say that another took the session. Once may be this node: it tries a new certificate under its own name."""
_NOT_LET_IN = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})
"""CONNACK: version, client id, password, not authorized, banned, bad method."""


class Uplink:
    """Owner of the thread and of the sessions."""

    def __init__(
        self, outbox: Outbox, alarms: Alarms, config: UplinkConfig, presence: Presence, answer: Answerer | None = None
    ) -> None:
        self._outbox, self._alarms, self._config, self._presence = outbox, alarms, config, presence
        self._answer = answer
        self._stop = threading.Event()
        self._anew = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)
        self.connected = False
        """Written by the uplink's thread."""
        self.last_failure = ""
        self._short_sessions = 0
        """Sessions in a row that did not last. mosquitto 2.0.11 does not say why it ends one for another of the same name."""

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def begin_anew(self) -> None:
        """End this session and begin another one, with the files as they are by then."""
        self._anew.set()

    def stop(self, patience_s: float) -> None:
        """Say good-bye and end; a connection attempt that hangs is not waited for any longer than that."""
        self._stop.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        backoff = Backoff(self._config.backoff_max_s)
        down_since_s = time.monotonic()
        while not self._stop.is_set():
            session: Session | None = None
            self._anew.clear()
            try:
                session = Session(self._outbox, self._alarms, self._config, self._presence, self._answer)
                session.open()
                log.info("uplink connected", extra={"event": "uplink_connected", "broker": self._config.address.url})
                self.connected = True
                self._short_sessions += 1
                for code in ("uplink_down", "uplink_tls"):
                    self._alarms.clear(code)
                session.run(self._stop, lambda: self._well(backoff), self._anew)
                if self._anew.is_set():
                    self._short_sessions -= 1
                    backoff.succeeded()
            except ConnectionFailed as failure:
                down_since_s = self._failed(failure, down_since_s)
            except Exception as error:
                log.error("uplink failed", extra={"event": "bug"}, exc_info=error)
                self.last_failure = f"the uplink failed: {type(error).__name__}"
            finally:
                if session is not None:
                    session.end(good=self._stop.is_set() or self._anew.is_set())
                if self.connected:
                    self.connected, down_since_s = False, time.monotonic()
            self._stop.wait(backoff.next_s(random.random()))

    def _well(self, backoff: Backoff) -> None:
        """A session has lasted for a while. One that ends at once, again and again, is no success."""
        backoff.succeeded()
        self._short_sessions = 0
        self.last_failure = ""
        self._alarms.clear("node_name_taken")
        self._alarms.clear("uplink_unstable")

    def _failed(self, failure: ConnectionFailed, down_since_s: float) -> float:
        """Say it, once for each reason. Returns since when the uplink is down."""
        now_s = time.monotonic()
        if self.connected:
            down_since_s = now_s
        if failure.reason != self.last_failure:
            log.warning("uplink lost", extra={"event": "uplink_lost", "reason": failure.reason})
        self.last_failure = failure.reason
        if failure.tls:
            self._alarms.set(
                "uplink_tls", failure.reason, "correct or renew the files; they are read again at the next try"
            )
        elif failure.code in _NOT_LET_IN:
            self._alarms.set(
                "uplink_refused",
                failure.reason,
                "see name, password and certificate, and that the access list lets this node write up/state: it is its will",
            )
        elif failure.code == SESSION_TAKEN_OVER and self._short_sessions >= _TAKEN_AGAIN:
            self._alarms.clear("uplink_unstable")
            self._alarms.set(
                "node_name_taken",
                "another client connects to the broker as this node, and each ends the other's session",
                "give each node its own mqtt.node; if they are, see the broker's log",
            )
        elif self._short_sessions >= _TOO_MANY_SHORT and now_s - down_since_s < self._config.down_alarm_s:
            self._alarms.set(
                "uplink_unstable",
                f"{self._short_sessions} sessions in a row ended soon after they began: {failure.reason}",
                "see the link; if it is good, see the broker's log: another client may connect as this node (mqtt.node)",
            )
        elif now_s - down_since_s >= self._config.down_alarm_s:
            self._alarms.clear("uplink_unstable")
            self._alarms.set(
                "uplink_down",
                f"the broker could not be reached for {self._config.down_alarm_s / 60:.0f} minutes: {failure.reason}",
                "see the link and the broker; the outbox keeps what happens meanwhile",
            )
        return down_since_s
