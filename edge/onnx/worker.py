"""The tensor child's main: load the model, then serve the pipe until the front goes away.

Started by `edge.onnx.client` as `python -m edge.onnx.worker FD` with one end of a socket pair. Exit status as of
`edge.engine.worker`: 0, 3 when the model did not load, 71 when memory was exhausted.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable

import msgspec

from edge.engine.pipe import EXIT_ENGINE_BROKEN, EXIT_LOAD_FAILED, Pipe, end_with_parent, step_back
from edge.errors import DoesNotFit, EdgeError, EngineFault, InvalidRequest
from edge.messages import EXIT_NO_MEMORY, Abort, Failed, FrameTooLarge, LoadFailed, Message, Progress, Quit
from edge.onnx.loop import InboxItem, Loop, Work
from edge.onnx.messages import (
    Asked,
    Classify,
    Detect,
    Embed,
    Infer,
    LoadTensors,
    Rerank,
    TensorsLoaded,
    ToTensorChild,
    to_tensor_child,
)
from edge.onnx.model import Model
from edge.onnx.texts import Encoded
from edge.quiet import settle_collector, yield_soon

_STACK_BYTES = 4 << 20
"""Of a thread. All of it counts for the bound on the process's memory."""


class Reader(threading.Thread):
    """Turns messages into work for the loop: texts are read here, while the loop computes."""

    def __init__(self, pipe: Pipe[ToTensorChild], model: Model, inbox: queue.SimpleQueue[InboxItem]) -> None:
        super().__init__(name="reader", daemon=True)
        self._pipe, self._model, self._inbox = pipe, model, inbox

    def run(self) -> None:
        try:
            for message in self._pipe.receive():
                if isinstance(message, LoadTensors):
                    raise msgspec.DecodeError("a second load")
                if isinstance(message, Abort | Quit):
                    self._inbox.put(message)
                else:
                    self._accept(message)
        except (OSError, msgspec.DecodeError, FrameTooLarge) as error:
            print(f"engine: the front's messages cannot be read: {error}", file=sys.stderr, flush=True)
        finally:  # whatever it was: an engine that hears nothing must end, or requests would wait for ever
            self._inbox.put(Quit())

    def _accept(self, asked: Asked) -> None:
        """Hand it to the loop, or send the one terminal Failed: a request that trips over our own bug ends too."""
        try:
            self._inbox.put(Work(asked, asked.request_id, self._texts(asked)))
        except EdgeError as error:
            self._pipe.send([Failed(asked.request_id, error.code or "", error.message, error.param)])
        except MemoryError:
            os._exit(EXIT_NO_MEMORY)
        except Exception:
            traceback.print_exc()
            words = "the engine could not read this request (a bug; see its log)"
            self._pipe.send([Failed(asked.request_id, EngineFault.code or "", words)])

    def _texts(self, asked: Asked) -> list[Encoded]:
        if isinstance(asked, Infer | Detect):
            return []
        reader = self._model.reader
        if reader is None:
            raise InvalidRequest("the model reads no texts")
        match asked:
            case Embed():
                return reader.texts(asked.texts, asked.kind)
            case Classify():
                return reader.texts(asked.texts)
            case Rerank():
                return reader.pairs(asked.query, asked.documents)


def opened(load: LoadTensors, on_stage: Callable[[str, float], None]) -> Model:
    """The model, loaded by what runs it: only that is imported. Raises ModelUnusable, DoesNotFit."""
    if load.runtime == "libllama":
        from edge.onnx.llama import LlamaModel

        return LlamaModel(load, on_stage)
    if load.looking is not None:
        from edge.onnx.detector import Detector

        return Detector(load, on_stage)
    from edge.onnx.graph import GraphModel

    return GraphModel(load, on_stage)


def serve(pipe: Pipe[ToTensorChild], load: LoadTensors) -> int:
    """Load and run until Quit. Returns the exit status."""
    begun_s = time.monotonic()

    def on_stage(stage: str, fraction: float) -> None:
        pipe.send([Progress(stage, fraction)])

    refused: Message
    try:
        model = opened(load, on_stage)
    except EdgeError as error:
        refused = LoadFailed(error.code or "", error.message)
    except MemoryError:
        refused = LoadFailed(DoesNotFit.code or "", "memory is exhausted")
    else:
        return _run(pipe, model, load, begun_s)
    pipe.send([refused])
    return EXIT_LOAD_FAILED


def _run(pipe: Pipe[ToTensorChild], model: Model, load: LoadTensors, begun_s: float) -> int:
    inbox: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
    loop = Loop(model, load, inbox, pipe.send)
    settle_collector()
    pipe.send([TensorsLoaded(model.facts(), time.monotonic() - begun_s)])
    Reader(pipe, model, inbox).start()
    try:
        loop.run()
    except MemoryError:
        print("engine: memory is exhausted, the process ends", file=sys.stderr, flush=True)
        return EXIT_NO_MEMORY
    except EdgeError as error:
        print(f"engine: {error}; the process ends", file=sys.stderr, flush=True)
        return EXIT_ENGINE_BROKEN
    return 0


def main(arguments: list[str]) -> int:
    """Entry point of the child."""
    end_with_parent()
    yield_soon()
    threading.stack_size(_STACK_BYTES)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would take the cores from the passes
    pipe = Pipe(int(arguments[0]), to_tensor_child)
    first = next(iter(pipe.receive()), None)
    if not isinstance(first, LoadTensors):
        return 0
    if first.background:
        step_back()
    return serve(pipe, first)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        os._exit(main(sys.argv[1:]))
