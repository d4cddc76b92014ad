"""What prompts have in common is computed once: which cells are known, where they lie, and which to give up. Pure.

Known cells lie in a slot (of a running answer, or left behind by one that ended) or in a saved copy, whose form is the
caller's business. All are `Prefix` objects in one radix tree for each namespace. What to give up is decided by GreedyDual
(Young 1994; Cao and Irani 1997): recency, weighted by what it would cost to compute again the tokens that no other prefix has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edge.engine.radix import RadixTree

LEAST_SHARED_TOKENS = 16
"""Beginnings shorter than this are computed: to copy them costs as much."""
EVERYONE = "\x00everyone"
"""Namespace of pinned prefixes: no key's name holds a NUL."""


@dataclass(slots=True, eq=False)
class Prefix:
    """Tokens whose cells are known. Written by PrefixCache; `computed` also by the scheduler while its answer runs."""

    tokens: Sequence[int]
    namespace: str
    computed: int = 0
    """How many of the tokens have cells in the slot."""
    slot: int = -1
    live: bool = False
    """A running answer holds the slot."""
    saved: Any = None
    """A copy outside the slots, None if there is none."""
    saved_tokens: int = 0
    saved_bytes: int = 0
    pinned: bool = False
    worth: float = 0.0
    """GreedyDual's value; the least goes first."""

    def usable(self, matched: int) -> int:
        """Of `matched` first tokens, how many can be had now."""
        return min(matched, max(self.computed if self.slot >= 0 else 0, self.saved_tokens))


@dataclass(frozen=True, slots=True)
class Match:
    """A prefix that shares `matched` tokens with a prompt, of which `usable` can be had now."""

    prefix: Prefix
    matched: int
    usable: int


class PrefixCache:
    """Owner of all prefixes. `enabled` false: nothing is ever found or kept."""

    def __init__(self, *, cap_bytes: int, isolated: bool, enabled: bool = True) -> None:
        self.enabled = enabled
        self._cap_bytes = cap_bytes
        self._isolated = isolated
        self._trees: dict[str, RadixTree[Prefix]] = {}
        self._slots: dict[int, Prefix] = {}
        self._saved: dict[Prefix, None] = {}
        """In the order in which they were saved: ties are decided alike every time."""
        self._floor = 0.0
        self.saved_bytes = 0
        self.hits = self.evictions = 0

    def namespace(self, key: str) -> str:
        """Where a key's prefixes are kept: a place of its own if keys are isolated, else one for all."""
        return key if self._isolated else ""

    # --- finding ------------------------------------------------------------------------------------------------------

    def match(self, tokens: Sequence[int], key: str) -> Match | None:
        """What can be had of a prompt's beginning; the last token is always left to compute, since its logits are wanted.
        None if it is too little to be worth it."""
        best: Match | None = None
        most = len(tokens) - 1
        for tree in self._visible(key):
            for length, prefix in tree.matches(tokens):
                matched = min(length, most)
                if matched < LEAST_SHARED_TOKENS or (best is not None and matched < best.usable):
                    break
                found = Match(prefix, matched, prefix.usable(matched))
                if found.usable >= LEAST_SHARED_TOKENS and (best is None or _rank(found) > _rank(best)):
                    best = found
        return best

    def in_the_making(self, tokens: Sequence[int], key: str, more_than: int) -> Match | None:
        """A running answer whose prompt shares more than `more_than` tokens, the last of which it has yet to compute."""
        most = len(tokens) - 1
        for tree in self._visible(key):
            for length, prefix in tree.matches(tokens):
                matched = min(length, most)
                if matched < more_than + LEAST_SHARED_TOKENS:
                    break
                if prefix.live and prefix.computed < matched:
                    return Match(prefix, matched, prefix.computed)
        return None

    def _visible(self, key: str) -> Iterator[RadixTree[Prefix]]:
        for namespace in dict.fromkeys((self.namespace(key), EVERYONE)):
            if (tree := self._trees.get(namespace)) is not None:
                yield tree

    def used(self, prefix: Prefix, recompute_s: float) -> None:
        """A request took its beginning from this prefix."""
        self.hits += 1
        prefix.worth = self._floor + recompute_s

    # --- slots --------------------------------------------------------------------------------------------------------

    def resident(self, slot: int) -> Prefix | None:
        """What lies in a slot."""
        return self._slots.get(slot)

    def occupy(self, slot: int, tokens: Sequence[int], key: str, *, computed: int, recompute_s: float) -> Prefix | None:
        """An answer with this prompt takes a slot, `computed` cells of which are its own already. What lay there before
        must be vacated first."""
        if not self.enabled:
            return None
        worth = self._floor + recompute_s
        prefix = Prefix(tokens, self.namespace(key), computed, slot, live=True, worth=worth)
        self._slots[slot] = prefix
        self._insert(prefix)
        return prefix

    def leave(self, slot: int, tokens: Sequence[int], recompute_s: float) -> bool:
        """The answer in a slot has ended, and `tokens` have cells there. True: they stay, for whoever comes next."""
        prefix = self._slots.pop(slot, None)
        if prefix is None:
            return False
        self._trees[prefix.namespace].remove(prefix)
        prefix.live = False
        stays = len(tokens) >= LEAST_SHARED_TOKENS
        if stays:
            prefix.tokens, prefix.computed = tuple(tokens), len(tokens)
            prefix.worth = self._floor + recompute_s
            self._slots[slot] = prefix
        else:
            prefix.tokens, prefix.computed, prefix.slot = tuple(prefix.tokens[: prefix.saved_tokens]), 0, -1
        if stays or prefix.saved is not None:
            self._insert(prefix)
        return stays

    def vacate(self, slot: int) -> Prefix | None:
        """What lay in a slot is about to be overwritten. Returns the prefix; a saved copy of it stays."""
        prefix = self._slots.pop(slot, None)
        if prefix is None:
            return None
        prefix.slot, prefix.computed, prefix.live = -1, 0, False
        tree = self._trees[prefix.namespace]
        tree.remove(prefix)
        if prefix.saved is not None:
            prefix.tokens = tuple(prefix.tokens[: prefix.saved_tokens])
            self._insert(prefix)
        return prefix

    def own_tokens(self, prefix: Prefix) -> int:
        """Tokens of a prefix that nobody else has."""
        return len(prefix.tokens) - self._trees[prefix.namespace].shared(prefix)

    # --- saved copies -------------------------------------------------------------------------------------------------

    def keep(
        self, prefix: Prefix, saved: Any, tokens: int, size_bytes: int, *, spare: Prefix | None = None
    ) -> list[Any]:
        """Remember a copy of a prefix's first `tokens` cells. Returns copies to be freed, perhaps the new one, never that of
        `spare`."""
        if not prefix.pinned and not self.has_room_for(size_bytes):
            if prefix.slot < 0 and prefix.saved is None:
                self._trees[prefix.namespace].remove(prefix)
            return [saved]
        freed = [self._forget_saved(prefix)] if prefix.saved is not None else []
        prefix.saved, prefix.saved_tokens, prefix.saved_bytes = saved, tokens, size_bytes
        self._saved[prefix] = None
        self.saved_bytes += size_bytes
        # A shorter prefix that this one goes on from has nothing of its own any more.
        for length, shorter in list(self._trees[prefix.namespace].along(prefix.tokens)):
            if shorter in (prefix, spare) or shorter.saved is None:
                continue
            if length <= tokens and not shorter.pinned:
                freed.append(self._drop_saved(shorter))
        while self.saved_bytes > self._cap_bytes and (victim := self._cheapest(spare)) is not None:
            self._floor = max(self._floor, victim.worth)
            self.evictions += 1
            freed.append(self._drop_saved(victim))
        return freed

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether a copy of this size can be kept: one that fits into the cap beside those that are pinned."""
        return size_bytes + sum(p.saved_bytes for p in self._saved if p.pinned) <= self._cap_bytes

    def adopt(
        self, tokens: Sequence[int], key: str, saved: Any, size_bytes: int, *, pinned: bool, recompute_s: float
    ) -> list[Any]:
        """A prefix that exists as a copy only: read from disk, or computed ahead. Returns copies to be freed."""
        namespace = EVERYONE if pinned else self.namespace(key)
        prefix = Prefix(tuple(tokens), namespace, pinned=pinned, worth=self._floor + recompute_s)
        self._insert(prefix)
        return self.keep(prefix, saved, len(tokens), size_bytes)

    def by_worth(self) -> list[Prefix]:
        """All prefixes, in slots and as copies, the most valuable first."""
        return sorted({*self._slots.values(), *self._saved}, key=lambda p: p.worth, reverse=True)

    def shrink(self) -> list[Any]:
        """Give up the cheapest saved copy that is not pinned. Returns copies to be freed: none if there is none."""
        victim = self._cheapest()
        return [] if victim is None else [self._drop_saved(victim)]

    # --- parts --------------------------------------------------------------------------------------------------------

    def _insert(self, prefix: Prefix) -> None:
        self._trees.setdefault(prefix.namespace, RadixTree()).insert(prefix.tokens, prefix)

    def _cheapest(self, spare: Prefix | None = None) -> Prefix | None:
        return min((p for p in self._saved if not p.pinned and p is not spare), key=lambda p: p.worth, default=None)

    def _forget_saved(self, prefix: Prefix) -> Any:
        saved, prefix.saved, prefix.saved_tokens = prefix.saved, None, 0
        self.saved_bytes -= prefix.saved_bytes
        prefix.saved_bytes = 0
        self._saved.pop(prefix, None)
        return saved

    def _drop_saved(self, prefix: Prefix) -> Any:
        saved = self._forget_saved(prefix)
        if prefix.slot < 0:
            self._trees[prefix.namespace].remove(prefix)
        return saved

    def check(self) -> None:
        """Assert the invariants; for tests."""
        for slot, prefix in self._slots.items():
            assert prefix.slot == slot and prefix.computed <= len(prefix.tokens)
        in_trees = sum(len(tree) for tree in self._trees.values())
        assert in_trees == len({*self._slots.values(), *self._saved})
        assert self.saved_bytes == sum(p.saved_bytes for p in self._saved)
        assert all(p.saved_tokens <= len(p.tokens) for p in self._saved)


def _rank(match: Match) -> tuple[int, bool, int]:
    """Most tokens; then cells in an idle slot; then the smaller copy."""
    prefix = match.prefix
    return (match.usable, prefix.slot >= 0 and not prefix.live, -len(prefix.tokens))
