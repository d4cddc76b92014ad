"""One request's way: what is decided about it, in order, and how that is carried out.

First the door (can the engine be asked? is the model loaded?), then the engine's own outlook, then the fleet, then a late answer
or a refusal. Every decision is written into the node's log of decisions.
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
from edge.admission.policy import Ask, Decision, Fleet, Late, Reason, at_the_door, may_leave, when_late
from edge.api.answers import Choices, new_id
from edge.api.ask import asked
from edge.api.failover import Continuation
from edge.api.front import Front, reason_of
from edge.api.gate import KEY_NAME, READ_AT, REQUEST_ID, TRACE
from edge.api.handed_on import handed_on
from edge.api.job import ClientGone, Job, unless_gone
from edge.api.render import json_response, usage
from edge.api.schema import Generation
from edge.api.served import Served
from edge.api.stream import ChunkWriter, EventStream, StreamWatch, frames
from edge.api.tracing import RequestTrace
from edge.api.translate import Dialect
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
from edge.residency import Lease

_LEAST_WAIT_S = 0.1
WorkOf = Callable[[Dialect], tuple[list[Submit], Choices]]


class Dispatch:
    """Use once: `answer`."""

    def __init__(self, request: Request, front: Front, body: Generation, work_of: WorkOf) -> None:
        self._request = request
        self._front = front
        self._body = body
        self._work_of = work_of
        self._ask: Ask = asked(request.headers, body.service_tier)
        model = front.pool.roster.find(body.model) or ""
        self._entry = front.decisions.begin(
            Entry(request.scope[REQUEST_ID], time.time(), self._ask.tier, self._ask.policy, model)
        )
        self._trace: RequestTrace = request.scope[TRACE]
        self._trace.entry = self._entry
        self._lease: Lease | None = None
        """On an engine that was waited for; the next try takes it."""
        self._waited: Decision | None = None
        """What became of it, if it has waited for its model to be loaded."""

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
        front, mode, model = self._front, self._front.config.mode, self._body.model
        obstacle = front.obstacle(model)
        decision = at_the_door(
            self._ask, mode, front.fleet_view(model), obstacle.reason if obstacle is not None else None
        )
        if obstacle is not None and obstacle.reason == "loading":
            front.pool.want(
                front.pool.roster.require(model)
            )  # whoever answers this request: the next one finds it loaded
        if obstacle is not None and decision.route == "fleet":
            try:
                return await self._by_fleet(decision)
            except FleetUnavailable:
                decision = Decision("refuse", obstacle.reason, "breaker_open")
                obstacle = front.obstacle(model)  # that was some time ago
        if obstacle is None or (obstacle.reason == "loading" and front.may_wait(model)):
            return await self._here_once_loaded(decision.fleet_reason)
        self._decided(decision)
        raise obstacle.error

    async def _here_once_loaded(self, fleet_reason: Reason) -> Response:
        """Ask the engine; wait for it first, if its model is not in memory or leaves it just now. `fleet_reason`: why the fleet
        does not answer meanwhile."""
        front, model = self._front, self._body.model
        try:
            return await self._here()
        except ModelLoading:
            if not front.may_wait(model):
                raise
        name = front.pool.roster.require(model)
        waiting = asyncio.create_task(front.pool.acquire(name, front.config.load_wait_s), name="wait-for-model")
        try:
            self._lease = await unless_gone(self._request, waiting)
        except EdgeError as error:
            self._decided(Decision("refuse", reason_of(error)))
            raise
        self._waited = Decision("late", "loading", fleet_reason)
        try:
            return await self._here()
        finally:
            if self._lease is not None:  # somebody else has answered
                self._lease.release()

    async def _here(self) -> Response:
        """Ask the engine; if it would be late, see who is sooner. What is queued late may find the queue too long by then: asked
        once more."""
        config, view = self._front.config, self._front.fleet_view(self._body.model)
        barred = may_leave(self._ask, config.mode, view)
        strict = config.mode == "strict" or (config.mode == "fleet" and config.offline == "strict")
        declines = barred is None or (strict and self._ask.tier != "flex")
        decision = Decision("local", "", barred or "")
        # A full engine would decline once more, and to read the prompt for that takes time from others. How long a late answer
        # would take may be another by now: where that decides against the fleet, it is asked all the same.
        answered: Response | Declined | None = self._full() if barred is None else None
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

    def _full(self) -> Declined | None:
        """Why its engine would decline it without a look."""
        name = self._front.pool.roster.find(self._body.model)
        engine = self._front.pool.roster.engine(name) if name is not None else None
        return engine.full if engine is not None and engine.kind == "language" else None

    async def _tried(self, decision: Decision, view: Fleet | None, *, declines: bool) -> Response | Declined:
        """The engine's answer, or why it declines; the fleet's if the engine fails before it has said anything."""
        try:
            return await self._by_engine(decision, declines=declines)
        except Declined as declined:
            return declined.with_traceback(None)  # kept with its frames it would keep all that they hold
        except (EngineDown, ModelLoading) as failure:
            if may_leave(self._ask, self._front.config.mode, view) is not None:
                raise
            reason: Reason = "loading" if isinstance(failure, ModelLoading) else "engine_down"
            try:
                return await self._by_fleet(Decision("fleet", reason))
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
        lease, self._lease = self._lease, None
        with front.served(body.model, lease) as served:
            job, choices = self._submitted(served, declines=declines)
        self._trace.job = job
        events = aiter(job)
        streaming = False
        try:
            # Nothing is promised by a 200 before the engine has really produced something.
            first = await unless_gone(request, asyncio.create_task(_first(events, job, choices)))
            self._decided(self._settled(decision, job, served), job.offered_s)
            self._note(job, served)
            headers = self._headers(job)
            if body.stream:
                streaming = True
                with_usage = bool(body.stream_options and body.stream_options.include_usage)
                writer = ChunkWriter(choices, served.name, served.fingerprint, with_usage=with_usage)
                watch = StreamWatch(
                    front, served, self._entry, request.scope[READ_AT], operation=_operation(choices),
                    admitted=self._entry.route == "local",
                )  # fmt: skip
                chunks = frames(
                    first, events, job=job, choices=choices, writer=writer, watch=watch, with_usage=with_usage,
                    go_on=Continuation(
                        front, self._ask, self._entry, body, choices, job, writer, with_usage=with_usage,
                        trace=self._trace,
                    ),
                )  # fmt: skip
                return EventStream(
                    _counted(chunks, lambda: self._count(served, job, choices)),
                    lambda: self._over(job),
                    headers,
                )
            await unless_gone(request, asyncio.create_task(_rest(first, events, choices)))
            self._count(served, job, choices)
            self._entry.outcome = "ok"
            return json_response(_whole(served, job, choices), headers=headers)
        finally:
            if not streaming:
                job.abort()

    def _submitted(self, served: Served, *, declines: bool) -> tuple[Job, Choices]:
        """The request as the engine has it."""
        read_s = self._request.scope[READ_AT]
        work, choices = self._work_of(served.dialect)
        stamps: dict[str, Any] = {
            "arrived_s": read_s if self._waited is None else time.monotonic(),
            "key": self._request.scope[KEY_NAME],
            "tier": self._ask.tier,
            "late": "decline" if declines else "queue",
            "max_wait_s": max(_LEAST_WAIT_S, self._front.config.max_wait_s - (time.monotonic() - read_s)),
        }
        if self._waited is not None:  # it has waited already: now it is answered, however late
            stamps |= {"late": "queue", "max_wait_s": 0.0}
        return Job(served.engine, [msgspec.structs.replace(w, **stamps) for w in work]), choices

    def _over(self, job: Job) -> None:
        """The stream is written, or nobody reads it any more."""
        self._entry.outcome = self._entry.outcome or "cancelled"
        job.abort()

    def _settled(self, decision: Decision, job: Job, served: Served) -> Decision:
        """What the engine made of it. What is admitted needs no reason, and the fleet was no question."""
        if self._waited is not None:
            return self._waited
        if job.admitted:
            return Decision("local", "")
        promised = self._front.config.mode != "off"
        reason = job.reason or decision.reason or ("further_model" if promised and not served.main else "")
        return Decision("late", reason, decision.fleet_reason)

    def _note(self, job: Job, served: Served) -> None:
        entry, front = self._entry, self._front
        entry.prompt_tokens, entry.cached_tokens = job.prompt_tokens, job.cached_tokens
        entry.predicted_ttft_s = job.predicted_s
        entry.ttft_s = time.monotonic() - self._request.scope[READ_AT]
        front.metrics.vllm.began(served.name, entry.ttft_s)
        if served.main and entry.route == "local" and job.predicted_s > 0:
            front.metrics.prediction.observe(entry.ttft_s / job.predicted_s)
        if served.main:
            front.metrics.queue.observe(job.timing.queue_s)
            front.metrics.prefill.observe(job.timing.prefill_s)

    def _count(self, served: Served, job: Job, choices: Choices) -> None:
        """The engine's answer is over."""
        metrics = self._front.metrics
        prompt_tokens = sum(f.prompt_tokens for f in job.finished)
        answer_tokens = sum(f.completion_tokens for f in job.finished)
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.answer_tokens.inc(answer_tokens)
        if len(job.finished) == job.prompts:  # else it broke off
            took_s = time.monotonic() - self._request.scope[READ_AT]
            metrics.vllm.ended(served.name, took_s, prompt_tokens, answer_tokens)
            metrics.whole(_operation(choices), served.name, took_s)

    def _headers(self, job: Job) -> dict[str, str]:
        """`Server-Timing` (W3C): the engine's own time from Submit to the first token, in milliseconds."""
        timing = job.timing
        headers = {
            "server-timing": f"queue;dur={timing.queue_s * 1000:.2f}, prefill;dur={timing.prefill_s * 1000:.2f}",
            "x-edge-class": "slo" if self._entry.route == "local" else "best-effort",
        }
        return {**headers, "x-edge-reason": self._entry.reason} if self._entry.reason else headers

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


def _unavailable(view: Fleet | None) -> Fleet | None:
    return None if view is None else Fleet(False, 0.0, "breaker_open")


def _refusal(declined: Declined) -> EdgeError:
    """A new error each time: one that is raised again and again grows with every time."""
    if declined.hopeless and declined.reason != "wait":
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


async def _counted(chunks: AsyncIterator[bytes], count: Callable[[], None]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    count()


def _operation(choices: Choices) -> str:
    """What OpenTelemetry calls it."""
    return "chat" if choices.object_name.startswith("chat") else "text_completion"


def _whole(served: Served, job: Job, choices: Choices) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl" if choices.object_name.startswith("chat") else "cmpl"),
        "object": choices.object_name,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": served.fingerprint,
        "choices": choices.whole(),
        "usage": usage(job.finished),
    }
