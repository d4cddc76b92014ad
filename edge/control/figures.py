"""What a node's metrics say in a few figures. Pure: times come in as arguments.

Counters are cumulative since the node's process began, histograms hold what one interval added (`edge.telemetry.records`), so
shares are taken over a window: what came between its first and its last report of one boot.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from edge.telemetry.collector import ITL

WINDOW_S, _APART_S = 3600.0, 60.0
"""Of a window reports are kept this far apart: of 5,000 nodes all would take half a gigabyte."""
_MOST_MODELS = 16
_LONGEST_LABEL = 200
_MOST = 2.0**53
"""A count beyond is none."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one report. All but `gaps` are totals since the boot began."""

    admitted: float = 0.0
    fleet: float = 0.0
    decided: float = 0.0
    late_first: float = 0.0
    late_gaps: float = 0.0
    gaps: float = 0.0
    """Gaps between tokens in this interval."""
    models: tuple[str, ...] = ()


def read_counts(document: dict[str, Any]) -> Counts:
    """Of an OTLP/JSON metrics request as nodes send it. Raises KeyError, TypeError, ValueError or IndexError for another."""
    admitted = fleet = decided = late_first = late_gaps = gaps = 0.0
    models: list[str] = []
    for metric in document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
        name = metric["name"]
        if name == "edge_admission":
            for labels, value in _sums(metric):
                decided += value
                admitted += value if labels.get("decision") == "admitted" else 0.0
                fleet += value if labels.get("decision") == "fleet" else 0.0
        elif name == "edge_slo_violations":
            for labels, value in _sums(metric):
                late_first += value if labels.get("kind") == "ttft" else 0.0
                late_gaps += value if labels.get("kind") == "itl" else 0.0
        elif name == ITL:
            gaps += sum(_count(point["count"]) for point in metric["exponentialHistogram"]["dataPoints"])
        elif name == "edge_model_ready":
            for point in metric["gauge"]["dataPoints"]:
                if _count(point["asDouble"]) > 0 and (model := _labels(point).get("model")):
                    models.append(model)
    return Counts(admitted, fleet, decided, late_first, late_gaps, gaps, tuple(sorted(models)[:_MOST_MODELS]))


@dataclass(slots=True)
class Window:
    """Of one node. Owned by the registry."""

    boot_id: str = ""
    reports: deque[tuple[float, Counts]] = field(default_factory=deque)

    def add(self, boot_id: str, at_s: float, counts: Counts) -> None:
        """A live report. Another boot begins anew."""
        if boot_id != self.boot_id:
            self.boot_id = boot_id
            self.reports.clear()
        if len(self.reports) > 1 and at_s < self.reports[-2][0] + _APART_S:
            _, last = self.reports.pop()
            models = last.models if last.models == counts.models else counts.models
            counts = replace(counts, gaps=last.gaps + counts.gaps, models=models)
        self.reports.append((at_s, counts))
        while self.reports[0][0] < at_s - WINDOW_S and len(self.reports) > 1:
            self.reports.popleft()

    def figures(self) -> dict[str, Any]:
        """`slo_attainment` and `fallback_rate` (0..1) where there was anything to judge, `requests`, `models`.

        With one report only, what it says is taken from the boot's begin on.
        """
        if not self.reports:
            return {}
        last = self.reports[-1][1]
        first = self.reports[0][1] if len(self.reports) > 1 else Counts()
        gaps = sum(counts.gaps for _, counts in list(self.reports)[1 if len(self.reports) > 1 else 0 :])
        decided, admitted = last.decided - first.decided, last.admitted - first.admitted
        found: dict[str, Any] = {"models": list(last.models), "requests": round(min(decided, _MOST))}
        if decided > 0:
            found["fallback_rate"] = (last.fleet - first.fleet) / decided
        shares = []
        if admitted > 0:
            shares.append(1 - (last.late_first - first.late_first) / admitted)
            if gaps > 0:
                shares.append(1 - (last.late_gaps - first.late_gaps) / gaps)
            found["slo_attainment"] = max(0.0, min(shares))
        return found


def _sums(metric: dict[str, Any]) -> list[tuple[dict[str, str], float]]:
    return [(_labels(point), _count(point["asDouble"])) for point in metric["sum"]["dataPoints"]]


def _labels(point: dict[str, Any]) -> dict[str, str]:
    return {a["key"]: str(a["value"].get("stringValue", ""))[:_LONGEST_LABEL] for a in point.get("attributes", ())}


def _count(value: Any) -> float:
    """Raises ValueError for what is no count, as TypeError for what is no number."""
    found = float(value)
    if not math.isfinite(found) or abs(found) > _MOST:
        raise ValueError(f"{found} is no count")
    return found
