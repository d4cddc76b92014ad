"""What the routes of models that answer with numbers share: the model, its one answer, and the log of decisions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request

from edge.admission.decisions import Entry
from edge.admission.policy import Decision
from edge.api.front import Front, reason_of
from edge.api.gate import READ_AT, REQUEST_ID
from edge.api.job import ClientGone, unless_gone
from edge.api.served import ServedTensors
from edge.api.waiting import waited_for
from edge.errors import EdgeError, NodeDraining
from edge.onnx.messages import Task
from edge.residency import Lease

AnswerT = TypeVar("AnswerT")

HEADERS = {"x-edge-class": "best-effort"}
"""Only the node's own model promises times."""


async def model_of(request: Request, model: str | None, tasks: Sequence[Task]) -> ServedTensors:
    """A model for one of these tasks (none: for any), loaded if need be. Raises EdgeError, ClientGone."""
    front: Front = request.app.state.front

    def serve(name: str | None, lease: Lease | None) -> ServedTensors:
        return front.served_tensors(name, tasks, lease)

    return await waited_for(request, front, model, serve)


async def answered(
    request: Request,
    model: str | None,
    tasks: Sequence[Task],
    ask: Callable[[ServedTensors], Coroutine[Any, Any, AnswerT]],
) -> tuple[AnswerT, ServedTensors]:
    """What a model answers, and who it is; written into the log of decisions. Raises EdgeError, ClientGone."""
    front: Front = request.app.state.front
    name = front.pool.roster.find(model) or ""
    entry = front.decisions.begin(Entry(request.scope[REQUEST_ID], time.time(), "default", "auto", name))
    try:
        if front.drain.draining:
            raise NodeDraining("the node is shutting down and takes no new work")
        with await model_of(request, model, tasks) as served:
            served.engine.require_room()
            entry.decided(Decision("late", "further_model" if front.config.mode != "off" else ""))
            front.decisions.count(entry)
            answer = await unless_gone(request, asyncio.create_task(ask(served), name="ask-tensors"))
        front.metrics.tensors.labels(served.name).observe(time.monotonic() - request.scope[READ_AT])
        entry.outcome = "ok"
        return answer, served
    except ClientGone:
        entry.outcome = "cancelled"
        raise
    except EdgeError as error:
        entry.outcome = error.code or error.kind
        if not entry.route:
            entry.decided(Decision("refuse", reason_of(error)))
            front.decisions.count(entry)
        raise
