"""The reference sink: takes what nodes tell, keeps it in SQLite, and acknowledges what is safe. It may be killed at any time.

Order for each batch: commit to disk, then PUBACK, then `down/ack`. A record that comes twice is kept once (UNIQUE on node,
boot, seq).
One that was merged into another that is here is marked superseded, whichever came first.
"""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from dataclasses import replace

import orjson

from edge.telemetry.mqtt import FAILURE, BrokerAddress, Connection, ConnectionFailed, Handlers, Message
from edge.telemetry.pacing import Backoff
from edge.telemetry.sinkfile import SinkFile

log = logging.getLogger(__name__)

_BATCH, _WAIT_S = 200, 0.005
_IN_FLIGHT = 100
_MOST_NAMED = 10_000
_LOCKED_S = 10.0
_FORGET_EVERY_S, _FORGET_MOST = 60.0, 1000
_SESSION_S = 24 * 3600
_BACKOFF_S = 30.0


class Sink:
    """Subscribes, stores, acknowledges, until told to stop."""

    def __init__(self, address: BrokerAddress, prefix: str, file: SinkFile, keep_s: float = 0.0) -> None:
        """`prefix` is a topic filter that ends in a slash, such as `edge/v1/+/+/`; `keep_s`: how long records stay, 0: for
        ever, or until somebody else drops them."""
        self._keep_s, self._forget_at_s = keep_s, 0.0
        self._address = replace(address, session_expiry_s=_SESSION_S)
        self._filter = f"{prefix}up/#"
        self._file = file
        self._arrived: list[Message] = []
        self._acks: dict[tuple[str, str], int] = {}
        """To be sent: by topic prefix and boot the newest, which says all that earlier ones did."""
        self._in_flight: dict[int, str] = {}
        """Topics of acknowledgements that the broker has not acknowledged, by packet number."""
        self._refused_topics: set[str] = set()
        self.connected = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; reconnects by itself. Raises sqlite3.Error if the database fails: what was not stored comes again."""
        backoff, said = Backoff(_BACKOFF_S), ""
        while not stop.is_set():
            self._arrived, self._acks, self._in_flight = [], {}, {}
            handlers = Handlers(self._arrived.append, self._published, self._refused, by_hand=True)
            connection = Connection(self._address, handlers)
            try:
                connection.open()
                connection.subscribe(self._filter)
                self.connected.set()
                backoff.succeeded()
                said = ""
                log.info("sink connected", extra={"event": "sink_connected", "broker": self._address.url})
                while not stop.is_set():
                    self._turn(connection, stop)
                    self._forget()
                connection.close()
            except ConnectionFailed as failure:
                connection.abandon()
                if failure.reason != said:
                    log.warning("sink has no broker", extra={"event": "sink_lost", "reason": failure.reason})
                    said = failure.reason
                stop.wait(backoff.next_s(random.random()))
            except BaseException:
                connection.abandon()
                raise
            finally:
                self.connected.clear()

    def _refused(self, topic: str, code: int) -> None:
        log.error("the broker refuses the subscription", extra={"event": "sink_refused", "topic": topic, "code": code})

    def _published(self, number: int, code: int) -> None:
        topic = self._in_flight.pop(number, "")
        if code >= FAILURE and topic not in self._refused_topics:
            if len(self._refused_topics) < _MOST_NAMED:
                self._refused_topics.add(topic)
            log.error(
                "the broker refuses an acknowledgement; let the sink write there, or nodes keep all they have",
                extra={"event": "sink_refused", "topic": topic, "code": code},
            )

    def _acknowledge(self, connection: Connection) -> None:
        """Send what may be sent now: a broker ends the session of who has more on its way than it said (Receive Maximum)."""
        limit = min(_IN_FLIGHT, connection.in_flight_limit)
        while self._acks and len(self._in_flight) < limit:
            (prefix, boot_id), seq = next(iter(self._acks.items()))
            del self._acks[prefix, boot_id]
            topic = f"{prefix}down/ack"
            self._in_flight[connection.publish(topic, orjson.dumps({"boot_id": boot_id, "seq": seq}))] = topic

    def _forget(self) -> None:
        if not self._keep_s or time.monotonic() < self._forget_at_s:
            return
        try:
            gone = self._file.forget(time.time() - self._keep_s, _FORGET_MOST)
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
            gone = 0
        self._forget_at_s = time.monotonic() + (0.0 if gone == _FORGET_MOST else _FORGET_EVERY_S)

    def _store(self, batch: list[Message], connection: Connection, stop: threading.Event) -> list[tuple[str, str, int]]:
        """As the file does. While another process has it locked: try again, and stay connected meanwhile."""
        backoff, said = Backoff(_LOCKED_S), False
        while not stop.is_set():
            try:
                acks = self._file.store(batch)
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                if not said:
                    log.warning("another process has the sink's database", extra={"event": "sink_locked"})
                said = True
                until_s = time.monotonic() + backoff.next_s(random.random())
                while (left_s := until_s - time.monotonic()) > 0 and not stop.is_set():
                    connection.turn(left_s)
                continue
            if said:
                log.info("the sink's database is free again", extra={"event": "sink_unlocked"})
            return acks
        batch.clear()  # not stored, so not acknowledged either: it comes again
        return []

    def _turn(self, connection: Connection, stop: threading.Event) -> None:
        connection.turn(1.0)
        self._acknowledge(connection)
        before = 0
        while before < len(self._arrived) < _BATCH:  # more may be on its way, and one commit is as good for many
            before = len(self._arrived)
            connection.turn(_WAIT_S)
        if not self._arrived:
            return
        batch, self._arrived[:] = list(self._arrived), []
        acks = self._store(batch, connection, stop)
        for message in batch:
            connection.ack(message)
        for prefix, boot_id, seq in acks:
            self._acks[prefix, boot_id] = seq
        self._acknowledge(connection)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    """Whether another process is at it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
