"""Which models stay, which leave, and which is loaded next. Pure: what is known comes in, with the time; steps come out.

Wishes are served in the order in which they came, so that no model starves. Only the first that lacks room makes others leave:
if each did, models under constant load would chase each other. One that fits without taking anything from those ahead
goes past them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["loading", "serving", "draining", "leaving"]
"""`draining`: its room is wanted, so it takes no new requests; it serves again when the wish is withdrawn. `leaving`: it goes,
whatever comes, once its last answer has ended."""


@dataclass(frozen=True, slots=True)
class Resident:
    """One loaded version of a model. It holds its bytes until its process has ended."""

    id: int
    model: str
    bytes: int
    state: State
    busy: bool
    """It answers somebody."""
    fixed: bool
    """The main model, or a pinned one: never made to leave for another model."""
    last_use_s: float
    settled_s: float
    """Until then it is let be while it is busy: to load it took that long, and those who waited for it get their answers."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that is to be loaded. `replaces`: the resident that leaves when it is ready, or before where there is no room for
    both."""

    model: str
    bytes: int
    replaces: int | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """What is to be done now."""

    load: tuple[str, ...] = ()
    evict: frozenset[int] = frozenset()
    """Idle: they leave at once."""
    drain: frozenset[int] = frozenset()
    """Busy: no new requests. A draining one that is not named here serves again."""
    impossible: tuple[str, ...] = ()
    """Wishes that would not fit if everything that may leave had left."""


def decide(now_s: float, room_bytes: int, residents: Sequence[Resident], wishes: Iterable[Wish]) -> Steps:
    """One decision over all wishes, the oldest first."""
    ledger = _Ledger(now_s, room_bytes, residents)
    for wish in ([Wish("", 0)] if ledger.free < 0 else []) + list(
        wishes
    ):  # more was taken than was foreseen: someone leaves
        ledger.take(wish)
    return ledger.steps()


class _Ledger:
    """One run of `decide`: what is free, what will be, and who was chosen to leave."""

    def __init__(self, now_s: float, room_bytes: int, residents: Sequence[Resident]) -> None:
        self._now_s, self._room, self._residents = now_s, room_bytes, residents
        self.free = room_bytes - sum(r.bytes for r in residents)
        self._coming = sum(r.bytes for r in residents if r.state == "leaving")
        self._victims: list[Resident] = []
        self._loads: list[str] = []
        self._impossible: list[str] = []
        self._blocked = False

    def take(self, wish: Wish) -> None:
        """Serve it, make room for it, or leave it waiting."""
        if wish.bytes > self._room - self._fixed_bytes(wish):
            if wish.model:
                self._impossible.append(wish.model)
        elif any(r.model == wish.model and r.state == "draining" and r.id != wish.replaces for r in self._residents):
            pass  # it serves again if nobody ahead wants its room, and is loaded anew when it has left
        elif self._blocked:
            if wish.bytes <= min(self.free, self.free + self._coming):
                self._load(wish)
        elif wish.bytes <= self.free:
            self._load(wish)
        else:
            self._make_room(wish)

    def _fixed_bytes(self, wish: Wish) -> int:
        """What stays. Of two versions of a model one leaves before long."""
        largest: dict[str, int] = {}
        for r in self._residents:
            if r.fixed and r.state != "leaving" and r.id != wish.replaces:
                largest[r.model] = max(largest.get(r.model, 0), r.bytes)
        return sum(largest.values())

    def _load(self, wish: Wish) -> None:
        self._loads.append(wish.model)
        self.free -= wish.bytes

    def _make_room(self, wish: Wish) -> None:
        """Choose who leaves. What comes free belongs to this wish; those behind get what it leaves."""
        self._blocked = True
        needed = wish.bytes - self.free - self._coming
        others = [r for r in self._residents if not r.fixed and r.state != "leaving" and r.id != wish.replaces]
        beside = needed <= sum(r.bytes for r in others)
        candidates = [r for r in others if r.state != "loading"]
        if not beside:
            candidates += [r for r in self._residents if r.id == wish.replaces and r.state in ("serving", "draining")]
        if needed > sum(
            r.bytes for r in candidates
        ):  # it will be enough when a load has ended, or a version was replaced
            self._coming -= wish.bytes
            return
        ripe = [r for r in candidates if not r.busy or r.state == "draining" or r.settled_s <= self._now_s]
        self._victims = _fewest(sorted(ripe, key=_order), needed)
        found = sum(r.bytes for r in self._victims)
        self._coming += found - wish.bytes

    def steps(self) -> Steps:
        """All that was decided."""
        return Steps(
            load=tuple(self._loads),
            evict=frozenset(r.id for r in self._victims if not r.busy),
            drain=frozenset(r.id for r in self._victims if r.busy),
            impossible=tuple(self._impossible),
        )


def _order(resident: Resident) -> tuple[bool, bool, float]:
    """Those that drain already, then idle ones by last use, then busy ones by their time here: each gets its turn."""
    when_s = resident.settled_s if resident.busy else resident.last_use_s
    return resident.state != "draining", resident.busy, when_s


def _fewest(ordered: list[Resident], needed: int) -> list[Resident]:
    """From the first on until it is enough; then without those that the later ones made needless."""
    chosen: list[Resident] = []
    found = 0
    for resident in ordered:
        if found >= needed:
            break
        chosen.append(resident)
        found += resident.bytes
    for resident in reversed(chosen.copy()):
        if found - resident.bytes >= needed:
            chosen.remove(resident)
            found -= resident.bytes
    return chosen
