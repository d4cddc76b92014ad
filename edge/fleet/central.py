"""The client of the central fleet: which upstream is asked, how long it is waited for, and what is learned from it.

One owner of all upstreams. A caller's key never travels: each upstream has credentials of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import orjson

from edge.errors import FleetUnavailable, InvalidRequest
from edge.fleet.breaker import Breaker
from edge.fleet.events import BadStream, Event, EventCutter
from edge.fleet.lanes import Lanes
from edge.fleet.learned import Learned
from edge.fleet.limits import HourlyCap, RetryBudget
from edge.fleet.upstreams import Upstream

log = logging.getLogger(__name__)

HOP_HEADER = "x-edge-hop"
"""Set on every request that a node hands on. A node that gets one answers it itself or not at all: none goes in a circle."""
MAX_ANSWER_BYTES = 64 << 20
_PROBE_WELL_S, _PROBE_ILL_S = 20.0, 2.0
_PROBE_TIMEOUT_S = 5.0
_MAX_PROBE_BYTES = 1 << 20
_RETRY_PAUSE_S = 0.05
_LEAST_TTFT_S = 0.01
"""Differences below this say nothing of who is better."""
_DEFAULT_BUSY_S = 1.0
_LONGEST_BUSY_S = 60.0
_ERROR_BYTES = 4096
_PASSED_ON = frozenset({400, 413, 422})
"""The request's own fault: told to the caller, and no failure of the upstream."""

Reason = Literal["breaker_open", "fleet_busy", "bytes_cap", "cost_cap", ""]


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """Bounds of everything that is sent. 0: none."""

    budget_s: float
    """Longest that a caller waits for the first token, all tries together."""
    whole_budget_s: float
    """The same for a whole answer that is not streamed."""
    bytes_per_hour: int
    cost_per_hour: float
    retry_share: float


@dataclass(frozen=True, slots=True)
class FleetView:
    """What the fleet could do for a request now. `reason`: why it could not."""

    available: bool
    ttft_s: float
    reason: Reason = ""


@dataclass(frozen=True, slots=True)
class UpstreamState:
    """One upstream as people see it."""

    name: str
    state: str
    reason: str
    ttft_s: float
    error_share: float
    models: tuple[str, ...]


class FleetRefused(Exception):
    """An upstream refused the request itself: `status` and `body` are for the caller."""

    def __init__(self, upstream: str, status: int, body: bytes) -> None:
        super().__init__(f"{upstream} answered {status}")
        self.upstream = upstream
        self.status = status
        self.body = body


class _Failed(Exception):
    """One try failed. `busy_s`: the upstream asked to be left alone for so long."""

    def __init__(self, reason: str, *, busy_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.busy_s = busy_s


class _Member:
    """One upstream with its connection pool and what is known of it."""

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.breaker = Breaker()
        self.learned = Learned()
        self.models: tuple[str, ...] = ()
        self.lanes = Lanes(upstream)

    def may_be_asked(self, now_s: float) -> bool:
        """Its breaker and its bound allow one more request."""
        return self.breaker.allows(now_s) and not self.lanes.full

    def model_name(self, asked: str | None) -> str:
        """What it calls the model: `asked` None for the one that is served here."""
        return asked or self.upstream.model


class FleetAnswer:
    """An answer that has begun. Exactly one of `events` (streamed) and `body` is used. Close it when done."""

    def __init__(
        self, central: Central, member: _Member, client: httpx.AsyncClient, response: httpx.Response, begun_s: float
    ) -> None:
        self.upstream = member.upstream.name
        self.content_type = response.headers.get("content-type", "application/json")
        self._central = central
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
        """Wait for the first event with content. Raises _Failed."""
        async for events in self._cut():
            self._first += events
            if error := next((e.error for e in events if e.error), ""):
                raise _Failed(f"it sent an error: {error}")
            if any(e.has_content or e.ends for e in events):
                self._succeeded()
                return
        raise _Failed("its stream ended before it began")

    async def read_whole(self) -> None:
        """Read an answer that is not streamed. Raises _Failed."""
        data = b""
        async for chunk in self._chunks:
            self._central.bytes_cap.spend(len(chunk), time.monotonic())
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise _Failed("its answer is too long")
        self._read = True
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            raise _Failed("its answer is not JSON") from None
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            raise _Failed("its answer is none of the API's")
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
        except (_Failed, httpx.HTTPError) as error:
            self._broke(_words(error))
        if not finished:
            self._broke("its stream broke off")

    def _note(self, events: list[Event]) -> bool:
        """Whether the answer ends with these. Raises _Failed for an error among them."""
        for event in events:
            if event.error:
                raise _Failed(f"it sent an error: {event.error}")
            if event.body is not None:
                self._count(event.body)
        return any(event.ends for event in events)

    def _broke(self, reason: str) -> None:
        self._member.breaker.failed(reason)
        self._member.learned.failed()
        raise FleetUnavailable(f"the fleet's answer broke off: {self.upstream}: {reason}")

    async def _cut(self) -> AsyncIterator[list[Event]]:
        """What comes together; [DONE] is the last. Raises _Failed, after what was good."""
        async for chunk in self._chunks:
            self._central.bytes_cap.spend(len(chunk), time.monotonic())
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
                raise _Failed(wrong)
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
        self._central.cost_cap.spend((tokens - self._tokens) * price / 1e6, time.monotonic())
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


class Central:
    """Owner of all upstreams. `start` begins to probe them; `stop` closes their connections."""

    def __init__(self, upstreams: Iterable[Upstream], limits: FleetLimits) -> None:
        self._limits = limits
        self._members = [_Member(upstream) for upstream in upstreams]
        self.bytes_cap = HourlyCap(limits.bytes_per_hour)
        self.cost_cap = HourlyCap(limits.cost_per_hour)
        self._retries = RetryBudget(limits.retry_share)
        self._probes: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Probe every upstream now and from now on, which opens and keeps its connections too."""
        self._probes = [asyncio.create_task(self._keep_probing(m), name="fleet-probe") for m in self._members]

    async def stop(self) -> None:
        """End the probes and close all connections."""
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for member in self._members:
            await member.lanes.close()

    # --- what the policy asks -----------------------------------------------------------------------------------------

    def view(self, model: str | None = None) -> FleetView:
        """What can be had now for the model served here (None), or for one of that name."""
        now_s = time.monotonic()
        if not self.bytes_cap.left(now_s):
            return FleetView(False, 0.0, "bytes_cap")
        if not self.cost_cap.left(now_s):
            return FleetView(False, 0.0, "cost_cap")
        able = [m for m in self._serving(model) if m.may_be_asked(now_s)]
        if not able:
            opened = any(m.breaker.state != "closed" for m in self._members)
            return FleetView(False, 0.0, "breaker_open" if opened else "fleet_busy")
        first = min(m.upstream.priority for m in able)
        return FleetView(True, min(m.learned.ttft_s(now_s) for m in able if m.upstream.priority == first))

    def knows(self, model: str) -> bool:
        """Whether some upstream has a model of that name."""
        return any(model in m.models for m in self._members)

    def states(self) -> list[UpstreamState]:
        """All upstreams, for people."""
        now_s = time.monotonic()
        return [
            UpstreamState(
                m.upstream.name,
                m.breaker.state,
                m.breaker.reason,
                m.learned.ttft_s(now_s),
                m.learned.error_share,
                m.models,
            )
            for m in self._members
        ]

    def continuing(self) -> Upstream | None:
        """An upstream that goes on with an answer that was begun, for the model served here."""
        now_s = time.monotonic()
        able = [m.upstream for m in self._members if m.may_be_asked(now_s) and m.upstream.continues]
        return min(able, key=lambda upstream: upstream.priority, default=None)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        path: str,
        body: dict[str, Any],
        *,
        model: str | None,
        request_id: str,
        only: str = "",
        budget_s: float | None = None,
    ) -> FleetAnswer:
        """Have a request answered: by one upstream after the other while time and the retry budget last.

        `path` is below an upstream's `url`; `model` None means the one served here. Returns when the first token, or the whole
        answer, is there. Raises FleetUnavailable, FleetRefused.
        """
        streamed = bool(body.get("stream"))
        longest_s = self._limits.budget_s if streamed else self._limits.whole_budget_s
        deadline_s = time.monotonic() + min(budget_s or longest_s, longest_s)
        try:
            orjson.dumps(body)
        except TypeError:
            raise InvalidRequest("the request holds text or a number that is no valid JSON") from None
        tried: set[str] = set()
        said = "no upstream may be asked now"
        self._retries.asked()
        while (member := self._choose(model, tried, only)) is not None:
            if tried:
                if not self._retries.take():
                    said = f"{said}; no more tries are left"
                    break
                await asyncio.sleep(_RETRY_PAUSE_S * random.uniform(0.5, 1.5))
            tried.add(member.upstream.name)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            others = 0 if only else sum(m.may_be_asked(time.monotonic()) for m in self._serving(model)) - 1
            left_s /= 1 + min(max(0, others), 1)  # a second one must have time too
            try:
                return await self._try(member, path, body, model, request_id, left_s)
            except _Failed as failure:
                said = f"{member.upstream.name}: {failure.reason}"
                self._failed(member, failure)
        raise FleetUnavailable(f"the fleet does not answer ({said})")

    def _failed(self, member: _Member, failure: _Failed) -> None:
        before = member.breaker.state
        member.learned.failed()
        if failure.busy_s is not None:
            member.breaker.busy(time.monotonic() + failure.busy_s)
        else:
            member.breaker.failed(failure.reason)
        fields = {"upstream": member.upstream.name, "reason": failure.reason}
        if member.breaker.state == "open" and before != "open":
            log.warning("upstream left alone", extra={"event": "breaker_open", **fields})
        else:
            log.info("upstream failed", extra={"event": "upstream_failed", **fields})

    def _serving(self, model: str | None) -> list[_Member]:
        return [m for m in self._members if model is None or model in m.models]

    def _choose(self, model: str | None, tried: set[str], only: str) -> _Member | None:
        """The first priority that has one that may be asked; among these by weight, the quick and reliable rather."""
        now_s = time.monotonic()
        able = [
            m
            for m in self._serving(model)
            if m.upstream.name not in tried and m.may_be_asked(now_s) and only in ("", m.upstream.name)
        ]
        if not able:
            return None
        first = min(m.upstream.priority for m in able)
        able = [m for m in able if m.upstream.priority == first]
        best_s = min(m.learned.ttft_s(now_s) for m in able)
        # One that was never asked counts as quick as the quickest, or it never would be.
        times = [m.learned.ttft_s(now_s) if m.learned.known else best_s for m in able]
        weights = [
            m.upstream.weight * (1.01 - m.learned.error_share) / max(_LEAST_TTFT_S, s)
            for m, s in zip(able, times, strict=True)
        ]
        return random.choices(able, weights)[0]

    async def _try(
        self, member: _Member, path: str, body: dict[str, Any], model: str | None, request_id: str, left_s: float
    ) -> FleetAnswer:
        """One upstream. Raises _Failed, FleetRefused."""
        upstream, begun_s = member.upstream, time.monotonic()
        name = member.model_name(model)
        data = orjson.dumps({**body, "model": name} if name else body)
        self.bytes_cap.spend(len(data), begun_s)
        member.breaker.sent(begun_s)
        client = member.lanes.take()
        answer: FleetAnswer | None = None
        begun = False
        try:
            headers = {"content-type": "application/json", HOP_HEADER: "1", "x-request-id": request_id}
            request = client.build_request("POST", path.lstrip("/"), content=data, headers=headers)
            patience_s = min(left_s, upstream.first_token_timeout_s) if body.get("stream") else left_s
            async with asyncio.timeout(patience_s):
                response = await client.send(request, stream=True)
                answer = FleetAnswer(self, member, client, response, begun_s)
                await _require_ok(upstream.name, response)
                streamed = response.headers.get("content-type", "").startswith("text/event-stream")
                if streamed != bool(body.get("stream")):
                    raise _Failed("its answer is of another kind than asked for")
                await (answer.begin_stream() if streamed else answer.read_whole())
            begun = True
            return answer
        except TimeoutError:
            raise _Failed(f"no answer within {patience_s:.1f} s") from None
        except httpx.HTTPError as error:
            raise _Failed(_words(error)) from None
        except FleetRefused:
            member.breaker.succeeded()
            raise
        except (_Failed, asyncio.CancelledError):
            raise
        except Exception as error:  # whatever httpx lets through: an upstream must not be able to break a request
            log.error("fleet client failed", extra={"event": "bug", "upstream": upstream.name}, exc_info=error)
            raise _Failed(f"the client failed: {type(error).__name__}") from None
        finally:
            if not begun:
                member.breaker.released()
                if answer is not None:
                    await answer.close()
                else:
                    await member.lanes.give_back(client, clean=False)

    # --- health -------------------------------------------------------------------------------------------------------

    async def _keep_probing(self, member: _Member) -> None:
        while True:
            reason = await self._probe(member)
            before = member.breaker.state
            if reason or before == "open":
                member.breaker.probed(not reason, reason)
            if member.breaker.state != before:
                fields = {"event": "upstream_" + member.breaker.state.replace("-", "_"), "reason": reason}
                log.warning("upstream changed", extra={"upstream": member.upstream.name, **fields})
            pause_s = _PROBE_WELL_S if member.breaker.state == "closed" else _PROBE_ILL_S
            for _ in range(int(pause_s / _PROBE_ILL_S)):
                await asyncio.sleep(_PROBE_ILL_S * random.uniform(0.75, 1.25))
                if member.breaker.state == "open":
                    break

    async def _probe(self, member: _Member) -> str:
        """What is wrong with it, empty if nothing. Its list of models is what every such server has."""
        client = member.lanes.take()
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                response = await client.get("models")
            if response.status_code != httpx.codes.OK:
                return f"GET models answered {response.status_code}"
            if len(response.content) > _MAX_PROBE_BYTES:
                return "GET models answered too much"
            listed = orjson.loads(response.content)
            member.models = tuple(str(entry["id"]) for entry in listed["data"])
        except TimeoutError:
            return f"GET models had no answer within {_PROBE_TIMEOUT_S:g} s"
        except httpx.HTTPError as error:
            return _words(error)
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return "GET models answered nonsense"
        except Exception as error:
            log.error("probe failed", extra={"event": "bug", "upstream": member.upstream.name}, exc_info=error)
            return f"the client failed: {type(error).__name__}"
        finally:
            await member.lanes.give_back(client)
        return ""


async def _require_ok(name: str, response: httpx.Response) -> None:
    status = response.status_code
    if status == httpx.codes.OK:
        return
    if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        raise _Failed(f"it answered {status}", busy_s=_retry_after_s(response))
    if status in _PASSED_ON:
        data = b""
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > _ERROR_BYTES:
                data = orjson.dumps({"error": {"message": "refused by the fleet", "type": "invalid_request_error"}})
                break
        raise FleetRefused(name, status, data)
    hint = " (does it know a model of that name? see fleet.model)" if status == httpx.codes.NOT_FOUND else ""
    raise _Failed(f"it answered {status}{hint}")


def _retry_after_s(response: httpx.Response) -> float:
    for header, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            return min(max(float(response.headers[header]) * unit, 0.0), _LONGEST_BUSY_S)
    return _DEFAULT_BUSY_S


def _words(error: Exception) -> str:
    if isinstance(error, _Failed):
        return error.reason
    if isinstance(error, httpx.TimeoutException):
        return "it went silent" if isinstance(error, httpx.ReadTimeout) else "no connection in time"
    return f"{type(error).__name__}: {error}"[:200]
