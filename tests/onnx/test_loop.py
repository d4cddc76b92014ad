"""The child's loop, with a model that has a bug: each request ends, and the loop goes on."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import pytest

from edge.messages import Abort, Failed, Message, Quit
from edge.onnx.batcher import Batch, Row
from edge.onnx.lanes import Lanes, Passed
from edge.onnx.loop import InboxItem, Loop, Work
from edge.onnx.messages import (
    Classify,
    Detect,
    Embed,
    Infer,
    Inferred,
    LoadTensors,
    Scored,
    Tensor,
    TensorSpec,
    TensorStats,
)
from edge.onnx.model import Model
from edge.onnx.texts import Encoded
from tests.waiting import until

X = TensorSpec("x", "FP32", [-1], ["batch"])


class Engine:
    inputs, outputs = [X], [X]


class Buggy:
    """What the loop asks of a model. Odd tokens, odd numbers and every picture meet its bug."""

    costs, reader = None, None
    most_rows, most_cells, max_tokens, lanes = 8, 4096, 64, 2
    engine = Engine()

    def __init__(self, bug: Exception) -> None:
        self._bug = bug

    def infer(self, work: Infer) -> list[Tensor]:
        if (np.frombuffer(work.inputs[0].data, np.float32) % 2 == 1).any():
            raise self._bug
        return list(work.inputs)

    def detect(self, work: Detect) -> Any:
        raise self._bug

    def texts(self, texts: list[Encoded], rows: int, length: int) -> np.ndarray:
        if any(text.tokens[0] % 2 == 1 for text in texts):
            raise self._bug
        return np.array([[text.tokens[0]] for text in texts], np.float32)

    def stop_pass(self) -> None:
        """No pass is long."""


def told(bug: Exception, works: Iterable[Work]) -> dict[int, Message]:
    """What each request gets."""
    inbox: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
    answers: dict[int, Message] = {}
    due = {work.request_id for work in works}

    def send(messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, Failed | Inferred | Scored):
                assert message.request_id not in answers
                answers[message.request_id] = message
                if due == set(answers):
                    inbox.put(Quit())

    load = LoadTensors(
        path="", task="tensors", reading=None, provider="cpu", threads=1, most_rows=8, slo_s=0.1, limit_bytes=1 << 30,
        heartbeat_s=5, background=False,
    )  # fmt: skip
    loop = Loop(cast(Model, Buggy(bug)), load, inbox, send)
    for work in works:
        inbox.put(work)
    loop.run()
    return answers


def tensors(number: int) -> Work:
    return Work(Infer(number, [Tensor("x", "FP32", [1], np.float32(number).tobytes())], []), number, [])


def text(number: int) -> Work:
    return Work(Classify(number, ["x"]), number, [Encoded([number], [0])])


@pytest.mark.parametrize("made", [tensors, text])
def test_a_bug_fails_the_request_that_meets_it_and_no_other(
    made: Callable[[int], Work], capsys: pytest.CaptureFixture[str]
) -> None:
    answers = told(ValueError("odd"), [made(number) for number in (2, 3, 4, 5)])
    for number, answer in answers.items():
        assert isinstance(answer, Failed) == (number % 2 == 1)
        if isinstance(answer, Failed):
            assert (answer.code, "a bug, ValueError; see its log" in answer.message) == ("engine_fault", True)
    assert "ValueError: odd" in capsys.readouterr().err


def test_a_bug_at_an_answer_fails_that_request() -> None:
    """Of two in one pass. Vectors are asked of a model that is loaded for tensors: no answer can be made."""
    vectors = Work(Embed(2, ["x"], "", None), 2, [Encoded([2], [0])])
    answers = told(ValueError("odd"), [vectors, text(4), text(6)])
    assert {number: type(answer) for number, answer in answers.items()} == {2: Failed, 4: Scored, 6: Scored}


def test_a_bug_at_a_picture_fails_that_picture() -> None:
    (answer,) = told(IndexError("beyond"), [Work(Detect(7, b"", None, 10), 7, [])]).values()
    assert isinstance(answer, Failed) and answer.code == "engine_fault"


def test_memory_that_is_too_little_is_no_bug() -> None:
    answer = told(MemoryError(), [tensors(3)])[3]
    assert isinstance(answer, Failed) and answer.code == "invalid_value" and "needs more memory" in answer.message


class Slow(Buggy):
    """Passes end when they are told to; each says that it began."""

    lanes = 2

    def __init__(self) -> None:
        super().__init__(ValueError())
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.may_end = {number: threading.Event() for number in range(10)}
        self.together = 0
        self._counting = threading.Lock()
        self.short_of_memory = False

    def texts(self, texts: list[Encoded], rows: int, length: int) -> np.ndarray:
        with self._counting:
            self.together += 1
        try:
            self.begun.put(texts[0].tokens[0])
            self.may_end[texts[0].tokens[0]].wait(120)
            if self.together > 1 and self.short_of_memory:
                raise MemoryError
        finally:
            with self._counting:
                self.together -= 1
        return np.array([[text.tokens[0]] for text in texts], np.float32)


class Running:
    """A loop in a thread of its own."""

    def __init__(self, model: Slow) -> None:
        self.inbox: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self.said: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.signs = 0
        """Of life."""
        load = LoadTensors(
            path="", task="tensors", reading=None, provider="cpu", threads=1, most_rows=8, slo_s=0.1, limit_bytes=1 << 30,
            heartbeat_s=5, background=False,
        )  # fmt: skip
        loop = Loop(cast(Model, model), load, self.inbox, self._send)
        self._thread = threading.Thread(target=loop.run)

    def _send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, TensorStats):
                self.signs += 1
            else:
                self.said.put(message)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.inbox.put(Quit())
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_a_text_that_comes_while_a_pass_runs_does_not_wait_for_its_end() -> None:
    model = Slow()
    with Running(model) as loop:
        loop.inbox.put(text(2))
        assert model.begun.get(timeout=60) == 2
        loop.inbox.put(text(4))
        assert model.begun.get(timeout=60) == 4
        model.may_end[4].set()
        assert cast(Scored, loop.said.get(timeout=60)).request_id == 4
        model.may_end[2].set()
        assert cast(Scored, loop.said.get(timeout=60)).request_id == 2


def test_tensors_wait_for_the_passes_that_run_and_texts_for_the_tensors() -> None:
    model = Slow()
    with Running(model) as loop:
        loop.inbox.put(text(2))
        assert model.begun.get(timeout=60) == 2
        loop.inbox.put(tensors(4))
        loop.inbox.put(text(6))
        with pytest.raises(queue.Empty):
            model.begun.get(timeout=0.2)
        for event in model.may_end.values():
            event.set()
        assert [cast(Scored, loop.said.get(timeout=60)).request_id for _ in range(3)] == [2, 4, 6]


def test_memory_that_was_short_beside_another_pass_is_tried_by_itself() -> None:
    model = Slow()
    model.short_of_memory = True
    with Running(model) as loop:
        for number in (2, 4):
            loop.inbox.put(text(number))
            assert model.begun.get(timeout=60) == number
        for event in model.may_end.values():
            event.set()
        answers = [loop.said.get(timeout=60) for _ in range(2)]
    assert {(type(answer), cast(Scored, answer).request_id) for answer in answers} == {(Scored, 2), (Scored, 4)}


def test_a_client_that_leaves_while_its_text_is_computed_gets_one_answer() -> None:
    model = Slow()
    with Running(model) as loop:
        loop.inbox.put(text(2))
        assert model.begun.get(timeout=60) == 2
        loop.inbox.put(Abort(2))
        assert loop.said.get(timeout=60) == Failed(2, "cancelled", "the client is gone")
        model.may_end[2].set()
        loop.inbox.put(text(4))
        model.may_end[4].set()
        assert cast(Scored, loop.said.get(timeout=60)).request_id == 4


def test_a_pass_that_does_not_end_is_met_with_silence() -> None:
    """So that the front, which waits for signs of life, replaces the child."""
    model = Slow()
    with Running(model) as loop:
        loop.inbox.put(text(2))
        assert model.begun.get(timeout=60) == 2

        def falls_silent() -> bool:
            heard = loop.signs
            time.sleep(1.5)  # in which it would speak three times
            return loop.signs == heard > 0

        until(falls_silent)
        heard = loop.signs
        model.may_end[2].set()
        loop.said.get(timeout=60)
        until(lambda: loop.signs > heard)


def test_a_pass_is_late_by_what_was_foreseen_of_it() -> None:
    """Of two that overlap and take as long as they should, neither is."""
    go = threading.Event()
    over: queue.SimpleQueue[Passed] = queue.SimpleQueue()

    def compute(texts: list[Encoded], rows: int, length: int) -> np.ndarray:
        go.wait(120)
        return np.zeros((rows, 1), np.float32)

    lanes = Lanes(2, compute, over.put)
    before_s = time.monotonic()
    for number, foreseen_s in enumerate((0.001, 2.0)):
        lanes.start(Batch((Row(number, 0, 16, 0.0, 1.0),), 1, 16), [], foreseen_s)
    after_s = time.monotonic()
    assert not lanes.late(before_s + 1.0)
    assert lanes.late(after_s + 1.001)
    go.set()
    passed = [over.get(timeout=60) for _ in range(2)]
    first = next(one for one in passed if one.batch.members[0].request_id == 0)
    assert lanes.ended(first)[1], "they ran beside each other"
    assert not lanes.late(before_s + 12.0) and lanes.late(after_s + 12.001)
