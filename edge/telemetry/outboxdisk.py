"""The outbox's place on the disk: the directory and its lock, the file that is open there, and what is done when either fails."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from edge.durable import lock, open_lock
from edge.errors import NotYet
from edge.telemetry.alarms import Alarms
from edge.telemetry.otherversions import Waiting, put_aside
from edge.telemetry.outboxfile import NewerOutbox, OutboxFile
from edge.telemetry.repair import is_damage, set_aside

log = logging.getLogger(__name__)

FILE, LOCK = "outbox.db", "outbox.lock"
_RETRY_S = 10.0
_DAMAGE_S = 60.0
"""A file that is damaged again so soon is not repaired once more: the disk itself is bad."""


class OutboxDisk:
    """Owner of EDGE_HOME/outbox, its lock and its open file. The outbox's lock guards it."""

    def __init__(
        self,
        directory: Path,
        cap_bytes: int,
        alarms: Alarms,
        take_up: Callable[[OutboxFile, Waiting | None], None],
        without: Callable[[], None],
    ) -> None:
        """`take_up` is called with each file that was opened, and what waits of a newer version in its stead, and may raise
        sqlite3.Error and OSError; `without` when the disk has failed."""
        self._directory, self._cap_bytes, self._alarms = directory, cap_bytes, alarms
        self._take_up, self._without = take_up, without
        self._lock_file: int | None = None
        self._writable = True
        self._retry_s = 0.0
        self._damaged_s = -_DAMAGE_S
        self._place_s = 0.0
        self._said = ""
        self.file: OutboxFile | None = None
        """The open one; only this class writes it. It can be read while the disk cannot be written."""
        self.aside: Path | None = None
        """Where the damaged file lies of which nothing was saved yet. The outbox sets None once it is saved."""

    @property
    def writable(self) -> bool:
        """False after the disk failed, until it is tried again."""
        return self._writable

    @property
    def resting(self) -> bool:
        """The disk failed, and it is too early to try it again."""
        return not self._writable and time.monotonic() < self._retry_s

    def works(self) -> None:
        """It was written to."""
        self._writable = True
        self._alarms.clear("outbox_disk")

    # --- the directory ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the directory, and open the file. Raises NotYet if another process has it; a disk that does not work is an
        alarm."""
        try:
            self._take_directory()
        except OSError as error:
            self.trouble(error)
        self.reopen()

    def _take_directory(self) -> None:
        """Make it and lock it. Raises NotYet if another process has it, and OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._let_directory_go()
        self._lock_file = open_lock(self._directory / LOCK)
        try:
            unlocked = lock(self._lock_file, wait=False)
        except BlockingIOError:
            self._let_directory_go()
            raise NotYet(
                f"the outbox in {self._directory} is in use: a node runs on this EDGE_HOME and sends by itself, or `edge outbox "
                "drain` does; let it end first, or give this one another EDGE_HOME"
            ) from None
        if unlocked:
            log.warning(
                "the outbox cannot be locked; see that only one node uses this EDGE_HOME",
                extra={"event": "outbox_unlocked", "reason": unlocked, "directory": str(self._directory)},
            )

    def _let_directory_go(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def close(self) -> None:
        """Close the file, and let the directory go."""
        self._close_file()
        self._let_directory_go()

    # --- the file -----------------------------------------------------------------------------------------------------

    def _close_file(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def reopen(self) -> None:
        """Open the file, or set it aside and make a new one. On failure records stay in memory until the next try."""
        path = self._directory / FILE
        try:
            newer = None
            try:
                self.file = OutboxFile(path, self._cap_bytes)
            except NewerOutbox as error:
                newer = put_aside(path, error.form)
                self.file = OutboxFile(path, self._cap_bytes)
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                log.error("the outbox is damaged", extra={"event": "outbox_damaged", "reason": str(error)})
                self.aside = set_aside(path)
                self.file = OutboxFile(path, self._cap_bytes)
            self._take_up(self.file, newer)
        except (sqlite3.Error, OSError) as error:
            self._close_file()
            self.trouble(error)

    def trouble(self, error: sqlite3.Error | OSError) -> None:
        """The disk does not do its part. Damage is repaired at once; the rest is tried again later."""
        damaged = isinstance(error, sqlite3.Error) and is_damage(error) and self.file is not None
        if damaged and time.monotonic() - self._damaged_s > _DAMAGE_S:
            self._damaged_s = time.monotonic()
            log.error("the outbox is damaged", extra={"event": "outbox_damaged", "reason": str(error)})
            self._close_file()
            try:
                self.aside = set_aside(self._directory / FILE)
            except OSError as refused:
                error = refused
            else:
                self.reopen()
                return
        if damaged:
            self._close_file()
        self._writable = False  # an open file can still be read
        self._retry_s = time.monotonic() + _RETRY_S
        self._alarms.set(
            "outbox_disk",
            f"the outbox cannot be written ({error}); events and metrics stay in memory and a crash would lose them",
            f"free space on the disk of {self._directory}, or see whose files these are and why they cannot be written; it is "
            "tried again by itself",
        )
        self._without()

    def put_in_place(self) -> None:
        """If somebody removed the open file, or put another one over it: what it holds can still be read, until it is closed.
        Nothing is touched where another process has the directory, or while there is no room for a copy."""
        file, now_s = self.file, time.monotonic()
        if file is None or now_s < self._place_s or file.in_place:
            return
        path, copy = self._directory / FILE, self._directory / f"{FILE}.copy"
        saved = True
        try:
            self._take_directory()
            file.copy_to(copy)
        except (sqlite3.Error, OSError, NotYet) as error:
            with contextlib.suppress(OSError):
                copy.unlink(missing_ok=True)
            saved = False
            if not (isinstance(error, sqlite3.Error) and is_damage(error)):
                self._place_s = now_s + _RETRY_S
                self._say_removed(
                    path, f"cannot be put back: {error}", "see who uses this directory, and free space on its disk"
                )
                return
        try:
            set_aside(path)  # before closing, which deletes the log of whatever is there by then
            self._close_file()
            if saved:
                os.replace(copy, path)
        except OSError as error:
            self.trouble(error)
            return
        self.reopen()
        self._said = ""
        self._say_removed(
            path, "its records were saved" if saved else "it is lost", "delete nothing there while the node runs"
        )

    def _say_removed(self, path: Path, what: str, cure: str) -> None:
        """In the log once, however often it is tried."""
        if what != self._said:
            log.error(
                "the outbox was removed while the node runs",
                extra={"event": "outbox_removed", "file": str(path), "outcome": what},
            )
        self._said = what
        self._alarms.set(
            "outbox_corrupt",
            f"the outbox file was removed or replaced while the node ran; {what}",
            f"{cure} ({path.parent}); the alarm ends with the next start",
        )
