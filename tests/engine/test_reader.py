"""The threads that read what the front sends: whatever ends one ends its engine too."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest

from edge.engine.worker import Reader
from edge.messages import Quit
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


def test_readers_keep_clear_of_their_base_classs_own_names() -> None:
    later = {
        "_handle",
        "_os_thread_handle",
        "_context",
        "_started_event",
    }  # in threading.Thread since Python 3.13 and 3.14
    for reader in (Reader, TensorReader):
        assert not later & vars(reader).keys()
