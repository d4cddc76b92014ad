"""The last decisions, with what was foreseen and what came of it. No content, no key: names, numbers and times only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from edge.admission.policy import Decision, Reason
from edge.messages import Tier

REMEMBERED = 1024


@dataclass(slots=True)
class Entry:
    """One request. Times in seconds from when it was read; None while, or where, they are not known."""

    request_id: str
    at: float
    """Unix time."""
    tier: Tier
    policy: str
    model: str = ""
    """The one that was meant, by the name that it has here; empty if there is none."""
    route: str = ""
    reason: Reason = ""
    fleet_reason: Reason = ""
    upstream: str = ""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    decided_s: float | None = None
    """From when the request was read to the decision that stood."""
    predicted_ttft_s: float | None = None
    ttft_s: float | None = None
    itl_max_s: float | None = None
    outcome: str = ""
    """`ok`, `cancelled`, or an error's code; empty while it runs."""
    continued: str = ""
    """Name of the upstream that went on with an answer which the engine had begun."""
    continued_at: int | None = None
    """How many characters of the answer the engine had sent by then."""

    def decided(self, decision: Decision) -> None:
        """A decision was taken, perhaps after an earlier one could not be carried out."""
        self.route, self.reason, self.fleet_reason = decision.route, decision.reason, decision.fleet_reason


class DecisionLog:
    """Owner of the last REMEMBERED entries, and of the counts of all."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=REMEMBERED)
        self.counts: dict[tuple[str, str], int] = {}

    def begin(self, entry: Entry) -> Entry:
        """A request is to be decided on; the entry is filled in as it goes."""
        self._entries.append(entry)
        return entry

    def count(self, entry: Entry) -> None:
        """Its last decision stands."""
        key = (_NAMES.get(entry.route, entry.route), entry.reason)
        self.counts[key] = self.counts.get(key, 0) + 1

    def last(self, limit: int) -> Iterator[dict[str, Any]]:
        """The newest first."""
        for number, entry in enumerate(reversed(self._entries)):
            if number >= limit:
                return
            yield asdict(entry)


_NAMES = {"local": "admitted", "late": "best-effort", "refuse": "refused"}
