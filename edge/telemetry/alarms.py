"""What is wrong now: each condition once, while it lasts. Health, status and the fleet read it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

log = logging.getLogger(__name__)

Code = Literal[
    "certificate_expiring",
    "clock_unsynced",
    "identity_damaged",
    "no_acknowledgement",
    "node_name_taken",
    "outbox_corrupt",
    "outbox_full",
    "outbox_disk",
    "renewal_refused",
    "uplink_down",
    "uplink_refused",
    "uplink_tls",
    "uplink_unstable",
]


@dataclass(frozen=True, slots=True)
class Alarm:
    """One condition that holds. `since` is Unix time; `text` says what is wrong, `cure` what to do."""

    code: Code
    since: float
    text: str
    cure: str


class Alarms:
    """Owner of the active alarms. Any thread may raise and clear."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active: dict[Code, Alarm] = {}
        self.on_change: Callable[[str, dict[str, Any]], None] | None = None
        """Told of each alarm's begin and end, as an event's name and fields."""

    def set(self, code: Code, text: str, cure: str) -> None:
        """The condition holds. Said once; a later text replaces the first in silence."""
        with self._lock:
            known = self._active.get(code)
            self._active[code] = Alarm(code, known.since if known else time.time(), text, cure)
        if known is None:
            log.warning(text, extra={"event": "alarm_raised", "code": code, "cure": cure})
            self._tell("alarm_raised", {"code": code, "text": text, "cure": cure})

    def clear(self, code: Code) -> None:
        """The condition is over, or never was."""
        with self._lock:
            known = self._active.pop(code, None)
        if known is not None:
            lasted_s = round(time.time() - known.since, 1)
            log.info("alarm is over", extra={"event": "alarm_cleared", "code": code, "lasted_s": lasted_s})
            self._tell("alarm_cleared", {"code": code, "lasted_s": lasted_s})

    def active(self) -> list[dict[str, Any]]:
        """Those that hold, the oldest first."""
        with self._lock:
            return [asdict(alarm) for alarm in sorted(self._active.values(), key=lambda a: a.since)]

    def _tell(self, name: str, fields: dict[str, Any]) -> None:
        if self.on_change is not None:
            self.on_change(name, fields)
