"""The child's loop: takes what the reader thread has prepared, runs pass after pass, and answers each request once."""

from __future__ import annotations

import os
import queue
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge.errors import EdgeError, InvalidRequest
from edge.machine import resident_bytes
from edge.messages import Abort, Failed, FrameTooLarge, Message, Quit
from edge.onnx.batcher import Batch, Batcher, Costs, Wait, length_bucket
from edge.onnx.joining import Joiner, may_join
from edge.onnx.messages import (
    Asked,
    Detect,
    Embed,
    Embedded,
    Infer,
    Inferred,
    LoadTensors,
    Scored,
    Tensor,
    TensorStats,
)
from edge.onnx.model import Model
from edge.onnx.pulse import PassStopped, Pulse, faults_named
from edge.onnx.tasks import Floats, cut
from edge.onnx.texts import Encoded

_STATS_S = 0.5
_REMEMBERED = 512

Texts = list[Encoded]


@dataclass(frozen=True, slots=True)
class Work:
    """A request that was read: its texts, or none where it has tensors or a picture."""

    asked: Asked
    request_id: int
    texts: Texts


InboxItem = Work | Abort | Quit


@dataclass(slots=True)
class _Running:
    """A request in the works: `left` of its texts have no result yet."""

    work: Work
    left: int
    rows: dict[int, Floats] = field(default_factory=dict)


class Loop:
    """Owner of the requests in the child. `run` returns after Quit."""

    def __init__(
        self,
        model: Model,
        load: LoadTensors,
        inbox: queue.SimpleQueue[InboxItem],
        send: Callable[[Iterable[Message]], None],
    ) -> None:
        self._model, self._load, self._inbox, self._send = model, load, inbox, send
        costs = model.costs or Costs(1e-3, 0.0, 0.0)
        self._batcher = Batcher(costs, slo_s=load.slo_s, most_rows=model.most_rows, most_cells=model.most_cells)
        self._running: dict[int, _Running] = {}
        self._took: deque[float] = deque(maxlen=_REMEMBERED)
        self._passes = self._rows = 0
        self._forward_s = time.monotonic()
        self._told_s = 0.0
        self._over = False
        self._joiner = Joiner(
            self._one_pass,
            self._excuse,
            possible=may_join(model.engine.inputs, model.engine.outputs),
            most_rows=load.most_rows,
            slo_s=load.slo_s,
        )
        self._account = self._stats(self._forward_s)
        self._pulse = Pulse(load.pass_limit_s, lambda: send([self._account]), model.stop_pass)

    def run(self) -> None:
        """Until Quit. Raises MemoryError where not even a short text can be read any more."""
        while not self._over:
            now_s = time.monotonic()
            self._tell(now_s)
            self._beat(now_s)
            step = self._batcher.next(time.monotonic())
            if isinstance(step, Batch):
                self._compute(step)
                self._take_all()
            else:
                self._wait(step)

    # --- what comes ---------------------------------------------------------------------------------------------------

    def _wait(self, step: Wait) -> None:
        now_s = time.monotonic()
        until_s = min(self._told_s + _STATS_S, self._forward_s + self._load.heartbeat_s)
        if step.until_s is not None:
            until_s = min(until_s, step.until_s)
        try:
            self._take(
                self._inbox.get(timeout=max(0.0, until_s - now_s)) if until_s > now_s else self._inbox.get_nowait()
            )
        except queue.Empty:
            return
        self._take_all()

    def _take_all(self) -> None:
        while True:
            try:
                self._take(self._inbox.get_nowait())
            except queue.Empty:
                return

    def _take(self, item: InboxItem) -> None:
        match item:
            case Quit():
                self._over = True
            case Abort(request_id=request_id):
                self._batcher.drop(request_id)
                if self._running.pop(request_id, None) is not None:
                    self._send([Failed(request_id, "cancelled", "the client is gone")])
            case Work():
                lengths = [length_bucket(len(text.tokens), self._most_tokens) for text in item.texts] or [0]
                self._running[item.request_id] = _Running(item, len(lengths))
                self._batcher.add(item.request_id, lengths, time.monotonic())

    @property
    def _most_tokens(self) -> int:
        return self._model.max_tokens

    # --- passes -------------------------------------------------------------------------------------------------------

    def _compute(self, batch: Batch) -> None:
        begun_s = time.monotonic()
        asked = {row.request_id for row in batch.members}
        try:
            if batch.length:
                texts = [self._running[row.request_id].work.texts[row.index] for row in batch.members]
                with faults_named():
                    values = self._model.texts(texts, batch.rows, batch.length)
                took_s = time.monotonic() - begun_s
                self._batcher.costs.took(batch.rows, batch.length, took_s)
                self._rows += len(texts)
                for row, vector in zip(batch.members, values, strict=True):
                    self._keep(row.request_id, row.index, vector)
            else:
                self._alone(batch.members[0].request_id)
        except EdgeError as error:
            self._fail(asked, error)
        except (MemoryError, PassStopped) as error:
            self._fail(asked, self._excuse(error))
        self._passes += 1
        self._forward_s = time.monotonic()
        self._took.append(self._forward_s - begun_s)

    def _excuse(self, error: Exception) -> EdgeError:
        """What a client is told whose request is too much."""
        if isinstance(error, PassStopped):
            return InvalidRequest(
                f"the pass took longer than the {self._load.pass_limit_s:g} s that onnx.pass_limit_s allows; send less at a time"
            )
        return InvalidRequest(
            f"the model needs more memory for this than the {self._load.limit_bytes / 2**20:,.0f} MiB that are planned for it; "
            "send less at a time"
        )

    def _alone(self, request_id: int) -> None:
        """A request without texts: a picture is a pass by itself, tensors may share one with others that wait."""
        asked = self._running[request_id].work.asked
        if isinstance(asked, Detect):
            with self._pulse.over(), faults_named():
                found = self._model.detect(asked)
            self._running.pop(request_id)
            self._answer(request_id, found)
            return
        assert isinstance(asked, Infer)
        works = [asked, *self._joiner.partners(asked, self._waiting_tensors())]
        begun_s = time.monotonic()
        results = self._joiner.run(works) if len(works) > 1 else [self._one_pass(asked)]
        self._joiner.took(works, time.monotonic() - begun_s)
        for work, result in zip(works, results, strict=True):
            self._batcher.drop(work.request_id)
            self._running.pop(work.request_id)
            if isinstance(result, EdgeError):
                self._refuse(work.request_id, result)
            else:
                self._answer(work.request_id, Inferred(work.request_id, result))

    def _waiting_tensors(self) -> list[Infer]:
        waiting = (self._running[row.request_id].work.asked for row in self._batcher.waiting if not row.length)
        return [asked for asked in waiting if isinstance(asked, Infer)]

    def _one_pass(self, asked: Infer) -> list[Tensor]:
        with self._pulse.over(), faults_named():
            return self._model.infer(asked)

    def _keep(self, request_id: int, index: int, vector: Floats) -> None:
        running = self._running[request_id]
        running.rows[index] = vector
        running.left -= 1
        if not running.left:
            with faults_named():
                whole = self._whole(running)
            del self._running[request_id]
            self._answer(request_id, whole)

    def _whole(self, running: _Running) -> Message:
        asked, texts = running.work.asked, running.work.texts
        values = np.stack([running.rows[index] for index in range(len(texts))])
        tokens = sum(len(text.tokens) for text in texts)
        if isinstance(asked, Embed):
            assert self._load.reading is not None
            vectors = cut(values, asked.dimensions, normalise=self._load.reading.normalise)
            return Embedded(asked.request_id, vectors.tobytes(), vectors.shape[1], tokens)
        return Scored(running.work.request_id, values.tolist(), tokens)

    def _answer(self, request_id: int, answer: Message) -> None:
        try:
            self._send([answer])
        except FrameTooLarge as error:
            self._send(
                [Failed(request_id, "invalid_value", f"the answer is too large: {error}; ask for fewer outputs")]
            )

    def _fail(self, request_ids: set[int], error: EdgeError) -> None:
        """A pass with several requests tells nothing of each: they are tried again one by one."""
        for request_id in request_ids:
            self._batcher.drop(request_id)
            running = self._running.pop(request_id, None)
            if running is None:
                continue
            if len(request_ids) > 1:
                self._retry(running.work)
            else:
                self._refuse(request_id, error)

    def _retry(self, work: Work) -> None:
        """By itself: what one client sent does not fail another's request."""
        try:
            with faults_named():
                rows = [self._model.texts([text], 1, self._length_of(text))[0] for text in work.texts]
                whole = self._whole(_Running(work, 0, dict(enumerate(rows))))
        except EdgeError as error:
            self._refuse(work.request_id, error)
        except MemoryError:
            self._refuse(work.request_id, self._excuse(MemoryError()))
        else:
            self._answer(work.request_id, whole)

    def _refuse(self, request_id: int, error: EdgeError) -> None:
        self._send([Failed(request_id, error.code or "", error.message, error.param)])

    def _length_of(self, text: Encoded) -> int:
        return length_bucket(len(text.tokens), self._most_tokens)

    # --- signs of life ------------------------------------------------------------------------------------------------

    def _beat(self, now_s: float) -> None:
        """A short pass when none was for a while: only a real one shows that the model still answers."""
        if self._model.reader is None:
            self._forward_s = now_s
        elif now_s - self._forward_s >= self._load.heartbeat_s and not len(self._batcher):
            self._model.beat()
            self._forward_s = time.monotonic()

    def _tell(self, now_s: float) -> None:
        if now_s - self._told_s < _STATS_S:
            return
        self._told_s = now_s
        self._account = self._stats(now_s)
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
