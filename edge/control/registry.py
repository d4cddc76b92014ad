"""What nodes told last, from the sink's stream: last seen, state, info, figures. Lost with a crash for a second at most, and told
again by the broker's retained messages and the next report."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from edge.control.database import Database, Node, NodeStatus
from edge.control.figures import Window, read_counts
from edge.control.files import PRIVATE
from edge.errors import ConfigurationError, EdgeError
from edge.telemetry.mqtt import Message
from edge.telemetry.sinkfile import SinkFile

log = logging.getLogger(__name__)

_FLUSH_S = 1.0
_LONGEST_INFO_BYTES = 8192
_STATES = frozenset({"online", "draining", "offline"})
_BATCH = 500
_NODE_LEVEL = 3
"""Of edge/v1/GROUP/NODE/up/..."""
_FORGET_EVERY_S, _FORGET_MOST = 60.0, 1000
_ROOM_BYTES = 4 << 20


@dataclass(slots=True)
class _Known:
    last_seen_s: float = 0.0
    state: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    window: Window = field(default_factory=Window)


class TellingSinkFile(SinkFile):
    """The sink's database; what is safe in it is told on, and what is old is dropped. The last of the disk is not for it: a
    revocation that finds no room there does not hold."""

    def __init__(
        self, path: Path, told: Callable[[list[Message]], None], keep_s: float = 0.0, keep_free_bytes: int = 0
    ) -> None:
        """`keep_s`: how long records are kept; 0: for ever. `keep_free_bytes`: so much of the disk is left to others."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE))  # what lies beside it gets its mode
            path.chmod(PRIVATE)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be used as the sink's database: {error.strerror}") from None
        super().__init__(path, _NODE_LEVEL)
        self._told, self._keep_s = told, keep_s
        self._place, self._keep_free_bytes = path.parent, keep_free_bytes
        self._look_s = 0.0

    def store(self, batch: list[Message]) -> list[tuple[str, str, int]]:
        """As ever, while there is room; then tell."""
        if shutil.disk_usage(self._place).free < self._keep_free_bytes:
            self._drop_old()
            self._require_room()
        acks = super().store(batch)
        try:
            self._told(batch)
        except Exception as error:  # what is stored is stored, and would come again for ever
            log.error("what was stored could not be told on", extra={"event": "bug"}, exc_info=error)
        self._drop_old()
        return acks

    def _require_room(self) -> None:
        """In the file itself, where old records were. Raises sqlite3.OperationalError."""
        if self.spare_bytes < _ROOM_BYTES:
            raise sqlite3.OperationalError(
                f"less than {self._keep_free_bytes >> 20} MiB are free on its disk, which are left to the fleet's own database: "
                "free some space, or lower [telemetry] keep_days; nodes keep what they have to tell meanwhile"
            )

    def _drop_old(self) -> None:
        if self._keep_s and time.monotonic() >= self._look_s:
            self._look_s = time.monotonic() + _FORGET_EVERY_S
            with contextlib.suppress(
                sqlite3.OperationalError
            ):  # locked: later; what was stored is not to be told again
                if self.forget(time.time() - self._keep_s, _FORGET_MOST) == _FORGET_MOST:
                    self._look_s = 0.0


class Registry:
    """Owner of the table of statuses."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database, self._now = database, now
        self._nodes: dict[str, _Known] = {}
        self._changed: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registry", daemon=True)
        self._said = ""
        self.records = 0
        """Messages taken since the start."""
        with database.read() as session:
            for row in session.scalars(select(NodeStatus)):
                self._nodes[row.node_id] = _Known(
                    row.last_seen_s, row.state, orjson.loads(row.info), orjson.loads(row.figures)
                )

    def start(self) -> None:
        """Write down once a second what is new."""
        self._thread.start()

    def stop(self) -> None:
        """Write the rest."""
        self._stop.set()
        self._thread.join(10)

    def tell(self, batch: list[Message]) -> None:
        """What the sink has stored. Never raises: a payload that cannot be read is the sink's to complain about."""
        now_s = self._now()
        with self._lock:
            for message in batch:
                try:
                    self._take(message, now_s)
                except Exception:  # it comes from outside, and may be anything
                    continue

    def _take(self, message: Message, now_s: float) -> None:
        prefix, _, rest = message.topic.rpartition("/up/")
        node = prefix.rpartition("/")[2]
        if not node:
            return
        self.records += 1
        known = self._nodes.setdefault(node, _Known())
        live = True
        if rest == "state":
            live = self._state(known, orjson.loads(message.payload))
        elif rest == "info" and len(message.payload) <= _LONGEST_INFO_BYTES:
            document = orjson.loads(message.payload)
            orjson.dumps(document)  # raises for what is nested too deep to be written, though it could be read
            known.info = document if isinstance(document, dict) else {}
            live = False  # retained, and may be old
        elif rest == "metrics":
            self._metrics(known, orjson.loads(message.payload), now_s)
        if live:
            known.last_seen_s = now_s
        self._changed.add(node)

    @staticmethod
    def _state(known: _Known, document: dict[str, Any]) -> bool:
        """Whether that tells of the node itself: `offline` is what the broker says when it is gone, and comes again to who
        subscribes."""
        state = document["state"]
        if state not in _STATES:
            raise ValueError(state)
        fresh = bool(state != known.state and state != "offline")
        known.state = state
        return fresh

    @staticmethod
    def _metrics(known: _Known, document: dict[str, Any], now_s: float) -> None:
        attributes = document["resourceMetrics"][0]["resource"]["attributes"]
        found = {a["key"]: next(iter(a["value"].values())) for a in attributes}
        if found.get("edge.hist"):  # of the past
            return
        known.window.add(str(found["edge.boot_id"]), now_s, read_counts(document))
        known.figures = known.window.figures()

    def _run(self) -> None:
        going = True
        while going:
            going = not self._stop.wait(_FLUSH_S)
            try:
                self._flush()
            except Exception as error:
                log.error("the registry failed", extra={"event": "bug"}, exc_info=error)

    def _flush(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, set()
            rows = [
                {
                    "node_id": node, "last_seen_s": known.last_seen_s, "state": known.state,
                    "info": orjson.dumps(known.info).decode(), "figures": orjson.dumps(known.figures).decode(),
                }
                for node in changed if (known := self._nodes.get(node)) is not None
            ]  # fmt: skip
        if not rows:
            return
        try:
            self._write(rows)
            self._said = ""
        except EdgeError as error:
            with self._lock:
                self._changed |= changed
            if error.message != self._said:
                log.error("the registry cannot be written", extra={"event": "fleet_registry", "reason": error.message})
                self._said = error.message

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with self._database.write() as session:
            wanted = [row["node_id"] for row in rows]
            ours: set[str] = set()
            for begin in range(0, len(wanted), _BATCH):
                ours |= set(session.scalars(select(Node.id).where(Node.id.in_(wanted[begin : begin + _BATCH]))))
            known = [row for row in rows if row["node_id"] in ours]  # others speak on a broker that has other users too
            if known:
                statement = insert(NodeStatus)
                columns = ("last_seen_s", "state", "info", "figures")
                statement = statement.on_conflict_do_update(
                    index_elements=["node_id"], set_={name: statement.excluded[name] for name in columns}
                )
                session.execute(statement, known)
