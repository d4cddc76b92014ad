"""One HTTP request's work in the engine: one stream per prompt, merged, with the times that the promise is about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self, TypeVar

from starlette.requests import Request

from edge.engine.port import Engine, EngineStream, StreamEvent
from edge.errors import EngineFault
from edge.messages import Finished, FirstToken, LateReason, Offer, Submit, Timing, Token

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection before the answer began."""


class Job:
    """Streams of one request. A context manager: leaving it aborts what still runs."""

    def __init__(self, engine: Engine, work: list[Submit]) -> None:
        self.begun_s = time.monotonic()
        self._streams: list[EngineStream] = []
        try:
            for submit in work:
                self._streams.append(engine.submit(submit))
        except BaseException:
            self.abort()
            raise
        self.timing = Timing(0.0, 0.0, 0.0)
        """Of the prompt that was answered first."""
        self.admitted = True
        """Every prompt that the engine has looked at so far is admitted within the targets."""
        self.reason: LateReason | Literal[""] = ""
        """Why one is not."""
        self.predicted_s = 0.0
        """The engine's prediction of the first token of the slowest."""
        self.prompts = len(work)
        self.prompt_tokens = self.cached_tokens = 0
        self.offered_s = 0.0
        """When the engine had judged the last of them; monotonic."""
        self.sent_tokens = 0
        """Generated tokens up to the last text that came."""
        self._unsent_tokens = 0
        self.finished: list[Finished] = []
        self._events = self._merged()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def abort(self) -> None:
        """Give up what still runs."""
        for stream in self._streams:
            stream.abort()

    def __aiter__(self) -> AsyncIterator[tuple[int, Offer | Token]]:
        return self._interesting()

    async def _interesting(self) -> AsyncIterator[tuple[int, Offer | Token]]:
        async for prompt, event in self._events:
            if isinstance(event, Finished):
                self.finished.append(event)
            elif isinstance(event, FirstToken):
                if self.timing.prefill_s == 0.0:
                    self.timing = event.timing
            else:
                self._note(event)
                yield prompt, event
        if len(self.finished) < len(self._streams):
            raise EngineFault("the engine ended the request without an answer")

    def _note(self, event: Offer | Token) -> None:
        if isinstance(event, Offer):
            outlook = event.outlook
            self.offered_s = time.monotonic()
            self.admitted = self.admitted and outlook.admitted
            self.reason = self.reason or outlook.reason
            self.predicted_s = max(self.predicted_s, outlook.ttft_s)
            self.prompt_tokens += event.prompt_tokens
            self.cached_tokens += outlook.cached_tokens
        else:
            self._unsent_tokens += event.tokens
            if event.text:
                self.sent_tokens += self._unsent_tokens
                self._unsent_tokens = 0

    async def _merged(self) -> AsyncIterator[tuple[int, StreamEvent]]:
        if len(self._streams) == 1:
            async for event in self._streams[0]:
                yield 0, event
            return
        queue: asyncio.Queue[tuple[int, StreamEvent] | _End] = asyncio.Queue()
        pumps = [asyncio.create_task(_pump(n, s, queue)) for n, s in enumerate(self._streams)]
        try:
            left = len(pumps)
            while left:
                item = await queue.get()
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    left -= 1
                else:
                    yield item
        finally:
            for pump in pumps:
                pump.cancel()


@dataclass(frozen=True, slots=True)
class _End:
    """One stream is over: well, or with an error."""

    error: Exception | None = None


async def _pump(number: int, stream: EngineStream, queue: asyncio.Queue[tuple[int, StreamEvent] | _End]) -> None:
    try:
        async for event in stream:
            queue.put_nowait((number, event))
        queue.put_nowait(_End())
    except Exception as error:
        queue.put_nowait(_End(error))


async def unless_gone(request: Request, work: asyncio.Task[T]) -> T:
    """Wait for `work` while the client is there. Raises ClientGone (and cancels the work) when it leaves first."""
    gone = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
