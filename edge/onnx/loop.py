"""The child's loop: takes what the reader thread has prepared, has pass after pass computed, and answers each request once."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from edge.errors import EdgeError, InvalidRequest
from edge.messages import Abort, Failed, FrameTooLarge, Message, Quit
from edge.onnx.batcher import Batch, Batcher, Costs, Wait, length_bucket
from edge.onnx.joining import Joiner, may_join
from edge.onnx.lanes import Lanes, Passed
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
)
from edge.onnx.model import Model
from edge.onnx.pulse import PassStopped, Pulse, faults_named
from edge.onnx.tasks import Floats, cut
from edge.onnx.texts import Encoded
from edge.onnx.vitals import Vitals

Texts = list[Encoded]


@dataclass(frozen=True, slots=True)
class Work:
    """A request that was read: its texts, or none where it has tensors or a picture."""

    asked: Asked
    request_id: int
    texts: Texts


InboxItem = Work | Abort | Quit | Passed


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
        self._lanes = Lanes(model.lanes, self._computed, inbox.put)
        self._batcher = Batcher(
            model.costs or Costs(1e-3, 0.0, 0.0),
            slo_s=load.slo_s,
            most_rows=model.most_rows,
            most_cells=model.most_cells,
            lanes=model.lanes,
        )
        self._running: dict[int, _Running] = {}
        self._again: deque[Work] = deque()
        """Requests whose pass failed while it held others too, or ran beside another: each is tried once more, by itself."""
        self._over = False
        self._joiner = Joiner(
            self._one_pass,
            self._excuse,
            possible=may_join(model.engine.inputs, model.engine.outputs),
            most_rows=load.most_rows,
            slo_s=load.slo_s,
        )
        self._vitals = Vitals(model, self._batcher, self._lanes, load.heartbeat_s, send)
        self._pulse = Pulse(load.pass_limit_s, self._vitals.say, model.stop_pass)

    def run(self) -> None:
        """Until Quit. Raises MemoryError where not even a short text can be read any more."""
        while not self._over:
            now_s = time.monotonic()
            self._vitals.tell(now_s)
            self._vitals.beat(now_s)
            step = self._next()
            if isinstance(step, Batch):
                self._begin(step)
                self._take_all()
            else:
                self._wait(step)

    def _next(self) -> Batch | Wait:
        while self._again:
            if self._lanes.passes:
                return Wait(None)
            self._retry(self._again.popleft())
        return self._batcher.next(time.monotonic(), self._lanes.passes, self._lanes.cells)

    # --- what comes ---------------------------------------------------------------------------------------------------

    def _wait(self, step: Wait) -> None:
        now_s = time.monotonic()
        until_s = self._vitals.due_s
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
                fails = [work for work in self._again if work.request_id == request_id]
                for work in fails:
                    self._again.remove(work)
                if fails or self._running.pop(request_id, None) is not None:
                    self._send([Failed(request_id, "cancelled", "the client is gone")])
            case Passed():
                self._end(item)
            case Work():
                lengths = [self._length_of(text) for text in item.texts] or [0]
                self._running[item.request_id] = _Running(item, len(lengths))
                self._batcher.add(item.request_id, lengths, time.monotonic())

    # --- passes -------------------------------------------------------------------------------------------------------

    def _begin(self, batch: Batch) -> None:
        """Texts go to a lane; a request without any has the model for itself."""
        if batch.length:
            texts = [self._running[row.request_id].work.texts[row.index] for row in batch.members]
            self._lanes.start(batch, texts, self._batcher.costs.pass_s(batch.rows, batch.length))
            return
        begun_s = time.monotonic()
        request_id = batch.members[0].request_id
        try:
            self._alone(request_id)
        except EdgeError as error:
            self._refuse_running(request_id, error)
        except (MemoryError, PassStopped) as error:
            self._refuse_running(request_id, self._excuse(error))
        self._vitals.count_pass(begun_s, time.monotonic())

    def _computed(self, texts: Texts, rows: int, length: int) -> Floats:
        """In a lane's thread. Raises EdgeError, MemoryError."""
        with faults_named():
            return self._model.texts(texts, rows, length)

    def _end(self, passed: Passed) -> None:
        """Who was in a pass gets their numbers, or is tried once more where others may be to blame."""
        batch = passed.batch
        own_s, shared = self._lanes.ended(passed)
        asked = {row.request_id for row in batch.members}
        try:
            if isinstance(passed.values, Exception):
                raise passed.values
            self._batcher.costs.took(batch.rows, batch.length, own_s)
            self._vitals.count_rows(len(batch.members))
            for row, vector in zip(batch.members, passed.values, strict=True):
                self._keep(row.request_id, row.index, vector)
        except EdgeError as error:
            self._fail(asked, error, others=len(asked) > 1)
        except MemoryError as error:
            self._fail(asked, self._excuse(error), others=shared or len(asked) > 1)
        self._vitals.count_pass(passed.begun_s, passed.ended_s)

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
        running = self._running.get(request_id)
        if running is None:  # its client went away, or another of its passes failed
            return
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
        except MemoryError as error:  # it was computed, and there is no room to write it down
            self._refuse(request_id, self._excuse(error))

    def _fail(self, request_ids: set[int], error: EdgeError, *, others: bool) -> None:
        """A pass with several requests, or beside another, tells nothing of each: they are tried again one by one."""
        for request_id in request_ids:
            self._batcher.drop(request_id)
            running = self._running.pop(request_id, None)
            if running is None:
                continue
            if others:
                self._again.append(running.work)
            else:
                self._refuse(request_id, error)

    def _refuse_running(self, request_id: int, error: EdgeError) -> None:
        if self._running.pop(request_id, None) is not None:
            self._refuse(request_id, error)

    def _retry(self, work: Work) -> None:
        """By itself: what one client sent does not fail another's request."""
        try:
            rows: dict[int, Floats] = {}
            for index, text in enumerate(work.texts):
                rows[index] = self._computed([text], 1, self._length_of(text))[0]
                self._vitals.tell(time.monotonic())
            with faults_named():
                whole = self._whole(_Running(work, 0, rows))
        except EdgeError as error:
            self._refuse(work.request_id, error)
        except MemoryError:
            self._refuse(work.request_id, self._excuse(MemoryError()))
        else:
            self._answer(work.request_id, whole)

    def _refuse(self, request_id: int, error: EdgeError) -> None:
        self._send([Failed(request_id, error.code or "", error.message, error.param)])

    def _length_of(self, text: Encoded) -> int:
        return length_bucket(len(text.tokens), self._model.max_tokens)
