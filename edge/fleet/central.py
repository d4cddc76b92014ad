"""The client of the central fleet: which upstream is asked, how long it is waited for, and what is learned from it.

One owner of all upstreams. A caller's key never travels: each upstream has credentials of its own.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from edge.admission.policy import Fleet
from edge.errors import ConfigurationError, FleetUnavailable, InvalidRequest
from edge.fleet.answer import FleetAnswer, Spent
from edge.fleet.limits import HourlyCap, RetryBudget
from edge.fleet.member import FleetRefused, Member, TryFailed, require_ok, require_plain, words
from edge.fleet.upstreams import Upstream

log = logging.getLogger(__name__)

HOP_HEADER = "x-edge-hop"
"""Set on every request that a node hands on. A node that gets one answers it itself or not at all: none goes in a circle."""
_RETRY_PAUSE_S = 0.05
_LEAST_TTFT_S = 0.01
"""Differences below this say nothing of who is better."""


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
class UpstreamState:
    """One upstream as people see it."""

    name: str
    state: str
    reason: str
    ttft_s: float
    error_share: float
    models: tuple[str, ...]


class Central:
    """Owner of all upstreams. `start` begins to probe them; `stop` closes their connections."""

    def __init__(self, upstreams: Iterable[Upstream], limits: FleetLimits) -> None:
        self._limits = limits
        self._members = [Member(upstream) for upstream in upstreams]
        self.bytes_cap = HourlyCap(limits.bytes_per_hour)
        self.cost_cap = HourlyCap(limits.cost_per_hour)
        self._spent = Spent(self.bytes_cap, self.cost_cap)
        self._retries = RetryBudget(limits.retry_share)
        self._probes: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Probe every upstream now and from now on, which opens and keeps its connections too."""
        self._probes = [asyncio.create_task(m.keep_probing(), name="fleet-probe") for m in self._members]

    async def stop(self) -> None:
        """End the probes and close all connections."""
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        for member in self._members:
            await member.lanes.close()

    # --- what the policy asks -----------------------------------------------------------------------------------------

    def view(self, model: str | None = None) -> Fleet:
        """What can be had now for the model served here (None), or for one of that name."""
        now_s = time.monotonic()
        if not self.bytes_cap.left(now_s):
            return Fleet(False, 0.0, "bytes_cap")
        if not self.cost_cap.left(now_s):
            return Fleet(False, 0.0, "cost_cap")
        able = [m for m in self._serving(model) if m.may_be_asked(now_s)]
        if not able:
            opened = any(m.breaker.state != "closed" for m in self._members)
            return Fleet(False, 0.0, "breaker_open" if opened else "fleet_busy")
        first = min(m.upstream.priority for m in able)
        return Fleet(True, min(m.learned.ttft_s(now_s) for m in able if m.upstream.priority == first))

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

    def continuing(self, model: str | None = None) -> Upstream | None:
        """An upstream that goes on with an answer that was begun, of the model served here (None) or of one of that name."""
        now_s = time.monotonic()
        able = [m.upstream for m in self._serving(model) if m.may_be_asked(now_s) and m.upstream.continues]
        return min(able, key=lambda upstream: upstream.priority, default=None)

    # --- requests -----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        path: str,
        body: dict[str, Any],
        *,
        model: str | None,
        request_id: str,
        trace: Mapping[str, str] | None = None,
        only: str = "",
        budget_s: float | None = None,
    ) -> FleetAnswer:
        """Have a request answered: by one upstream after the other while time and the retry budget last.

        `trace`: headers of the request's trace. `path` is below an upstream's `url`; `model` None means the one served
        here. Returns when the first token, or the whole answer, is there. Raises FleetUnavailable, FleetRefused, InvalidRequest.
        """
        streamed = bool(body.get("stream"))
        longest_s = self._limits.budget_s if streamed else self._limits.whole_budget_s
        deadline_s = time.monotonic() + min(budget_s or longest_s, longest_s)
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
            if self._choose(model, tried, only) is not None:
                left_s /= 2  # another one must have time too
            try:
                return await self._try(member, path, body, model, {"x-request-id": request_id, **(trace or {})}, left_s)
            except TryFailed as failure:
                said = f"{member.upstream.name}: {failure.reason}"
                self._failed(member, failure)
        raise FleetUnavailable(f"the fleet does not answer ({said})")

    def _failed(self, member: Member, failure: TryFailed) -> None:
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

    def _serving(self, model: str | None) -> list[Member]:
        return [m for m in self._members if model is None or model in m.models]

    def _choose(self, model: str | None, tried: set[str], only: str) -> Member | None:
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
        self,
        member: Member,
        path: str,
        body: dict[str, Any],
        model: str | None,
        given: Mapping[str, str],
        left_s: float,
    ) -> FleetAnswer:
        """One upstream. Raises TryFailed, FleetRefused, InvalidRequest."""
        upstream, begun_s = member.upstream, time.monotonic()
        name = member.model_name(model)
        try:
            data = orjson.dumps({**body, "model": name} if name else body)
        except TypeError:
            raise InvalidRequest("the request holds text or a number that is no valid JSON") from None
        try:
            client = member.lanes.take()
        except ConfigurationError as error:
            raise TryFailed(error.message) from None
        self.bytes_cap.spend(len(data), begun_s)
        member.breaker.sent(begun_s)
        answer: FleetAnswer | None = None
        begun = False
        try:
            headers = {"content-type": "application/json", HOP_HEADER: "1", **given}
            request = client.build_request("POST", path.lstrip("/"), content=data, headers=headers)
            patience_s = min(left_s, upstream.first_token_timeout_s) if body.get("stream") else left_s
            async with asyncio.timeout(patience_s):
                response = await client.send(request, stream=True)
                answer = FleetAnswer(self._spent, member, client, response, begun_s)
                require_plain(response)
                await require_ok(upstream.name, response)
                streamed = response.headers.get("content-type", "").startswith("text/event-stream")
                if streamed != bool(body.get("stream")):
                    raise TryFailed("its answer is of another kind than asked for")
                await (answer.begin_stream() if streamed else answer.read_whole())
            begun = True
            return answer
        except TimeoutError:
            raise TryFailed(f"no answer within {patience_s:.1f} s") from None
        except httpx.HTTPError as error:
            raise TryFailed(words(error)) from None
        except FleetRefused:
            member.breaker.succeeded()
            raise
        except (TryFailed, asyncio.CancelledError):
            raise
        except Exception as error:  # whatever httpx lets through: an upstream must not be able to break a request
            log.error("fleet client failed", extra={"event": "bug", "upstream": upstream.name}, exc_info=error)
            raise TryFailed(f"the client failed: {type(error).__name__}") from None
        finally:
            if not begun:
                member.breaker.released()
                if answer is not None:
                    await answer.close()
                else:
                    await member.lanes.give_back(client, clean=False)
