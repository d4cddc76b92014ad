"""An answer of the fleet's, passed on as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from edge.admission.decisions import Entry
from edge.api.front import Front
from edge.api.gate import READ_AT, TRACE
from edge.api.job import unless_gone
from edge.api.render import error_object, json_response
from edge.api.stream import EventStream
from edge.api.turnstile import Turnstile
from edge.errors import FleetUnavailable
from edge.fleet.answer import FleetAnswer
from edge.fleet.central import Central
from edge.fleet.events import Event
from edge.fleet.member import FleetRefused


async def handed_on(request: Request, front: Front, fleet: Central, entry: Entry, body: dict[str, Any]) -> Response:
    """Have the fleet answer. Raises FleetUnavailable before anything was sent."""
    model = front.fleet_name(body.get("model"))
    options = body.get("stream_options") or {}
    asked = {**body, "model": model or front.pool.roster.main}
    if body.get("stream"):
        asked["stream_options"] = {**options, "include_usage": True}
    path, trace = request.url.path.removeprefix("/v1/"), request.scope[TRACE].forwarded()
    call = fleet.ask(path, asked, model=model, request_id=entry.request_id, trace=trace)
    headers = {"x-edge-route": "fleet", "x-edge-reason": entry.reason}
    entry.predicted_ttft_s = fleet.view(model).ttft_s
    try:
        answer = await unless_gone(request, asyncio.create_task(call))
    except FleetRefused as refused:
        entry.upstream, entry.outcome = refused.upstream, "refused by the fleet"
        return Response(refused.body, refused.status, headers, media_type="application/json")
    entry.upstream = answer.upstream
    if body.get("stream"):
        entry.ttft_s = time.monotonic() - request.scope[READ_AT]
        relay = _relayed(answer, entry, front.turnstile, with_usage=bool(options.get("include_usage")))
        return EventStream(relay, lambda: _over(answer, entry), headers)
    await answer.close()
    entry.outcome = "ok"
    return json_response(answer.body, headers=headers)


async def _relayed(
    answer: FleetAnswer, entry: Entry, turnstile: Turnstile, *, with_usage: bool
) -> AsyncIterator[bytes]:
    try:
        async for events in _gathered(answer, turnstile):
            if data := b"".join(e.raw for e in events if with_usage or not _only_usage(e)):
                yield data
        entry.outcome = "ok"
    except FleetUnavailable as error:
        entry.outcome = error.code or error.kind
        yield b"data: " + orjson.dumps(error_object(error)) + b"\n\n"


async def _gathered(answer: FleetAnswer, turnstile: Turnstile) -> AsyncIterator[list[Event]]:
    """The events: the first at once, later those together that are there when it is this answer's turn. The turn is over before
    they are written: a client that does not read holds up nobody else."""
    source = answer.events()
    coming = asyncio.ensure_future(anext(source, None))
    first = True
    try:
        while True:
            await asyncio.wait({coming})
            ready: list[Event] = []
            async with contextlib.nullcontext() if first else turnstile:
                while _has_events(coming):
                    ready += coming.result() or []
                    coming = asyncio.ensure_future(anext(source, None))
                    await asyncio.sleep(0)  # what needs no waiting is there after this
            first = False
            if ready:
                yield ready
            if coming.done() and not _has_events(coming):
                await coming  # raises what broke it
                return
    finally:
        coming.cancel()


def _has_events(coming: asyncio.Future[list[Event] | None]) -> bool:
    return coming.done() and coming.exception() is None and coming.result() is not None


def _only_usage(event: Event) -> bool:
    """The extra event that we asked for, and the client did not."""
    return event.body is not None and bool(event.body.get("usage")) and not event.choices


_closing: set[asyncio.Task[None]] = set()


def _over(answer: FleetAnswer, entry: Entry) -> None:
    """The stream is written, or nobody reads it any more."""
    entry.outcome = entry.outcome or "cancelled"
    task = asyncio.ensure_future(answer.close())
    _closing.add(task)  # the loop itself keeps no reference to a task
    task.add_done_callback(_closing.discard)
