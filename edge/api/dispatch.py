"""One request's way: what is decided about it, in order, and how that is carried out.

First the door (can the engine be asked?), then the engine's own outlook, then the fleet, then a late answer or a refusal. Every
decision is written into the node's log of decisions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi import Request
from starlette.responses import Response

from edge.admission.decisions import Entry
from edge.admission.policy import Ask, Decision, Fleet, Late, at_the_door, may_leave, when_late
from edge.api.answers import Choices, new_id
from edge.api.ask import asked
from edge.api.failover import Continuation
from edge.api.front import Front
from edge.api.gate import KEY_NAME, READ_AT, REQUEST_ID
from edge.api.handed_on import handed_on
from edge.api.job import ClientGone, Job, unless_gone
from edge.api.render import json_response, usage
from edge.api.schema import Generation
from edge.api.stream import ChunkWriter, EventStream, StreamWatch, frames
from edge.errors import (
    Declined,
    EdgeError,
    EngineDown,
    EngineFault,
    FleetUnavailable,
    ModelLoading,
    NotInTime,
    Overloaded,
)
from edge.messages import Offer, Submit, Token

_LEAST_WAIT_S = 0.1
WorkOf = Callable[[], tuple[list[Submit], Choices]]


class Dispatch:
    """Use once: `answer`."""

    def __init__(self, request: Request, front: Front, body: Generation, work_of: WorkOf) -> None:
        self._request = request
        self._front = front
        self._body = body
        self._work_of = work_of
        self._ask: Ask = asked(request.headers, body.service_tier)
        self._entry = front.decisions.begin(
            Entry(request.scope[REQUEST_ID], time.time(), self._ask.tier, self._ask.policy)
        )

    async def answer(self) -> Response:
        """The answer, from wherever it comes. Raises EdgeError."""
        try:
            return await self._answer()
        except ClientGone:
            self._entry.outcome = "cancelled"
            return Response(status_code=499)
        except EdgeError as error:
            self._entry.outcome = error.code or error.kind
            if self._entry.route == "fleet":  # asked, and did not answer
                self._decided(Decision("refuse", self._entry.reason, "breaker_open"))
            raise

    async def _answer(self) -> Response:
        front, mode = self._front, self._front.config.mode
        obstacle = front.obstacle(self._body.model)
        view = front.fleet_view(self._body.model)
        decision = at_the_door(self._ask, mode, view, obstacle.reason if obstacle is not None else None)
        if obstacle is None:
            return await self._here()
        if decision.route == "fleet":
            try:
                return await self._by_fleet(decision)
            except FleetUnavailable:
                decision = Decision("refuse", obstacle.reason, "breaker_open")
                if front.obstacle(self._body.model) is None:  # that was some time ago
                    return await self._here()
        self._decided(decision)
        raise obstacle.error

    async def _here(self) -> Response:
        """Ask the engine; if it would be late, see who is sooner. What is queued late may find the queue too long by then: asked
        once more."""
        config, view = self._front.config, self._front.fleet_view()
        barred = may_leave(self._ask, config.mode, view)
        strict = config.mode == "strict" or (config.mode == "fleet" and config.offline == "strict")
        declines = barred is None or (strict and self._ask.tier != "flex")
        decision = Decision("local", "", barred or "")
        # A full engine would decline once more, and to read the prompt for that takes time from others. How long a late answer
        # would take may be another by now: where that decides against the fleet, it is asked all the same.
        answered: Response | Declined | None = self._front.engine.full if barred is None else None
        known = answered is not None
        while True:
            if answered is None:
                answered = await self._tried(decision, view, declines=declines)
            if isinstance(answered, Response):
                return answered
            late = Late(answered.reason, answered.late_s, answered.hopeless)  # type: ignore[arg-type]
            self._entry.predicted_ttft_s, self._entry.prompt_tokens = answered.late_s, answered.prompt_tokens or None
            decision = when_late(self._ask, config.mode, config.offline, view, late)
            if decision.route == "fleet":
                try:
                    return await self._by_fleet(decision)
                except FleetUnavailable:
                    view = _unavailable(view)
                    decision = when_late(self._ask, config.mode, config.offline, view, late)
            if decision.route == "refuse":
                self._decided(decision)
                raise _refusal(answered)
            declines, answered, known = known, None, False

    async def _tried(self, decision: Decision, view: Fleet | None, *, declines: bool) -> Response | Declined:
        """The engine's answer, or why it declines; the fleet's if the engine fails before it has said anything."""
        try:
            return await self._by_engine(decision, declines=declines)
        except Declined as declined:
            return declined.with_traceback(None)  # kept with its frames it would keep all that they hold
        except (EngineDown, ModelLoading) as failure:
            if may_leave(self._ask, self._front.config.mode, view) is not None:
                raise
            try:
                return await self._by_fleet(Decision("fleet", "engine_down"))
            except FleetUnavailable:
                raise failure from None

    def _decided(self, decision: Decision, at_s: float | None = None) -> None:
        self._entry.decided(decision)
        self._entry.decided_s = (at_s or time.monotonic()) - self._request.scope[READ_AT]
        self._front.decisions.count(self._entry)

    # --- by the engine ------------------------------------------------------------------------------------------------

    async def _by_engine(self, decision: Decision, *, declines: bool) -> Response:
        """Raises Declined, and whatever the engine fails with before it has said anything."""
        request, front, body = self._request, self._front, self._body
        work, choices = self._work_of()
        stamps: dict[str, Any] = {
            "arrived_s": request.scope[READ_AT],
            "key": request.scope[KEY_NAME],
            "tier": self._ask.tier,
            "late": "decline" if declines else "queue",
            "max_wait_s": max(_LEAST_WAIT_S, front.config.max_wait_s - (time.monotonic() - request.scope[READ_AT])),
        }
        job = Job(front.engine, [msgspec.structs.replace(w, **stamps) for w in work])
        events = aiter(job)
        streaming = False
        try:
            # Nothing is promised by a 200 before the engine has really produced something.
            first = await unless_gone(request, asyncio.create_task(_first(events, job, choices)))
            self._decided(_settled(decision, job), job.offered_s)
            self._note(job)
            headers = self._headers(job)
            fingerprint = f"fp_{front.facts().digest}"
            if body.stream:
                streaming = True
                with_usage = bool(body.stream_options and body.stream_options.include_usage)
                writer = ChunkWriter(choices, front, fingerprint, with_usage=with_usage)
                watch = StreamWatch(front, self._entry, request.scope[READ_AT], admitted=job.admitted)
                chunks = frames(
                    first, events, job=job, choices=choices, writer=writer, watch=watch, with_usage=with_usage,
                    go_on=Continuation(front, self._ask, self._entry, body, choices, job, writer, with_usage=with_usage),
                )  # fmt: skip
                return EventStream(
                    _counted(chunks, front, job), lambda: self._over(job), headers, front.config.write_timeout_s
                )
            await unless_gone(request, asyncio.create_task(_rest(first, events, choices)))
            _count(front, job)
            self._entry.outcome = "ok"
            return json_response(_whole(front, job, choices, fingerprint), headers=headers)
        finally:
            if not streaming:
                job.abort()

    def _over(self, job: Job) -> None:
        """The stream is written, or nobody reads it any more."""
        self._entry.outcome = self._entry.outcome or "cancelled"
        job.abort()

    def _note(self, job: Job) -> None:
        entry, front = self._entry, self._front
        entry.prompt_tokens, entry.cached_tokens = job.prompt_tokens, job.cached_tokens
        entry.predicted_ttft_s = job.predicted_s
        entry.ttft_s = time.monotonic() - self._request.scope[READ_AT]
        front.metrics.queue.observe(job.timing.queue_s)
        front.metrics.prefill.observe(job.timing.prefill_s)

    def _headers(self, job: Job) -> dict[str, str]:
        """`Server-Timing` (W3C): the engine's own time from Submit to the first token, in milliseconds."""
        timing = job.timing
        headers = {
            "server-timing": f"queue;dur={timing.queue_s * 1000:.2f}, prefill;dur={timing.prefill_s * 1000:.2f}",
            "x-edge-class": "slo" if job.admitted else "best-effort",
        }
        return {**headers, "x-edge-reason": job.reason} if job.reason else headers

    # --- by the fleet -------------------------------------------------------------------------------------------------

    async def _by_fleet(self, decision: Decision) -> Response:
        """Raises FleetUnavailable if no upstream answers in time."""
        fleet = self._front.fleet
        assert fleet is not None
        self._entry.decided(decision)
        self._entry.decided_s = time.monotonic() - self._request.scope[READ_AT]
        body: dict[str, Any] = await self._request.json()
        response = await handed_on(self._request, self._front, fleet, self._entry, body)
        self._front.decisions.count(self._entry)
        return response


def _settled(decision: Decision, job: Job) -> Decision:
    """What the engine made of it. What is admitted needs no reason, and the fleet was no question."""
    if job.admitted:
        return Decision("local", "")
    return Decision("late", job.reason or decision.reason, decision.fleet_reason)


def _unavailable(view: Fleet | None) -> Fleet | None:
    return None if view is None else Fleet(False, 0.0, "breaker_open")


def _refusal(declined: Declined) -> EdgeError:
    """A new error each time: one that is raised again and again grows with every time."""
    if declined.hopeless:
        return NotInTime(
            f"{declined.message.partition(';')[0]}, not even by an idle node: shorten the prompt, or allow late answers "
            "(admission.mode)"
        )
    refusal = Overloaded(declined.message, retry_after_s=declined.retry_after_s)
    refusal.reason = declined.reason
    return refusal


async def _first(
    events: AsyncIterator[tuple[int, Offer | Token]], job: Job, choices: Choices
) -> list[tuple[int, Token]]:
    """What came until every prompt was judged and some text is there: one that is declined must not cut off another's answer."""
    offers, tokens = 0, []
    async for prompt, event in events:
        if isinstance(event, Token):
            tokens.append((prompt, event))
        else:
            choices.offer(prompt, event)
            offers += 1
        if tokens and offers == job.prompts:
            return tokens
    raise EngineFault("the engine ended the request without an answer")


async def _rest(
    first: list[tuple[int, Token]], events: AsyncIterator[tuple[int, Offer | Token]], choices: Choices
) -> None:
    for early in first:
        choices.deltas(*early)
    async for prompt, event in events:
        if isinstance(event, Token):
            choices.deltas(prompt, event)
        else:
            choices.offer(prompt, event)


async def _counted(chunks: AsyncIterator[bytes], front: Front, job: Job) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    _count(front, job)


def _count(front: Front, job: Job) -> None:
    front.metrics.duration.observe(time.monotonic() - job.begun_s)
    front.metrics.prompt_tokens.inc(sum(f.prompt_tokens for f in job.finished))
    front.metrics.answer_tokens.inc(sum(f.completion_tokens for f in job.finished))


def _whole(front: Front, job: Job, choices: Choices, fingerprint: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl" if choices.object_name.startswith("chat") else "cmpl"),
        "object": choices.object_name,
        "created": int(time.time()),
        "model": front.config.model_name,
        "system_fingerprint": fingerprint,
        "choices": choices.whole(),
        "usage": usage(job.finished),
    }
