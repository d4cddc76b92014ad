"""The child's loop, with a model that has a bug: each request ends, and the loop goes on."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import pytest

from edge.messages import Failed, Message, Quit
from edge.onnx.loop import InboxItem, Loop, Work
from edge.onnx.messages import Classify, Detect, Embed, Infer, Inferred, LoadTensors, Scored, Tensor, TensorSpec
from edge.onnx.model import Model
from edge.onnx.texts import Encoded

X = TensorSpec("x", "FP32", [-1], ["batch"])


class Engine:
    inputs, outputs = [X], [X]


class Buggy:
    """What the loop asks of a model. Odd tokens, odd numbers and every picture meet its bug."""

    costs, reader = None, None
    most_rows, most_cells, max_tokens = 8, 4096, 64
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
