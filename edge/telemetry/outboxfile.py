"""The outbox's SQLite file: rows in, rows out. What is kept and what gives way is `edge.telemetry.outbox`'s part.

A row's id is boot << 40 | seq, so that one tree holds the order in which records are told. The write-ahead log lets another
process
read while the node writes.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from edge.telemetry.merging import Outline
from edge.telemetry.ranges import Ranges
from edge.telemetry.records import Kind, Record
from edge.telemetry.stamp import Stamp
from edge.telemetry.transaction import transaction
from edge.versions import Fit, fit

SHIFT = 40
FORM = 1
"""Of the tables below, as the file's `user_version`; files of before that have 0."""
_READABLE_BY = "readable_by"
"""In `meta`: the lowest form whose programs may use this file as it is (edge.versions). Only what adds tables or columns allows
that."""
_SCHEMA = """
CREATE TABLE records (
  id INTEGER PRIMARY KEY, kind TEXT NOT NULL, mono_ns INTEGER NOT NULL, span_ns INTEGER NOT NULL, size INTEGER NOT NULL,
  first INTEGER NOT NULL, wall_ns INTEGER NOT NULL, synced INTEGER NOT NULL, boot_id TEXT NOT NULL, kernel_boot TEXT NOT NULL,
  covers TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE boots (boot INTEGER PRIMARY KEY AUTOINCREMENT, boot_id TEXT NOT NULL UNIQUE, last_seq INTEGER NOT NULL, closed INTEGER NOT NULL);
CREATE TABLE commands (id TEXT PRIMARY KEY, expires_s REAL NOT NULL, answer TEXT);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""  # noqa: E501
COLUMNS = "id, kind, mono_ns, span_ns, size, first, wall_ns, synced, boot_id, kernel_boot, covers, body"
_FIELDS = COLUMNS.count(",") + 1
_ALWAYS = {True: frozenset("tcgh"), False: frozenset({"event"})}
"""Fields of a body: of metrics, and of the others."""
PAGE_BYTES = 4096
_WAL_PAGES = 64
_WAIT_S = 5.0
_REMEMBER_S = 48 * 3600.0
_COMMANDS_AT_LEAST, _COMMANDS_AT_MOST = 500, 5000


@dataclass(frozen=True, slots=True)
class Boot:
    """One life of the node's process, as the file knows it."""

    number: int
    boot_id: str
    last_seq: int
    closed: bool
    """It ended in good order, or what it took with it has been told."""


class NewerOutbox(sqlite3.DatabaseError):
    """The file is whole and of a form that only a newer version can use."""

    def __init__(self, form: int) -> None:
        super().__init__(f"the outbox is of form {form}, and this version knows those up to {FORM}")
        self.form = form


class OutboxFile:
    """One open file. Methods raise sqlite3.Error; each that writes is one transaction."""

    def __init__(self, path: Path, cap_bytes: int) -> None:
        """Open or make it. Raises sqlite3.Error, also if a quick check finds damage; NewerOutbox."""
        self.path = path
        self._db = _connect(path)
        self._identity = _identity(path)
        try:
            self._db.execute(f"PRAGMA max_page_count = {max(64, int(cap_bytes * 0.9) // PAGE_BYTES)}")
            found = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise sqlite3.DatabaseError(f"database disk image is malformed: {found}")
            self._require_form()
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'records'").fetchone():
                self._db.executescript(f"BEGIN; {_SCHEMA} COMMIT; PRAGMA wal_checkpoint(TRUNCATE);")
            if self._pragma("user_version") < FORM:
                self._db.execute(f"PRAGMA user_version = {FORM}")
        except BaseException:
            self._db.close()
            raise

    def _require_form(self) -> None:
        form = self._pragma("user_version")
        if form <= FORM:
            return
        try:
            mark = self._db.execute("SELECT value FROM meta WHERE key = ?", (_READABLE_BY,)).fetchone()
            readable_by = int(mark[0]) if mark else None
        except (sqlite3.Error, ValueError):
            readable_by = None
        if fit(form, readable_by, FORM) is Fit.FOREIGN:
            raise NewerOutbox(form)

    def close(self) -> None:
        """Give the file back."""
        self._db.close()

    @property
    def in_place(self) -> bool:
        """Whether the path still leads to this file: it may be removed, or put over, while it is open."""
        try:
            return _identity(self.path) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # a disk that fails says nothing of where the file is
            return True

    def copy_to(self, path: Path) -> None:
        """All of it as a new file. Works as well when this one was removed. Raises sqlite3.Error, OSError."""
        path.unlink(missing_ok=True)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            self._db.backup(copy)

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All or nothing. `durable`: on the disk when this ends, not only in the kernel's hands."""
        self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        with transaction(self._db):
            yield

    # --- records ------------------------------------------------------------------------------------------------------

    def put(self, boot: int, records: Iterable[Record]) -> None:
        """Inside a transaction."""
        marks = ",".join("?" * _FIELDS)
        rows = (_row(boot, record) for record in records)
        self._db.executemany(f"INSERT OR REPLACE INTO records ({COLUMNS}) VALUES ({marks})", rows)

    def remove(self, ids: Iterable[int]) -> None:
        """Inside a transaction."""
        self._db.executemany("DELETE FROM records WHERE id = ?", ((i,) for i in ids))

    def remove_through(self, boot: int, seq: int) -> None:
        """All of a boot up to `seq`. Inside a transaction."""
        self._db.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", (boot << SHIFT, boot << SHIFT | seq))

    def after(self, row_id: int, limit: int) -> list[tuple[int, Record]]:
        """The next records by id."""
        query = f"SELECT {COLUMNS} FROM records WHERE id > ? ORDER BY id LIMIT ?"
        return [(row[0], _sound(row)) for row in self._db.execute(query, (row_id, limit))]

    def outlines(self, kinds: tuple[Kind, ...], limit: int, below_ns: int = 1 << 62) -> list[Outline]:
        """The oldest records of those kinds whose intervals are shorter than `below_ns`."""
        marks = ",".join("?" * len(kinds))
        which = f"kind IN ({marks}) AND span_ns < ?"
        pieces = "CASE covers WHEN '' THEN 0 ELSE 1 + length(covers) - length(replace(covers, ',', '')) END"
        query = f"SELECT id, kind, mono_ns, span_ns, size, {pieces} FROM records WHERE {which} ORDER BY id LIMIT ?"
        rows = self._db.execute(query, (*kinds, below_ns, limit))
        return [
            Outline(i >> SHIFT, i & ((1 << SHIFT) - 1), kind, mono, span, size, count)
            for i, kind, mono, span, size, count in rows
        ]

    def fetch(self, ids: Iterable[int]) -> list[Record]:
        """Those of them that there are, in order."""
        query = f"SELECT {COLUMNS} FROM records WHERE id = ?"
        rows = (self._db.execute(query, (i,)).fetchone() for i in ids)
        return [_sound(row) for row in rows if row is not None]

    def covers(self, row_id: int) -> Ranges | None:
        """Which others the record of that id stands for; None if there is none of that id."""
        row = self._db.execute("SELECT covers FROM records WHERE id = ?", (row_id,)).fetchone()
        return None if row is None else Ranges.parse(row[0])

    def older_than(self, wall_ns: int, limit: int) -> list[Outline]:
        """Records of a synced clock from before `wall_ns`, gaps left out."""
        query = (
            "SELECT id, kind, mono_ns, span_ns, size FROM records WHERE kind != 'gap' AND synced AND wall_ns < ? "
            "ORDER BY id LIMIT ?"
        )
        rows = self._db.execute(query, (wall_ns, limit))
        return [Outline(i >> SHIFT, i & ((1 << SHIFT) - 1), kind, m, s, z) for i, kind, m, s, z in rows]

    def counts(self) -> dict[str, int]:
        """Records by kind."""
        return dict(self._db.execute("SELECT kind, COUNT(*) FROM records GROUP BY kind"))

    def count_above(self, boot: int, seq: int) -> int:
        """A boot's records after `seq`."""
        bounds = (boot << SHIFT | seq, (boot + 1) << SHIFT)
        return int(self._db.execute("SELECT COUNT(*) FROM records WHERE id > ? AND id < ?", bounds).fetchone()[0])

    def oldest(self) -> Stamp | None:
        """When the first record to be told happened."""
        row = self._db.execute(
            "SELECT wall_ns, mono_ns, kernel_boot, synced FROM records ORDER BY id LIMIT 1"
        ).fetchone()
        return Stamp(row[0], row[1], row[2], bool(row[3])) if row else None

    @property
    def used_bytes(self) -> int:
        """Pages that hold something."""
        return int(self._pragma("page_count") - self._pragma("freelist_count")) * PAGE_BYTES

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    # --- boots --------------------------------------------------------------------------------------------------------

    def boots(self) -> list[Boot]:
        """All that the file knows, the oldest first."""
        rows = self._db.execute("SELECT boot, boot_id, last_seq, closed FROM boots ORDER BY boot")
        return [Boot(number, boot_id, last, bool(closed)) for number, boot_id, last, closed in rows]

    def boot_number(self, boot_id: str) -> int:
        """Its number, made if it has none. Inside a transaction."""
        self._db.execute("INSERT OR IGNORE INTO boots (boot_id, last_seq, closed) VALUES (?, 0, 0)", (boot_id,))
        return int(self._db.execute("SELECT boot FROM boots WHERE boot_id = ?", (boot_id,)).fetchone()[0])

    def put_boot(self, boot: Boot) -> None:
        """As it is. Inside a transaction."""
        row = (boot.number, boot.boot_id, boot.last_seq, boot.closed)
        self._db.execute("INSERT OR REPLACE INTO boots (boot, boot_id, last_seq, closed) VALUES (?, ?, ?, ?)", row)

    def forget_boots(self, but: int) -> None:
        """Of closed boots without records. Inside a transaction."""
        self._db.execute(
            "DELETE FROM boots WHERE closed AND boot != ? AND NOT EXISTS "
            f"(SELECT 1 FROM records WHERE id BETWEEN boots.boot << {SHIFT} AND ((boots.boot + 1) << {SHIFT}) - 1)",
            (but,),
        )

    def floor(self, boot: int) -> int | None:
        """The lowest number that a record of that boot stands for; None if it has no records."""
        bounds = (boot << SHIFT, ((boot + 1) << SHIFT) - 1)
        found = self._db.execute("SELECT MIN(first) FROM records WHERE id BETWEEN ? AND ?", bounds).fetchone()[0]
        return None if found is None else int(found)

    # --- small things -------------------------------------------------------------------------------------------------

    def command(self, command_id: str) -> tuple[bool, str | None]:
        """(whether it is known, its answer if it has one)."""
        row = self._db.execute("SELECT answer FROM commands WHERE id = ?", (command_id,)).fetchone()
        return (False, None) if row is None else (True, row[0])

    def put_command(self, command_id: str, expires_s: float, answer: str | None, now_s: float) -> None:
        """Remember it for long after it has expired, and the last ones whatever the clock says: it may jump ahead and back.
        Inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO commands VALUES (?, ?, ?)", (command_id, expires_s, answer))
        newest = "SELECT rowid FROM commands ORDER BY rowid DESC LIMIT 1 OFFSET ?"
        self._db.execute(
            f"DELETE FROM commands WHERE expires_s < ? AND rowid <= ({newest})",
            (now_s - _REMEMBER_S, _COMMANDS_AT_LEAST),
        )
        self._db.execute(f"DELETE FROM commands WHERE rowid <= ({newest})", (_COMMANDS_AT_MOST,))

    def meta(self, prefix: str) -> dict[str, str]:
        """Values whose keys begin so, by the rest of the key."""
        rows = self._db.execute("SELECT key, value FROM meta WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
        return {key[len(prefix) :]: value for key, value in rows}

    def put_meta(self, key: str, value: str) -> None:
        """Inside a transaction."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    where = f"file:{_quoted(path)}?mode={'ro' if read_only else 'rwc'}"
    db = sqlite3.connect(where, uri=True, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    if not read_only:
        os.chmod(path, 0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_PAGES * PAGE_BYTES}")
    return db


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _row(boot: int, record: Record) -> tuple[object, ...]:
    stamp, body, covers = record.stamp, orjson.dumps(record.body), str(record.covers)
    return (
        boot << SHIFT | record.seq, record.kind, stamp.mono_ns, record.span_ns, len(body) + len(covers) + 120, record.first,
        stamp.wall_ns, stamp.synced, record.boot_id, stamp.kernel_boot, covers, body,
    )  # fmt: skip


Row = tuple[int, Kind, int, int, int, int, int, int, str, str, str, bytes]


def _sound(row: Row) -> Record:
    """SQLite looks at its own pages, and not at what lies in them: a bit that has turned over there is damage too, and must not
    stand in the way of all that comes after it. Raises sqlite3.DatabaseError."""
    try:
        return record_of(row)
    except (ValueError, TypeError, AttributeError) as error:
        raise sqlite3.DatabaseError(
            f"database disk image is malformed: record {row[0]} makes no sense: {error}"
        ) from None


def record_of(row: Row) -> Record:
    """Raises ValueError, TypeError or AttributeError if its content is not whole."""
    row_id, kind, mono_ns, span_ns, _, _, wall_ns, synced, boot_id, kernel_boot, covers, body = row
    stamp = Stamp(wall_ns, mono_ns, kernel_boot, bool(synced))
    seq, content = row_id & ((1 << SHIFT) - 1), orjson.loads(body)
    if not _ALWAYS[kind == "metrics"] <= content.keys():
        raise ValueError("a field is missing")
    return Record(boot_id, seq, kind, stamp, content, span_ns, Ranges.parse(covers))


class OutboxReader:
    """Reads a file that a node may be writing at the same time. A context manager."""

    def __init__(self, path: Path) -> None:
        """Raises sqlite3.Error if that is no outbox."""
        self._db = _connect(path, read_only=True)
        self._db.execute("SELECT 1 FROM records LIMIT 1")

    def __enter__(self) -> OutboxReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def counts(self) -> dict[str, int]:
        """Records by kind."""
        return dict(self._db.execute("SELECT kind, COUNT(*) FROM records GROUP BY kind ORDER BY kind"))

    def oldest(self) -> Stamp | None:
        """When the first record to be told happened."""
        found = self.first(1)
        return found[0].stamp if found else None

    def first(self, limit: int) -> list[Record]:
        """The records that are told next."""
        return [_sound(row) for row in self._db.execute(f"SELECT {COLUMNS} FROM records ORDER BY id LIMIT ?", (limit,))]

    @property
    def size_bytes(self) -> int:
        """Pages that hold something."""
        pages, free = (int(self._db.execute(f"PRAGMA {n}").fetchone()[0]) for n in ("page_count", "freelist_count"))
        return (pages - free) * PAGE_BYTES
