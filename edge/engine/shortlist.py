"""The few tokens that a draw can fall on, found without sorting or copying a vocabulary of 150,000."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_BLOCK = 16
_FEW = 4096
"""So many allowed tokens are cheaper to take all than to choose from."""


class Shortlist:
    """Finds the best of a row of logits. Owner of scratch arrays for one vocabulary: one thread only, the loop's.

    Split into blocks of 16, the row has at least `count` values not below the `count`-th largest of the blocks' maxima; so
    what lies at or above it holds the `count` best, and hardly more. That is exact, and two linear passes instead of a sort.
    """

    def __init__(self, vocabulary: int) -> None:
        self._columns = vocabulary // _BLOCK
        self._peaks = np.empty(self._columns, np.float32)
        self._keep = np.empty(vocabulary, np.bool_)
        self._scratch = np.empty(vocabulary, np.float32)
        self._all = np.arange(vocabulary)

    def candidates(self, logits: npt.NDArray[np.float32], count: int, touched: Tokens, allowed: Flags | None) -> Tokens:
        """Ids, ascending, that hold the `count` best of the allowed tokens and all of `touched` that are allowed.

        `logits`: float32[vocabulary], all numbers; `allowed`: bool[vocabulary], None for all.
        """
        if allowed is not None and np.count_nonzero(allowed) <= max(_FEW, count):
            return np.flatnonzero(allowed)
        if count >= self._columns:
            return self._all if allowed is None else np.flatnonzero(allowed)
        keep = self._best(logits, count)
        if allowed is not None:
            keep &= allowed
            if np.count_nonzero(keep) < count:  # the best are forbidden: look among the others
                keep = self._best(self._masked(logits, allowed), count)
                keep &= allowed
            touched = touched[allowed[touched]]
        keep[touched] = True
        return np.flatnonzero(keep)

    def largest(self, logits: npt.NDArray[np.float32], allowed: Flags) -> int:
        """Id of the largest of the allowed, of which there must be one."""
        if np.count_nonzero(allowed) <= _FEW:
            tokens = np.flatnonzero(allowed)
            return int(tokens[logits[tokens].argmax()])
        return int(self._masked(logits, allowed).argmax())

    def top(self, logits: npt.NDArray[np.float32], count: int) -> Tokens:
        """Ids of the `count` largest, largest first."""
        found = np.flatnonzero(self._best(logits, count)) if count < self._columns else self._all
        return found[np.argsort(-logits[found], kind="stable")][:count]

    def log_total(self, logits: npt.NDArray[np.float32]) -> float:
        """Logarithm of the sum of the exponentials."""
        peak = logits.max()
        np.exp(np.subtract(logits, peak, out=self._scratch), out=self._scratch)
        return float(peak) + math.log(float(self._scratch.sum()))

    def _masked(self, logits: npt.NDArray[np.float32], allowed: Flags) -> npt.NDArray[np.float32]:
        np.copyto(self._scratch, logits)
        np.copyto(self._scratch, -np.inf, where=np.logical_not(allowed, out=self._keep))
        return self._scratch

    def _best(self, logits: npt.NDArray[np.float32], count: int) -> Flags:
        """Flags of the `count` best and a few more, in an array that the next call overwrites. 0 < count < columns."""
        whole = self._columns * _BLOCK
        # Column i of the reshaped row is a block: maxima over columns run along memory, over rows they would not.
        np.maximum.reduce(logits[:whole].reshape(_BLOCK, self._columns), axis=0, out=self._peaks)
        least = np.partition(self._peaks, self._columns - count)[self._columns - count]
        np.greater_equal(logits, least, out=self._keep)
        return self._keep
