"""What goes into the next pass: texts of several requests, by deadline and length. Pure.

A text's deadline is its request's arrival plus the SLO, and for the later texts of a long list so much more as the ones before
them take: so a single sentence goes before the rest of somebody's thousand, and the thousand still moves on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROW_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Texts in a pass: few shapes, so that the library's memory does not grow with every new one."""
_WORTH_FILLING = 0.75
"""A pass is filled up with empty texts if so much of it is full; else the next smaller one is taken."""
_LIKE = 0.75
"""Texts of one pass are at least this part as long as the longest: the rest would be computed for nothing."""
_SHARE = 0.6
"""Part of the SLO that one pass may take: who comes while it runs waits for its end."""
_FEW = 4
"""So few texts may take twice as long as the target, and more while others strain the machine: smaller passes get less done in
the same time, which is worse for all who wait."""
_GATHER = 0.25
"""Part of a pass's own time that it is delayed at most to gather more."""
_STEPS = ((64, 2), (128, 4), (256, 8), (1 << 30, 16))


def length_bucket(tokens: int, most: int) -> int:
    """The length to which texts of `tokens` are filled up; at most `most`."""
    step = next(step for limit, step in _STEPS if tokens <= limit)
    return min(most, -(-tokens // step) * step)


@dataclass(frozen=True, slots=True)
class Row:
    """One text of a request. `length` in tokens, filled up; 0: no text, but tensors, which are a pass by themselves."""

    request_id: int
    index: int
    length: int
    arrived_s: float
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What is computed next: these texts, filled up to `rows` texts of `length` tokens."""

    members: tuple[Row, ...]
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class Room:
    """What a pass may have: a part of the processor that it shares with so many, itself among them, and of the memory."""

    sharing: int
    cells: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing before this time, unless something comes. None: nothing is there."""

    until_s: float | None


@dataclass(slots=True)
class Costs:
    """What a pass takes: base + rows * (token * length + square * length^2), times what lately was seen beside it. `spans`: its
    attention goes over the whole pass, all texts in a row as if they were one."""

    base_s: float
    token_s: float
    square_s: float
    strain: float = 1.0
    spans: bool = False

    @classmethod
    def measured(cls, short: int, long: int, rows: int, one_s: float, several_s: float, long_s: float) -> Costs:
        """From three passes: one short text, `rows` short ones, a long one."""
        row_s = max(1e-6, (several_s - one_s) / max(1, rows - 1))
        base_s = max(0.0, one_s - row_s)
        if long <= short:
            return cls(base_s, row_s / short, 0.0)
        long_row_s = max(long_s - base_s, row_s)
        square_s = max(0.0, (long_row_s / long - row_s / short) / (long - short))
        return cls(base_s, max(0.0, row_s / short - square_s * short), square_s)

    def pass_s(self, rows: int, length: int) -> float:
        """Seconds of a pass, as things are."""
        reach = rows * length if self.spans else length
        return self.strain * (self.base_s + rows * length * (self.token_s + self.square_s * reach))

    def took(self, rows: int, length: int, seconds: float) -> None:
        """Learn from a pass."""
        foreseen_s = self.pass_s(rows, length) / self.strain
        if foreseen_s > 0:
            seen = min(100.0, max(0.25, seconds / foreseen_s))
            self.strain += 0.1 * (seen - self.strain)


class Batcher:
    """Owner of the texts that wait. Time comes in with every question."""

    def __init__(self, costs: Costs, *, slo_s: float, most_rows: int, most_cells: int, lanes: int = 1) -> None:
        """`most_rows`: texts in a pass; `most_cells`: texts times length, for which there is memory, in all passes that run at
        the same time; `lanes`: how many those may be."""
        self.costs = costs
        self._slo_s, self._most_rows, self._most_cells, self._lanes = slo_s, most_rows, most_cells, lanes
        self._rows: list[Row] = []
        self._company = 1
        """Requests that took part in one of the last passes: so many are likely to come again together."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> tuple[Row, ...]:
        """Those that wait, the most urgent first."""
        return tuple(self._rows)

    def add(self, request_id: int, lengths: Iterable[int], now_s: float) -> None:
        """Texts of a new request, by the lengths that they are filled up to; 0 for tensors."""
        ahead_s = 0.0
        for index, length in enumerate(lengths):
            self._rows.append(Row(request_id, index, length, now_s, now_s + self._slo_s + ahead_s))
            ahead_s += self.costs.pass_s(1, length)
        self._rows.sort(key=lambda row: (row.deadline_s, row.request_id, row.index))

    def drop(self, request_id: int) -> None:
        """Nobody waits for a request any more."""
        self._rows = [row for row in self._rows if row.request_id != request_id]

    def wait_s(self) -> float:
        """Until a text that came now would be answered."""
        return sum(self.costs.pass_s(1, row.length) for row in self._rows) + self.costs.pass_s(1, 16)

    def most_rows(self, length: int, room: Room) -> int:
        """Texts of a length that one pass may have."""
        fits = 1
        for rows in ROW_BUCKETS:
            pass_s = room.sharing * self.costs.pass_s(rows, length)
            in_time = pass_s <= self._slo_s * _SHARE or (rows <= _FEW and pass_s <= 2 * self._slo_s * self.costs.strain)
            if rows <= self._most_rows and rows * length <= room.cells and in_time:
                fits = rows
        return fits

    def next(self, now_s: float, passes: int = 0, cells: int = 0) -> Batch | Wait:
        """What to compute now, or until when to wait for more. `passes` run already, with so many `cells`."""
        if not self._rows or passes >= self._lanes:
            return Wait(None)
        first = self._rows[0]
        if first.length == 0:  # what they take nobody knows: they have the memory for themselves
            return Wait(None) if passes else self._taken([first], Room(1, 0))
        if passes and first.length > self._most_cells - cells:
            return Wait(None)
        room = self._room(first, passes, cells)
        chosen, most = self._like(first, room)
        if len(chosen) < most and (until_s := self._gathering(first, most)) > now_s:
            return Wait(until_s)
        return self._taken(chosen, room)

    def _room(self, first: Row, passes: int, cells: int) -> Room:
        """The next pass has the machine for itself only if nothing runs and it takes all that waits."""
        alone = Room(1, self._most_cells)
        if not passes and len(self._rows) <= self.most_rows(first.length, alone):
            return alone
        return Room(self._lanes, min(self._most_cells - cells, self._most_cells // self._lanes))

    def _like(self, first: Row, room: Room) -> tuple[list[Row], int]:
        """Texts of about its length to compute with it, the likest first; and how many there could be."""
        others = [row for row in self._rows if row is not first and row.length and _alike(row.length, first.length)]
        others.sort(key=lambda row: (abs(row.length - first.length), row.deadline_s))
        chosen, longest, shortest = [first], first.length, first.length
        most = self.most_rows(longest, room)
        for row in others:
            if len(chosen) >= most:
                break
            upper, lower = max(longest, row.length), min(shortest, row.length)
            fits = most if upper == longest else self.most_rows(upper, room)
            if len(chosen) < fits and _alike(lower, upper):
                chosen.append(row)
                longest, shortest, most = upper, lower, fits
        return chosen, most

    def _gathering(self, first: Row, most: int) -> float:
        """Until when more requests are waited for: only while as many as lately are on their way, and only within the slack."""
        requests = len({row.request_id for row in self._rows})
        if requests >= self._company or requests >= most:
            return 0.0
        pass_s = self.costs.pass_s(min(most, self._company), first.length)
        return min(first.arrived_s + _GATHER * pass_s, first.deadline_s - pass_s)

    def _taken(self, chosen: list[Row], room: Room) -> Batch:
        longest = max(row.length for row in chosen)
        most = self.most_rows(longest, room) if longest else 1
        rows = next((b for b in ROW_BUCKETS if b >= len(chosen)), ROW_BUCKETS[-1])
        if rows > most or len(chosen) < rows * _WORTH_FILLING:
            rows = max(b for b in ROW_BUCKETS if b <= len(chosen))
        members = tuple(chosen[:rows])
        gone = {(row.request_id, row.index) for row in members}
        self._rows = [row for row in self._rows if (row.request_id, row.index) not in gone]
        requests = len({row.request_id for row in members} | {row.request_id for row in self._rows})
        self._company = max(requests, self._company - 1)
        return Batch(members, rows, max(row.length for row in members))


def _alike(one: int, other: int) -> bool:
    return min(one, other) >= _LIKE * max(one, other)
