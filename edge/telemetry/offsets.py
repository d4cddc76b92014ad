"""How the machine's monotonic clock lies to time, by start of the machine, so that records from before NTP can be set right."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable

from edge.telemetry.alarms import Alarms
from edge.telemetry.outboxfile import OutboxFile
from edge.telemetry.records import Record, set_right
from edge.telemetry.stamp import Stamp


class Offsets:
    """Owner of the offsets that are known. The outbox's lock guards it."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._by_start_ns: dict[str, int] = {}

    def take_up(self, file: OutboxFile) -> None:
        """Those that a newly opened file knows."""
        self._by_start_ns = {k: int(v) for k, v in file.meta("offset:").items() if v.lstrip("-").isdecimal()}

    def learn(self, now: Stamp, file: OutboxFile | None) -> None:
        """Once the clock is set, that of this start; an alarm until then."""
        if not now.synced:
            self._alarms.set(
                "clock_unsynced",
                "no time source has set this machine's clock; times of events are corrected once one has",
                "see that NTP runs and is reachable, or set mqtt.trust_clock where the clock is right without it",
            )
            return
        self._alarms.clear("clock_unsynced")
        if now.kernel_boot in self._by_start_ns:
            return
        self._by_start_ns[now.kernel_boot] = now.wall_ns - now.mono_ns
        if file is not None:
            with contextlib.suppress(sqlite3.Error), file.transaction():
                file.put_meta(f"offset:{now.kernel_boot}", str(self._by_start_ns[now.kernel_boot]))

    def right(self, found: Iterable[tuple[int, Record]]) -> list[tuple[int, Record]]:
        """The same records, with the times that are known by now."""
        return [(row_id, set_right(record, self._by_start_ns)) for row_id, record in found]
