"""The ledger: what of which boot is acknowledged, what may still come, and what a session has in its hands."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping

from edge.telemetry.held import Held
from edge.telemetry.outboxfile import SHIFT, OutboxFile
from edge.telemetry.records import Record

_MOST_DONE = 500


class Ledger:
    """Owner of what was acknowledged. The outbox's lock guards it."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self._numbers: dict[str, int] = {}
        """Boot ids of the file, and this one, with their numbers."""
        self._last_seqs: dict[str, int] = {}
        """Of earlier boots: the last number that is known of each."""
        self._settled: dict[str, int] = {}
        self._floors: dict[str, int] = {}
        self._done: set[int] = set()
        """Ids acknowledged one by one whose rows are still there."""
        self._kept: set[int] = set()
        """Ids that a session has in its hands now. Others are merged first; a merged record is sent again."""
        self.untidy = False
        """Rows are still there that were acknowledged."""

    def take_up(self, file: OutboxFile) -> None:
        """The boots of a newly opened file, in which records may have other ids."""
        self._numbers = {boot.boot_id: boot.number for boot in file.boots()}
        for boot in file.boots():
            self._last_seqs[boot.boot_id] = boot.last_seq
            self._floors[boot.boot_id] = file.floor(boot.number) or boot.last_seq + 1

    def forget_ids(self) -> None:
        """Records have other ids now: nothing is known of any by its id."""
        self._kept.clear()
        self._done.clear()

    # --- what is acknowledged -----------------------------------------------------------------------------------------

    @property
    def settled(self) -> Mapping[str, int]:
        """By boot, up to where all is acknowledged."""
        return self._settled

    @property
    def crowded(self) -> bool:
        """So many ids are remembered that their rows should go."""
        return len(self._done) >= _MOST_DONE

    def is_settled(self, row_id: int, record: Record) -> bool:
        """Whether the record, which has that id, was acknowledged."""
        return record.seq <= self._settled.get(record.boot_id, 0) or row_id in self._done

    def floor(self, boot_id: str) -> int:
        """Nothing of that boot below this is still to come."""
        return max(self._settled.get(boot_id, 0) + 1, self._floors.get(boot_id, 1))

    def settle(self, boot_id: str, seq: int) -> bool:
        """A sink has all of that boot up to `seq`. False if that cannot be: no such boot, or numbers that were not given yet."""
        own = boot_id == self._held.boot_id
        last_seq = self._held.last_seq if own else self._last_seqs.get(boot_id, 0)
        if not 0 < seq < 1 << SHIFT or not (own or boot_id in self._numbers) or (own and seq > last_seq):
            return False
        # A boot that crashed may have sent more than came to the disk, and a sink may say so. It means no other boot's.
        seq = min(seq, last_seq)
        if seq > self._settled.get(boot_id, 0):
            self._settled[boot_id] = seq
            if own:
                self._held.acknowledged_through(seq)
            number = self._held.boot if own else self._numbers[boot_id]
            self._kept = {i for i in self._kept if i >> SHIFT != number or i & ((1 << SHIFT) - 1) > seq}
            self.untidy = True
        return True

    def done(self, row_id: int) -> None:
        """The record of that id, which is on disk, was acknowledged by itself."""
        self._done.add(row_id)
        self.untidy = True

    def tidy(self, file: OutboxFile) -> None:
        """Delete what was acknowledged, before anything is merged or dropped to make room. It is not shown any more anyhow."""
        if not self.untidy:
            return
        with file.transaction():
            for boot_id, seq in self._settled.items():
                if boot_id in self._numbers:
                    file.remove_through(self._numbers[boot_id], seq)
            file.remove(self._done)
        self._done.clear()
        self.untidy = False

    def pending(self, file: OutboxFile | None) -> int:
        """How many records are not acknowledged, in memory and in the file."""
        found = len(self._held)
        if file is not None:
            with contextlib.suppress(sqlite3.Error):
                found -= len(self._done)
                for boot_id, number in self._numbers.items():
                    found += file.count_above(number, self._settled.get(boot_id, 0))
        return max(0, found)

    # --- what a session has in its hands ------------------------------------------------------------------------------

    def keep(self, row_ids: Iterable[int]) -> None:
        """A session waits for their acknowledgement: others give way before them."""
        self._kept.update(row_ids)

    def is_kept(self, row_id: int) -> bool:
        """Whether a session waits for it."""
        return row_id in self._kept

    def let_go(self, row_id: int | None = None) -> None:
        """The session does not wait for that record any more; None: for none."""
        if row_id is None:
            self._kept.clear()
        else:
            self._kept.discard(row_id)
