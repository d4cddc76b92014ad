"""A short-lived child that tells what layouts of a model would take, without taking it.

Started by `edge.engine.probe` as `python -m edge.engine.measure`. It reads msgpack frames from standard input and writes one
frame for each: first the model, then layout after layout. libllama loads the vocabulary for real and lays everything else out
without allocating (`no_alloc`), so its own figures are exact; what the process itself takes for tokens and tables is measured.
It is a process of its own because libllama ends the process where its assertions fail.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from edge.dialects.template import DEFAULT_CHATML, ChatTemplate
from edge.engine.intake import Intake
from edge.engine.llama.context import Context, ContextShape
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.errors import EdgeError, ModelUnusable
from edge.machine import die_with_parent, resident_bytes
from edge.messages import FrameReader, LaidOut, Measured, MeasureFailed, MeasureLayout, MeasureModel, frame, to_measure

_READ_BYTES = 1 << 16


class Probe:
    """One model, loaded without its weights."""

    def __init__(self, wish: MeasureModel) -> None:
        self._library = Library()
        self._threads = wish.cores
        begun = resident_bytes(os.getpid())
        self._model = Model(self._library, Path(wish.path), gpu_layers=wish.gpu_layers, allocate=False)
        self.facts = self._measured(begun)

    def _measured(self, begun_bytes: int) -> Measured:
        model, vocabulary = self._model, self._model.vocabulary
        source = model.chat_template or DEFAULT_CHATML
        intake = Intake(vocabulary, ChatTemplate(source, bos="", eos=""), source, context_tokens=0)
        intake.grammars.warm()
        return Measured(
            process_bytes=begun_bytes,
            tables_bytes=max(0, resident_bytes(os.getpid()) - begun_bytes),
            weights_bytes=model.size_bytes,
            train_context_tokens=model.train_context_tokens,
            layers=model.layers,
            offloads=self._library.offloads,
        )

    def lay_out(self, wish: MeasureLayout) -> LaidOut:
        """What a context takes. Raises EdgeError where the library refuses it."""
        context = Context(
            self._library,
            self._model,
            ContextShape(
                slots=wish.slots,
                context_tokens=wish.context_tokens,
                chunk_tokens=wish.pass_tokens,
                threads=self._threads,
                unified=wish.unified,
                kv_type=wish.kv_type,
                flash_attention=wish.flash_attention,
            ),
        )
        try:
            return LaidOut(self._library.cells_bytes, self._library.buffers("compute"), self._library.buffers("output"))
        finally:
            context.close()


def serve(requests: BinaryIO, replies: BinaryIO) -> int:
    """Answer until the other side closes. Returns the exit status."""
    probe: Probe | None = None
    frames = FrameReader()
    while data := os.read(requests.fileno(), _READ_BYTES):
        for payload in frames.feed(data):
            for wish in to_measure(payload):
                try:
                    if isinstance(wish, MeasureModel):
                        probe = Probe(wish)
                        reply: Measured | LaidOut | MeasureFailed = probe.facts
                    elif probe is None:
                        raise ModelUnusable("no model was named yet")
                    else:
                        reply = probe.lay_out(wish)
                except EdgeError as error:
                    reply = MeasureFailed(error.code or "", error.message)
                replies.write(frame(reply))
                replies.flush()
    return 0


def main() -> int:
    """Entry point of the child."""
    die_with_parent()
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the library prints goes to standard error
    try:
        return serve(sys.stdin.buffer, replies)
    except (OSError, msgspec.DecodeError):
        return 1


if __name__ == "__main__":
    os._exit(main())
