"""The sink's database: each record once, whatever comes twice, merged, late, or again after it was dropped by age."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edge.errors import ConfigurationError
from edge.telemetry.mqtt import Message
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.records import LARGEST_BYTES, LONGEST_TEXT, Received, read_payload
from edge.telemetry.transaction import transaction

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
CREATE TABLE IF NOT EXISTS forgotten (
  node TEXT NOT NULL, boot_id TEXT NOT NULL, ranges TEXT NOT NULL, at REAL NOT NULL, UNIQUE (node, boot_id));
CREATE TABLE IF NOT EXISTS retained (topic TEXT PRIMARY KEY, received REAL NOT NULL, payload BLOB NOT NULL);
"""
_LATE_S = 365 * 86_400.0
"""How long the numbers of what is gone are remembered."""
_MOST_PIECES = 4 * MOST_SPANS
"""Of a boot: a node has far fewer records on their way at once."""
_MOST_NAMED = 10_000
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
        self._widened: set[tuple[str, str]] = set()
        """Boots of the transaction that runs whose ranges have to be written."""
        self._named: set[str] = set()
        """Topic prefixes of nodes whose nonsense was logged: each once."""
        self.counts = SinkCounts()

    def close(self) -> None:
        """Give it back."""
        self._db.close()

    @property
    def spare_bytes(self) -> int:
        """Of its file: what was dropped left them, and what comes is written there first."""
        (pages,), (size,) = (self._db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_size"))
        return int(pages) * int(size)

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
        with self._transaction():
            for message in batch:
                prefix, _, rest = message.topic.rpartition("up/")
                if rest in ("state", "info") and len(message.payload) <= LARGEST_BYTES:
                    row = (message.topic, time.time(), message.payload)
                    self._db.execute("INSERT OR REPLACE INTO retained VALUES (?, ?, ?)", row)
                elif rest in ("metrics", "events") and (record := self._read(prefix, message)) is not None:
                    acks[prefix, record.boot_id] = self._put(record, message)
                    if record.gap is not None:  # what it stands for may be all that was awaited of that boot
                        acks[prefix, record.gap[0]] = self._of((record.node, record.gap[0])).through
            rows = [(*key, str(self._settled[key])) for key in self._widened]
            self._db.executemany("INSERT OR REPLACE INTO settled VALUES (?, ?, ?)", rows)
        if len(self._settled) > _BOOTS_IN_MEMORY:
            self._settled.clear()
        return [(prefix, boot_id, through) for (prefix, boot_id), through in acks.items() if through]

    def forget(self, before_s: float, most: int) -> int:
        """Drop records and gaps that came before a time (Unix seconds), the oldest first, at most so many; returns how many
        records. Their numbers are remembered, so that one that comes once more is not new, and what is settled stays settled:
        until nothing of that boot has been here for a year. Raises sqlite3.Error."""
        oldest = (
            "SELECT rowid, node, boot_id, seq, covers, received FROM records ORDER BY rowid LIMIT ?"  # as they came
        )
        with self._transaction():
            found = self._db.execute(f"SELECT * FROM ({oldest}) WHERE received < ?", (most, before_s)).fetchall()
            self._db.executemany("DELETE FROM records WHERE rowid = ?", ((row[0],) for row in found))
            by_boot: dict[tuple[str, str], Ranges] = {}
            for _, node, boot_id, seq, covers, _ in found:
                gone = by_boot.setdefault((node, boot_id), Ranges())
                gone.add(seq)
                for first, last in Ranges.parse(covers):
                    gone.add(first, last)
            for key, gone in by_boot.items():
                self._db.execute(
                    "INSERT OR REPLACE INTO forgotten VALUES (?, ?, ?, ?)",
                    (*key, str(gone | self._forgotten(key)), time.time()),
                )
                within = "DELETE FROM merged WHERE node = ? AND boot_id = ? AND first >= ? AND last <= ?"
                self._db.executemany(within, ((*key, first, last) for first, last in gone))
            self._db.execute("DELETE FROM gaps WHERE received < ?", (before_s,))
            self._forget_boots(before_s - _LATE_S)
        return len(found)

    def _forget_boots(self, before_s: float) -> None:
        """Each payload says below which number nothing is to come, so a boot that does come back is taken up from there."""
        query = (
            "SELECT node, boot_id FROM forgotten AS f WHERE at < ? AND NOT EXISTS "
            "(SELECT 1 FROM records AS r WHERE r.node = f.node AND r.boot_id = f.boot_id) LIMIT 100"
        )
        for key in self._db.execute(query, (before_s,)).fetchall():
            for table in ("forgotten", "merged", "settled"):
                self._db.execute(f"DELETE FROM {table} WHERE node = ? AND boot_id = ?", key)
            self._settled.pop(key, None)

    def _forgotten(self, key: tuple[str, str]) -> Ranges:
        row = self._db.execute("SELECT ranges FROM forgotten WHERE node = ? AND boot_id = ?", key).fetchone()
        return Ranges.parse(row[0]) if row else Ranges()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with transaction(self._db):
                yield
        except BaseException:
            self._settled.clear()  # read again from what was committed
            raise
        finally:
            self._widened.clear()

    def _read(self, prefix: str, message: Message) -> Received | None:
        try:
            record = read_payload(message.payload)
            if not self._names(prefix.split("/"), record.node):
                raise ValueError("it names another node than its topic")
            told = [(record.boot_id, record.covers)] + ([record.gap[:2]] if record.gap is not None else [])
            if any(self._of((record.node, boot_id)).spans + more.spans > _MOST_PIECES for boot_id, more in told):
                raise ValueError(f"what is here of that boot is in more than {_MOST_PIECES} pieces")
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
        reason, prefix = reason[:LONGEST_TEXT], message.topic.rpartition("up/")[0]
        if prefix in self._named:
            return
        if len(self._named) < _MOST_NAMED:
            self._named.add(prefix)
        log.warning("nonsense", extra={"event": "sink_nonsense", "topic": message.topic, "reason": reason})

    def _put(self, record: Received, message: Message) -> int:
        """Returns up to where all of its boot is settled."""
        key = (record.node, record.boot_id)
        if record.seq in self._of(key) and self._was_forgotten(key, record):
            self.counts = replace(self.counts, repeated=self.counts.repeated + 1)
            return self._of(key).through
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

    def _was_forgotten(self, key: tuple[str, str], record: Received) -> bool:
        """Whether all that it stands for was here, and is gone since."""
        gone = self._forgotten(key)
        return bool(gone) and len(gone | record.covers | Ranges([(record.seq, record.seq)])) == len(gone)

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
        self._widened.add(key)
