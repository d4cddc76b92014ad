"""The reference sink: takes what nodes tell, keeps it in SQLite, and acknowledges what is safe. It may be killed at any time.

Order for each batch: commit to disk, then PUBACK, then `down/ack`. A record that comes twice is kept once (UNIQUE on node,
boot, seq).
One that was merged into another that is here is marked superseded, whichever came first.
"""

from __future__ import annotations

import contextlib
import logging
import random
import sqlite3
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from edge.errors import ConfigurationError
from edge.telemetry.mqtt import FAILURE, BrokerAddress, Connection, ConnectionFailed, Handlers, Message
from edge.telemetry.pacing import Backoff
from edge.telemetry.ranges import Ranges
from edge.telemetry.records import LONGEST_TEXT, Received, read_payload

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  node TEXT NOT NULL, boot_id TEXT NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, time_ns INTEGER NOT NULL,
  received REAL NOT NULL, covers TEXT NOT NULL, superseded INTEGER NOT NULL DEFAULT 0, topic TEXT NOT NULL, payload BLOB NOT NULL,
  UNIQUE (node, boot_id, seq));
CREATE TABLE IF NOT EXISTS merged (node TEXT NOT NULL, boot_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS merged_by_boot ON merged (node, boot_id);
CREATE TABLE IF NOT EXISTS gaps (
  node TEXT NOT NULL, boot_id TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER, reason TEXT NOT NULL, received REAL NOT NULL);
CREATE TABLE IF NOT EXISTS settled (node TEXT NOT NULL, boot_id TEXT NOT NULL, ranges TEXT NOT NULL, UNIQUE (node, boot_id));
CREATE TABLE IF NOT EXISTS retained (topic TEXT PRIMARY KEY, received REAL NOT NULL, payload BLOB NOT NULL);
"""
_BATCH, _WAIT_S = 200, 0.005
_IN_FLIGHT = 100
_MOST_NAMED = 10_000
_SESSION_S = 24 * 3600
_BACKOFF_S = 30.0
_BOOTS_IN_MEMORY = 10_000


@dataclass(frozen=True, slots=True)
class SinkCounts:
    """Since it was opened."""

    stored: int = 0
    repeated: int = 0
    nonsense: int = 0


class SinkFile:
    """Owner of the database."""

    def __init__(self, path: Path, node_level: int | None = None) -> None:
        """`node_level`: which level of a topic names the node, from 0; None: any may. Raises ConfigurationError if it cannot be
        used."""
        self._node_level = node_level
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise ConfigurationError(f"{path} cannot be used as the sink's database: {error}") from None
        self._settled: dict[tuple[str, str], Ranges] = {}
        self.counts = SinkCounts()

    def close(self) -> None:
        """Give it back."""
        self._db.close()

    def store(self, batch: list[Message]) -> list[tuple[str, str, int]]:
        """Keep all of it, safe on disk when this returns. Gives what can be acknowledged: (topic prefix, boot, seq). A message
        that cannot be kept is counted as nonsense, so that it does not come again for ever. Raises sqlite3.Error."""
        try:
            return self._store(batch)
        except sqlite3.Error:
            raise
        except Exception as error:
            if len(batch) == 1:
                self._nonsense(batch[0], f"{type(error).__name__} {error}")
                return []
            return [ack for message in batch for ack in SinkFile.store(self, [message])]

    def _store(self, batch: list[Message]) -> list[tuple[str, str, int]]:
        acks: dict[tuple[str, str], int] = {}
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for message in batch:
                prefix, _, rest = message.topic.rpartition("up/")
                if rest in ("state", "info"):
                    row = (message.topic, time.time(), message.payload)
                    self._db.execute("INSERT OR REPLACE INTO retained VALUES (?, ?, ?)", row)
                elif rest in ("metrics", "events") and (record := self._read(prefix, message)) is not None:
                    acks[prefix, record.boot_id] = self._put(record, message)
                    if record.gap is not None:  # what it stands for may be all that was awaited of that boot
                        acks[prefix, record.gap[0]] = self._of((record.node, record.gap[0])).through
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            self._settled.clear()  # read again from what was committed
            raise
        if len(self._settled) > _BOOTS_IN_MEMORY:
            self._settled.clear()
        return [(prefix, boot_id, through) for (prefix, boot_id), through in acks.items() if through]

    def forget(self, before_s: float, most: int) -> int:
        """Drop records and gaps that came before a time (Unix seconds), the oldest first, at most so many; returns how many
        records. What is settled stays settled: acknowledgements go on as they were. Raises sqlite3.Error."""
        oldest = "SELECT rowid, received FROM records ORDER BY rowid LIMIT ?"  # in the order in which they came
        gone = self._db.execute(
            f"DELETE FROM records WHERE rowid IN (SELECT rowid FROM ({oldest}) WHERE received < ?)", (most, before_s)
        ).rowcount
        self._db.execute("DELETE FROM gaps WHERE received < ?", (before_s,))
        return gone

    def _read(self, prefix: str, message: Message) -> Received | None:
        try:
            record = read_payload(message.payload)
            if not self._names(prefix.split("/"), record.node):
                raise ValueError("it names another node than its topic")
        except ValueError as error:
            self._nonsense(message, str(error))
            return None
        return record

    def _names(self, levels: list[str], node: str) -> bool:
        """Whether a topic is that node's."""
        if self._node_level is None:
            return node in levels
        return levels[self._node_level : self._node_level + 1] == [node]

    def _nonsense(self, message: Message, reason: str) -> None:
        self.counts = replace(self.counts, nonsense=self.counts.nonsense + 1)
        reason = reason[:LONGEST_TEXT]
        log.warning("nonsense", extra={"event": "sink_nonsense", "topic": message.topic, "reason": reason})

    def _put(self, record: Received, message: Message) -> int:
        """Returns up to where all of its boot is settled."""
        key = (record.node, record.boot_id)
        superseded = self._db.execute(
            "SELECT 1 FROM merged WHERE node = ? AND boot_id = ? AND ? BETWEEN first AND last LIMIT 1",
            (*key, record.seq),
        ).fetchone()
        fields = (
            *key,
            record.seq,
            record.kind,
            record.time_ns,
            time.time(),
            str(record.covers),
            superseded is not None,
        )
        done = self._db.execute(
            "INSERT OR IGNORE INTO records (node, boot_id, seq, kind, time_ns, received, covers, superseded, topic, payload) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*fields, message.topic, message.payload),
        )
        settled = self._of(key)
        if done.rowcount == 0 and not self._replace(record, message):
            self.counts = replace(self.counts, repeated=self.counts.repeated + 1)
            self._widen(key, settled, Ranges([(1, record.floor - 1)]))
            return settled.through
        self.counts = replace(self.counts, stored=self.counts.stored + 1)
        for first, last in record.covers:
            self._db.execute("INSERT INTO merged VALUES (?, ?, ?, ?)", (*key, first, last))
            self._db.execute(
                "UPDATE records SET superseded = 1 WHERE node = ? AND boot_id = ? AND seq BETWEEN ? AND ?",
                (*key, first, last),
            )
        if record.gap is not None:
            self._put_gap(record.node, record.gap)
        self._widen(key, settled, record.covers | Ranges([(record.seq, record.seq), (1, record.floor - 1)]))
        return settled.through

    def _replace(self, record: Received, message: Message) -> bool:
        """A merged record has the number of its last part. Where that part, or a merged one of fewer parts, is here, the one that
        stands for more takes its place; whether it does."""
        where = (record.node, record.boot_id, record.seq)
        query = "SELECT covers FROM records WHERE node = ? AND boot_id = ? AND seq = ?"
        here = Ranges.parse(self._db.execute(query, where).fetchone()[0])
        if len(here | record.covers) == len(here):
            return False
        self._db.execute(
            "UPDATE records SET time_ns = ?, covers = ?, payload = ? WHERE node = ? AND boot_id = ? AND seq = ?",
            (record.time_ns, str(record.covers), message.payload, *where),
        )
        return True

    def _put_gap(self, node: str, gap: tuple[str, Ranges, bool, str]) -> None:
        boot_id, lost, open_ended, reason = gap
        for first, last in lost:
            end = None if open_ended else last
            self._db.execute(
                "INSERT INTO gaps VALUES (?, ?, ?, ?, ?, ?)", (node, boot_id, first, end, reason, time.time())
            )
        self._widen((node, boot_id), self._of((node, boot_id)), lost)

    def _of(self, key: tuple[str, str]) -> Ranges:
        if key not in self._settled:
            row = self._db.execute("SELECT ranges FROM settled WHERE node = ? AND boot_id = ?", key).fetchone()
            self._settled[key] = Ranges.parse(row[0]) if row else Ranges()
        return self._settled[key]

    def _widen(self, key: tuple[str, str], settled: Ranges, by: Ranges) -> None:
        for first, last in by:
            settled.add(first, last)
        self._db.execute("INSERT OR REPLACE INTO settled VALUES (?, ?, ?)", (*key, str(settled)))


class Sink:
    """Subscribes, stores, acknowledges, until told to stop."""

    def __init__(self, address: BrokerAddress, prefix: str, file: SinkFile) -> None:
        """`prefix` is a topic filter that ends in a slash, such as `edge/v1/+/+/`."""
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
                    self._turn(connection)
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

    def _turn(self, connection: Connection) -> None:
        connection.turn(1.0)
        self._acknowledge(connection)
        before = 0
        while before < len(self._arrived) < _BATCH:  # more may be on its way, and one commit is as good for many
            before = len(self._arrived)
            connection.turn(_WAIT_S)
        if not self._arrived:
            return
        batch, self._arrived[:] = list(self._arrived), []
        acks = self._file.store(batch)
        for message in batch:
            connection.ack(message)
        for prefix, boot_id, seq in acks:
            self._acks[prefix, boot_id] = seq
        self._acknowledge(connection)
