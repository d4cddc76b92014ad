"""Whether this machine is being slowed down, by heat or by its power supply. Pure.

A power cap is no sign: a card at its cap runs as it always runs there, and its step times were learned so. It has a series of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.probes.readings import Readings

_OVER_AFTER_S = 30.0
"""Signs come and go within seconds; a slowdown is over when there was none for so long."""
_NO_SIGN = frozenset({"power_cap"})


@dataclass(frozen=True, slots=True)
class Change:
    """A slowdown begins or is over. `signs` says by what it is seen."""

    begins: bool
    signs: tuple[str, ...]


class ThrottleWatch:
    """Owner of the judgement. `active` is None where nothing on this machine could tell."""

    def __init__(self) -> None:
        self.active: bool | None = None
        self.begins = 0
        """How often one began."""
        self._counts: dict[str, int] = {}
        self._seen_s = 0.0

    def look(self, readings: Readings) -> Change | None:
        """At the newest readings. Returns what has changed by them."""
        tells, signs = self._signs(readings)
        if signs:
            self._seen_s = readings.at_s
            if not self.active:
                self.active = True
                self.begins += 1
                return Change(True, tuple(sorted(signs)))
        elif self.active and readings.at_s - self._seen_s >= _OVER_AFTER_S:
            self.active = False if tells else None
            return Change(False, ())
        elif self.active is None and tells:
            self.active = False
        return None

    def _signs(self, readings: Readings) -> tuple[bool, set[str]]:
        """(something can tell, what says that it is so)."""
        tells, signs = False, set[str]()
        for gpu in readings.gpus:
            if gpu.throttle is not None:
                tells = True
                signs |= {f"gpu {reason}" for reason in gpu.throttle - _NO_SIGN}
        for name, share in readings.host.cooling.items():
            tells = True
            if share > 0:
                signs.add(f"kernel holds {name} back")
        counts = dict(readings.board.over_current) if readings.board is not None else {}
        if readings.host.cpu_throttles is not None:
            counts["cpu heat"] = readings.host.cpu_throttles
        for name, count in counts.items():
            tells = True
            if count > self._counts.get(name, count):
                signs.add(name)
        self._counts |= counts  # one that cannot be read for once counts on from where it was
        return tells, signs
