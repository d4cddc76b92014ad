"""Cells on the move: into slots, between them, and out into copies, as the scheduler has placed whom.

Belongs to the engine's loop and runs under its lock. Which cells are known, and what they are worth, is for the prefix cache to
say.
"""

from __future__ import annotations

import time

from edge.engine.llama.context import Context, Saved
from edge.engine.prefix import Prefix
from edge.engine.scheduler import Scheduler
from edge.engine.seating import Placement
from edge.engine.sequence import Sequence


class Cells:
    """Moves the cells of answers; keeps no account of its own."""

    def __init__(self, context: Context, scheduler: Scheduler) -> None:
        self._context, self._scheduler = context, scheduler

    def place(self, placement: Placement) -> None:
        """Make a slot hold the beginning of a prompt, and nothing else."""
        slot, source, tokens = placement.slot, placement.source, placement.tokens
        cache, context = self._scheduler.cache, self._context
        resident = cache.resident(slot) if placement.save_resident else None
        if (
            resident is not None
            and self._may_save(resident, placement)
            and (saved := self._snapshot(resident)) is not None
        ):
            self._keep(resident, saved, spare=source)
        if placement.how == "stay":
            cache.vacate(slot)
            if not context.forget(slot, tokens):
                context.forget(slot)
                tokens = 0
        elif source is None:
            self.clear(slot)
        elif not self._copied(source, tokens, slot):
            tokens = 0
        self._scheduler.placed(placement, tokens)

    def share(self, sequence: Sequence, siblings: list[Sequence]) -> None:
        """Give siblings the cells of a prompt: through a copy of those that there are. The library's own copy from slot to slot
        takes all that a slot has room for, inside the next pass, which others' next tokens wait for."""
        saved = self._context.save(sequence.slot, sequence.cursor) if siblings else None
        for sibling in siblings:
            self._context.forget(sibling.slot)
            if saved is None or not self._context.restore(saved, sibling.slot):
                self._context.copy(sequence.slot, sibling.slot)
        if saved is not None:
            self._context.release(saved)

    def clear(self, slot: int) -> None:
        """Empty a slot; a saved copy of what lay there stays."""
        self._scheduler.cache.vacate(slot)
        self._context.forget(slot)

    def make_room(self) -> bool:
        """In the unified layout all cells are shared: give up what nobody uses. False if there is nothing left."""
        cache = self._scheduler.cache
        for slot in self._scheduler.slots.free_slots():
            if cache.resident(slot) is not None:
                self.clear(slot)
                return True
        freed = cache.shrink()
        for saved in freed:
            self._context.release(saved)
        return bool(freed)

    def _copied(self, source: Prefix, tokens: int, slot: int) -> bool:
        """Give a slot another prefix's first cells. False if they are gone or libllama refuses; the slot is empty then."""
        saved: Saved | None = source.saved if source.saved_tokens >= tokens else self._snapshot(source)
        self.clear(slot)
        copied = saved is not None and self._context.restore(saved, slot)
        if saved is not None and saved is not source.saved:
            self._keep(source, saved)
        if copied and self._context.forget(slot, tokens):
            return True
        self._context.forget(slot)
        return False

    def _may_save(self, prefix: Prefix, placement: Placement) -> bool:
        size_bytes = prefix.computed * self._context.cell_bytes
        return self._context.shape.unified or self._scheduler.has_time_to_save(size_bytes, time.monotonic(), placement)

    def _snapshot(self, prefix: Prefix) -> Saved | None:
        """A copy of a slot's prefix outside the slots."""
        return self._context.save(prefix.slot, prefix.computed) if prefix.slot >= 0 else None

    def _keep(self, prefix: Prefix, saved: Saved, spare: Prefix | None = None) -> None:
        for freed in self._scheduler.cache.keep(prefix, saved, prefix.computed, saved.size_bytes, spare=spare):
            self._context.release(freed)
