"""A hand-written engine behind `edge.engine.port.Engine`: it plays what a test tells it, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field

from edge.engine.counts import Counts
from edge.engine.port import EngineStatus, StreamEvent
from edge.engine.supervised import request_frame
from edge.errors import Declined, EdgeError
from edge.messages import (
    Finished,
    FirstToken,
    ModelFacts,
    Offer,
    Outlook,
    Prompt,
    Stats,
    Submit,
    TextPrompt,
    Timing,
    Token,
    Tokenized,
)
from edge.onnx.messages import TensorStats

TIMING = Timing(queue_s=0.25, prefill_s=1.5, decode_s=2.0)
HERMES = "{% if tools %}<tool_call>{% endif %}<think></think>"
"""Enough of a chat template to show a tool format and reasoning tags."""

Step = StreamEvent | Exception | threading.Event
"""What a stream does next: an event, an error, or a wait until the test says go."""
Script = Callable[[Submit], Iterable[Step]]


def facts(template: str = HERMES) -> ModelFacts:
    """Facts of a model that does not exist."""
    return ModelFacts(
        name="fake",
        description="a fake",
        digest="0123456789abcdef",
        parameters=1,
        model_bytes=1,
        vocabulary=300,
        context_tokens=128,
        train_context_tokens=128,
        slots=2,
        threads=1,
        prefill_threads=1,
        device="none",
        kv_bytes=1,
        compute_bytes=1,
        admits_tokens=64,
        admits_streams=2,
        prompt_s=[(64, 0.04)],
        pass_s=[(1, 0.01)],
        caches_prefixes=True,
        chat_template=template,
        library="none",
    )


def answer(*texts: str, finish: str = "stop", index: int = 0) -> list[Step]:
    """Tokens of one answer, the last one with its finish reason."""
    tokens: list[Step] = [Token(0, index, text, 1) for text in texts[:-1]]
    return [*tokens, Token(0, index, texts[-1], 1, finish=finish)]  # type: ignore[arg-type]


ADMITTED = Outlook(admitted=True, reason="", ttft_s=0.01, cached_tokens=3)


def whole(*tokens: Step, reasoning_open: bool = False, outlook: Outlook = ADMITTED) -> list[Step]:
    """A complete stream around these tokens."""
    count = sum(t.tokens for t in tokens if isinstance(t, Token))
    return [
        Offer(0, 7, reasoning_open, outlook),
        FirstToken(0, TIMING),
        *tokens,
        Finished(0, 7, 3, count, TIMING),
    ]


def says(*texts: str, finish: str = "stop") -> Script:
    """A script: every answer of every request is this text."""
    return lambda work: whole(*(step for n in range(work.n) for step in answer(*texts, finish=finish, index=n)))


@dataclass
class FakeStream:
    """One request's script as a stream. It ends where the script does, or after the step in which it is aborted."""

    work: Submit
    steps: Iterable[Step]
    aborted: threading.Event = field(default_factory=threading.Event)
    over: bool = False

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:  # type: ignore[override]
        for step in self.steps:
            if isinstance(step, threading.Event):
                while not step.is_set() and not self.aborted.is_set():
                    await asyncio.sleep(0.002)
            elif isinstance(step, Exception):
                self.over = True
                raise step
            else:
                self.over = isinstance(step, Finished)
                yield step
            await asyncio.sleep(0)
            if self.aborted.is_set():
                return

    def abort(self) -> None:
        self.aborted.set()


@dataclass
class FakeEngine:
    """Plays `script` for every request. `refusal`: what a request submitted now would be refused with."""

    script: Script = field(default_factory=lambda: says("Hel", "lo"))
    facts: ModelFacts | None = field(default_factory=facts)
    status: EngineStatus = field(default_factory=lambda: EngineStatus("ready", "", 1.0, 0, None))
    stats: Stats | TensorStats | None = None
    counts: Counts = field(default_factory=Counts)
    patience_s: float = 10.0
    refusal: EdgeError | None = None
    full: Declined | None = None
    streams: list[FakeStream] = field(default_factory=list)
    tokenized: list[tuple[Prompt, bool]] = field(default_factory=list)
    loads: threading.Event | None = None
    """It is not ready before the test says so."""
    kind: str = "language"
    unloadable: EdgeError | None = None
    """What its loading ends with."""
    dead: threading.Event = field(default_factory=threading.Event)
    """Set by a test: it has ended by itself."""
    stopped: bool = False

    @property
    def in_flight(self) -> int:
        return sum(not (s.over or s.aborted.is_set()) for s in self.streams)

    async def start(self) -> None:
        assert not self.stopped

    async def wait_ready(self) -> ModelFacts:
        while self.loads is not None and not self.loads.is_set():
            await asyncio.sleep(0.002)
        if self.unloadable is not None:
            raise self.unloadable
        return self.facts or facts()

    async def ended(self) -> str:
        while not (self.dead.is_set() or self.stopped):
            await asyncio.sleep(0.002)
        return "killed by the test"

    async def stop(self) -> None:
        self.stopped = True

    def require_room(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    def submit(self, work: Submit) -> FakeStream:
        self.require_room()
        request_frame(work)  # as the engine's client does: refuses what cannot cross the pipe
        stream = FakeStream(work, self.script(work))
        self.streams.append(stream)
        return stream

    async def tokenize(self, prompt: Prompt, *, add_special: bool = True, pieces: bool = False) -> Tokenized:
        self.tokenized.append((prompt, add_special))
        text = prompt.text.encode() if isinstance(prompt, TextPrompt) else b"chat"
        return Tokenized(0, list(text), [bytes([b]) for b in text] if pieces else [])

    async def detokenize(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()
