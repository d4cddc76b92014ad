"""Sets of sequence numbers, as the few ranges that they are. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

MOST_SPANS = 5000
"""What a record may carry: a node keeps to it, and a sink takes no more."""


class Ranges:
    """A set of whole numbers. `str` gives `3,5-9`; `Ranges.parse` reads that."""

    __slots__ = ("_spans",)

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """`spans`: (first, last), both belonging to the set; in any order, overlapping or not."""
        self._spans: list[tuple[int, int]] = []
        for first, last in spans:
            self.add(first, last)

    @classmethod
    def parse(cls, text: str) -> Ranges:
        """Of what `str` made. Raises ValueError on anything else."""
        found = cls()
        if not text:
            return found
        for part in filter(None, text.split(",")):
            first, dash, last = part.partition("-")
            found.add(int(first), int(last) if dash else int(first))
        return found

    def add(self, first: int, last: int | None = None) -> None:
        """Put the numbers from `first` to `last` (None: `first` alone) into the set."""
        last = first if last is None else last
        if last < first:
            return
        spans = self._spans
        at = bisect_left(spans, (first,))
        if at and spans[at - 1][1] >= first - 1:
            at -= 1
        end = at
        while end < len(spans) and spans[end][0] <= last + 1:
            first, last = min(first, spans[end][0]), max(last, spans[end][1])
            end += 1
        spans[at:end] = [(first, last)]

    def __or__(self, other: Ranges) -> Ranges:
        return Ranges([*self._spans, *other._spans])

    @property
    def spans(self) -> int:
        """Of how many pieces it is."""
        return len(self._spans)

    def split(self, most: int) -> Iterator[Ranges]:
        """The same in sets of at most so many pieces."""
        for start in range(0, len(self._spans), most):
            yield Ranges(self._spans[start : start + most])

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._spans, (number + 1,)) - 1
        return at >= 0 and self._spans[at][0] <= number <= self._spans[at][1]

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._spans == other._spans

    def __hash__(self) -> int:
        return hash(tuple(self._spans))

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self._spans)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self._spans)

    def __repr__(self) -> str:
        return f"Ranges({self})"

    @property
    def through(self) -> int:
        """The highest number such that 1 to it all belong to the set; 0 if 1 does not."""
        return self._spans[0][1] if self._spans and self._spans[0][0] <= 1 else 0
