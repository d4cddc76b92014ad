"""The threads that read what the front sends: whatever ends one ends its engine too."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from edge.engine.intake import Tokens
from edge.engine.worker import Reader
from edge.messages import Abort, FrameTooLarge, Message, Quit, TextPrompt, Tokenize, Tokenized
from edge.onnx.worker import Reader as TensorReader


class Tripping:
    """A pipe whose next message is more than its reader can take."""

    def receive(self) -> Iterator[Any]:
        raise RuntimeError("a bug of ours")
        yield


@pytest.mark.parametrize("kind", ["language", "tensors"])
def test_a_reader_that_fails_ends_its_engine(kind: str) -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    unused: Any = None
    pipe: Any = Tripping()
    reader = Reader(pipe, unused, unused, inbox) if kind == "language" else TensorReader(pipe, unused, inbox)
    with pytest.raises(RuntimeError):
        reader.run()
    assert isinstance(inbox.get_nowait(), Quit)


class Narrow:
    """A pipe that no answer with tokens goes through."""

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def receive(self) -> Iterator[Message]:
        yield Tokenize(7, TextPrompt("long"))
        yield Abort(8)

    def send(self, messages: Iterable[Message]) -> None:
        for message in messages:
            if isinstance(message, Tokenized):
                raise FrameTooLarge("frame of 70000000 bytes")
            self.sent.append(message)


class Words:
    """Of an intake, what tokenising takes."""

    def tokenize(self, prompt: Any, *, add_special: bool) -> Tokens:
        return Tokens([1])

    def pieces(self, tokens: list[int]) -> list[bytes]:
        return [b"long"]


def test_an_answer_that_no_frame_holds_fails_its_request_alone() -> None:
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pipe: Any = Narrow()
    intake: Any = Words()
    unused: Any = None
    Reader(pipe, intake, unused, inbox).run()
    [failed] = pipe.sent
    assert (failed.request_id, failed.code) == (7, "invalid_value") and "too large" in failed.message
    assert isinstance(inbox.get_nowait(), Abort), "it goes on to read"


def test_readers_keep_clear_of_their_base_classs_own_names() -> None:
    later = {
        "_handle",
        "_os_thread_handle",
        "_context",
        "_started_event",
    }  # in threading.Thread since Python 3.13 and 3.14
    for reader in (Reader, TensorReader):
        assert not later & vars(reader).keys()
