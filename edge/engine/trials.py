"""Which thread count an engine tries while nobody waits, and when. Pure: time comes in as an argument."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from edge.engine.steps import Kind, StepModel
from edge.engine.threads import ThreadChoice

_PROMPT_TOKENS = 64
_EVERY_S = 0.25
_UNNOTICED_S = 0.008
"""Whoever arrives during so short a pass does not notice."""
_LONG_SHARE = 0.002
"""Of an idle engine's time, what longer trials may take: far less than one arrival in a hundred has to wait for one."""


class Trial(NamedTuple):
    """A pass with this many threads."""

    kind: Kind
    rows: int
    threads: int


class Trials:
    """Owner of their order and of when the next ones are due."""

    def __init__(self, threads: ThreadChoice, model: StepModel, *, rows_limit: int) -> None:
        self._threads, self._model = threads, model
        sizes: tuple[tuple[Kind, int], ...] = (("decode", 1), ("prompt", min(_PROMPT_TOKENS, rows_limit)))
        counts = threads.candidates if len(threads.candidates) > 1 else []
        self._waiting = deque(Trial(kind, rows, n) for kind, rows in sizes for n in counts)
        self._long_due_s = 0.0
        self.due_s = 0.0
        """When to ask next."""

    def next(self, now_s: float, cells: int, *, at_leisure: bool) -> Trial | None:
        """What to try now, behind so many cells. Long passes only at leisure, and seldom."""
        self.due_s = now_s + _EVERY_S
        short, long = list[Trial](), list[Trial]()
        for trial in self._waiting:
            takes_s = self._model.raw_s(trial.kind, trial.rows, cells)
            (short if takes_s < _UNNOTICED_S else long).append(trial)
        due = (long if at_leisure and now_s >= self._long_due_s else []) or short
        if not due:
            return None
        self._waiting.remove(due[0])
        self._waiting.append(due[0])
        return due[0]

    def tried(self, trial: Trial, ratio: float, took_s: float, now_s: float) -> None:
        """It took `took_s`, `ratio` times what the table says for the count in use."""
        if took_s >= _UNNOTICED_S:
            self._long_due_s = now_s + took_s / _LONG_SHARE
        if trial.threads == self._threads.of(trial.kind):
            self._model.proved(trial.kind, ratio)
        self.learn(trial.kind, trial.threads, ratio)

    def learn(self, kind: Kind, threads: int, ratio: float) -> bool:
        """Take in a pass with some count of threads. True if another count is used from now on."""
        self._threads.tried(kind, threads, ratio)
        longer = self._threads.decide(kind)
        if longer is not None:
            self._model.rescale(kind, longer)
        return longer is not None
