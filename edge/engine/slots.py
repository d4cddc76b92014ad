"""The pool of decode slots. A slot is a sequence id of the native context, held by at most one sequence."""

from __future__ import annotations

from collections.abc import Iterator

from edge.engine.sequence import Sequence


class SlotPool:
    """Owner of which sequence holds which slot."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._holders: list[Sequence | None] = [None] * size

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self._holders.count(None)

    def free_slots(self) -> list[int]:
        """Numbers of the slots that nobody holds."""
        return [slot for slot, holder in enumerate(self._holders) if holder is None]

    def take(self, sequence: Sequence, slot: int) -> None:
        """Give a free slot to `sequence`."""
        assert self._holders[slot] is None
        self._holders[slot] = sequence
        sequence.slot = slot

    def release(self, sequence: Sequence) -> int | None:
        """Take the slot back. Returns its number, None if the sequence held none."""
        slot = sequence.slot
        if slot < 0:
            return None
        assert self._holders[slot] is sequence
        self._holders[slot] = None
        sequence.slot = -1
        return slot

    def holders(self) -> Iterator[Sequence]:
        """Sequences that hold a slot, by slot number."""
        return (holder for holder in self._holders if holder is not None)
