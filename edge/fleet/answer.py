"""One answer of an upstream's, from its first byte to its last: streamed or whole."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from edge.errors import FleetUnavailable
from edge.fleet.events import BadStream, Event, EventCutter
from edge.fleet.limits import HourlyCap
from edge.fleet.member import Member, TryFailed, words

MAX_ANSWER_BYTES = 64 << 20
_LEFT_S, _LEFT_BYTES = 1.0, 64 * 1024
"""For the end of a stream's body after its last event."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What all answers together are counted against."""

    bytes: HourlyCap
    cost: HourlyCap


class FleetAnswer:
    """An answer that has begun. Exactly one of `events` (streamed) and `body` is used. Close it when done."""

    def __init__(
        self, spent: Spent, member: Member, client: httpx.AsyncClient, response: httpx.Response, begun_s: float
    ) -> None:
        self.upstream = member.upstream.name
        self._spent = spent
        self._member = member
        self._client = client
        self._response = response
        self._begun_s = begun_s
        self._first: list[Event] = []
        self._chunks = response.aiter_raw()
        self._cutter = EventCutter()
        self._batches = self._cut()
        self._told = False
        self._tokens = 0
        self.body: dict[str, Any] = {}
        self._open = True
        self._read = False
        """To its end: the connection can carry another."""

    async def begin_stream(self) -> None:
        """Wait for the first event with content. Raises TryFailed."""
        async for events in self._batches:
            self._first += events
            if error := next((e.error for e in events if e.error), ""):
                raise TryFailed(f"it sent an error: {error}")
            if any(e.has_content or e.ends for e in events):
                self._succeeded()
                return
        raise TryFailed("its stream ended before it began")

    async def read_whole(self) -> None:
        """Read an answer that is not streamed. Raises TryFailed."""
        data = bytearray()
        async for chunk in self._chunks:
            self._spent.bytes.spend(len(chunk), time.monotonic())
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise TryFailed("its answer is too long")
        self._read = True
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise TryFailed("its answer is not JSON") from None
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            raise TryFailed("its answer is none of the API's")
        self.body = body
        self._count(body)
        self._told = True
        self._member.breaker.succeeded()

    async def events(self) -> AsyncIterator[list[Event]]:
        """The stream's events, as many at a time as came together, [DONE] last. Raises FleetUnavailable if it breaks off or turns
        into nonsense."""
        finished = False
        try:
            if self._first:
                finished = self._note(self._first)
                yield self._first
            async for events in self._batches:
                good = list(itertools.takewhile(lambda event: not event.error, events))
                finished = self._note(good) or finished
                if good:
                    yield good
                self._note(events[len(good) :])
        except Exception as error:  # httpx lets h2's own through
            self._broke(words(error))
        if not finished:
            self._broke("its stream broke off")

    def _note(self, events: list[Event]) -> bool:
        """Whether the answer ends with these. Raises TryFailed for an error among them."""
        for event in events:
            if event.error:
                raise TryFailed(f"it sent an error: {event.error}")
            if event.body is not None:
                self._count(event.body)
        return any(event.ends for event in events)

    def _broke(self, reason: str) -> None:
        self._member.breaker.failed(reason)
        self._member.learned.failed()
        raise FleetUnavailable(f"the fleet's answer broke off: {self.upstream}: {reason}")

    async def _cut(self) -> AsyncGenerator[list[Event], None]:
        """What comes together; [DONE] is the last. Raises TryFailed, after what was good."""
        said_s = time.monotonic()
        async for chunk in self._chunks:
            self._spent.bytes.spend(len(chunk), time.monotonic())
            events, wrong = [], ""
            try:
                for event in self._cutter.feed(chunk):
                    events.append(event)
            except BadStream as error:
                wrong = str(error)
            done = bool(events) and events[-1].body is None
            if events:
                yield events
                said_s = time.monotonic()  # not before: whoever reads the events may be slow
            elif self._told and time.monotonic() - said_s > self._member.upstream.idle_timeout_s:
                wrong = "it went silent"  # comments keep a connection open, and are no answer
            if wrong:
                raise TryFailed(wrong)
            if done:
                await self._end()
                return
        self._read = True

    async def _end(self) -> None:
        """[DONE] came, and all but the end of the body should be there. With it the connection stays usable; nobody waits for one
        that is not ended."""
        left = _LEFT_BYTES
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_LEFT_S):
                async for chunk in self._chunks:
                    left -= len(chunk)
                    if left < 0:
                        return
                self._read = True

    def _succeeded(self) -> None:
        now_s = time.monotonic()
        self._told = True
        self._member.breaker.succeeded()
        self._member.learned.answered(now_s - self._begun_s, now_s)

    def _count(self, body: dict[str, Any]) -> None:
        usage = body.get("usage")
        if not isinstance(usage, dict):
            return
        tokens = sum(n for key in ("prompt_tokens", "completion_tokens") if isinstance(n := usage.get(key), int))
        price = self._member.upstream.cost_per_million_tokens
        self._spent.cost.spend((tokens - self._tokens) * price / 1e6, time.monotonic())
        self._tokens = tokens

    async def close(self) -> None:
        """Give the connection back; the upstream sees that nobody waits any more."""
        if not self._open:
            return
        self._open = False
        if not self._told:
            self._member.breaker.released()
        try:
            with contextlib.suppress(Exception):
                await self._response.aclose()
        finally:
            await self._member.lanes.give_back(self._client, clean=self._read)
            # httpx's stream and its response hold each other, and so do this and `_cut`: let go of all without waiting for the
            # garbage collector.
            self._response.stream = httpx.ByteStream(b"")
            with contextlib.suppress(RuntimeError):  # it runs, and ends by itself: its connection is gone
                await self._batches.aclose()
