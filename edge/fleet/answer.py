"""One answer of an upstream's, from its first byte to its last: streamed or whole."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from edge.errors import FleetUnavailable
from edge.fleet.events import BadStream, Event, EventCutter
from edge.fleet.limits import HourlyCap
from edge.fleet.member import Member, TryFailed, words

MAX_ANSWER_BYTES = 64 << 20


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
        self.content_type = response.headers.get("content-type", "application/json")
        self._spent = spent
        self._member = member
        self._client = client
        self._response = response
        self._begun_s = begun_s
        self._first: list[Event] = []
        self._chunks = response.aiter_bytes()
        self._cutter = EventCutter()
        self._told = False
        self._tokens = 0
        self.body: dict[str, Any] = {}
        self._open = True
        self._read = False
        """To its end: the connection can carry another."""

    async def begin_stream(self) -> None:
        """Wait for the first event with content. Raises TryFailed."""
        async for events in self._cut():
            self._first += events
            if error := next((e.error for e in events if e.error), ""):
                raise TryFailed(f"it sent an error: {error}")
            if any(e.has_content or e.ends for e in events):
                self._succeeded()
                return
        raise TryFailed("its stream ended before it began")

    async def read_whole(self) -> None:
        """Read an answer that is not streamed. Raises TryFailed."""
        data = b""
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
            source = self._cut()
            if self._first:
                finished = self._note(self._first)
                yield self._first
            async for events in source:
                good = list(itertools.takewhile(lambda event: not event.error, events))
                finished = self._note(good) or finished
                if good:
                    yield good
                self._note(events[len(good) :])
        except (TryFailed, httpx.HTTPError) as error:
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

    async def _cut(self) -> AsyncIterator[list[Event]]:
        """What comes together; [DONE] is the last. Raises TryFailed, after what was good."""
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
            if wrong:
                raise TryFailed(wrong)
            if done:
                async for (
                    _
                ) in self._chunks:  # the rest of the body, of which nothing is left: the connection stays usable
                    pass
                break
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
            with contextlib.suppress(httpx.HTTPError, RuntimeError):
                await self._response.aclose()
        finally:
            await self._member.lanes.give_back(self._client, clean=self._read)
            # httpx's stream and its response hold each other: let go of both without waiting for the garbage collector.
            self._response.stream = httpx.ByteStream(b"")
