"""The child's signs of life: what its passes took, told at intervals, and a pass of its own when none was for a while."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from edge.machine import resident_bytes
from edge.messages import Message
from edge.onnx.batcher import Batcher
from edge.onnx.lanes import Lanes
from edge.onnx.messages import TensorStats
from edge.onnx.model import Model

_STATS_S = 0.5
_REMEMBERED = 512


class Vitals:
    """Owner of the counts of passes. Used by the loop's thread; `say` by any."""

    def __init__(
        self,
        model: Model,
        batcher: Batcher,
        lanes: Lanes,
        heartbeat_s: float,
        send: Callable[[Iterable[Message]], None],
    ) -> None:
        self._model, self._batcher, self._lanes = model, batcher, lanes
        self._heartbeat_s, self._send = heartbeat_s, send
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._passes = self._rows = 0
        self._forward_s = time.monotonic()
        self._told_s = 0.0
        self._account = self._stats(self._forward_s)

    @property
    def due_s(self) -> float:
        """When `tell` has something to say again."""
        return self._told_s + _STATS_S

    def count_rows(self, rows: int) -> None:
        """So many texts have their numbers."""
        self._rows += rows

    def count_pass(self, begun_s: float, ended_s: float) -> None:
        """A pass came to its end, well or not."""
        self._passes += 1
        self._forward_s = ended_s
        self._took.append(ended_s - begun_s)

    def beat(self, now_s: float) -> None:
        """A short pass when none was for a while: only a real one shows that the model still answers. Raises MemoryError."""
        idle = not self._lanes.passes and not len(self._batcher)
        if self._model.reader is None:
            self._forward_s = now_s
        elif idle and now_s - self._forward_s >= self._heartbeat_s:
            self._model.beat()
            self._forward_s = time.monotonic()

    def tell(self, now_s: float) -> None:
        """The counts, if it is time."""
        if now_s < self.due_s:
            return
        self._told_s = now_s
        self._account = self._stats(now_s)
        if not self._lanes.late(now_s):  # else silence: whoever watches the process shall see that a pass does not end
            self.say()

    def say(self) -> None:
        """The counts as they were told last."""
        self._send([self._account])

    def _stats(self, now_s: float) -> TensorStats:
        took = sorted(self._took) or [0.0]
        return TensorStats(
            waiting=len(self._batcher),
            passes=self._passes,
            rows=self._rows,
            pass_p50_s=_at(took, 0.5),
            pass_p99_s=_at(took, 0.99),
            wait_s=self._batcher.wait_s(),
            forward_age_s=now_s - self._forward_s,
            resident_bytes=resident_bytes(os.getpid()),
        )


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]
