"""What routers, autoscalers and people ask a node: how full it is, and what it decided lately."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from edge import __version__
from edge.admission.decisions import REMEMBERED
from edge.api.front import Front
from edge.api.models import model_state
from edge.api.render import json_response
from edge.api.summary import hardware

router = APIRouter()
_KEYED: dict[int | str, dict[str, Any]] = {
    401: {"description": "No API key."},
    403: {"description": "No `metrics` scope."},
}


@router.get("/edge/v1/load", responses=_KEYED, response_model=None)
async def load(request: Request) -> Response:
    """How full the node is now. `load` is 0 idle, 1 all slots taken, above 1 requests wait: made for KEDA and routers."""
    return await node_load_answer(request.app.state.front)


async def node_load_answer(front: Front) -> Response:
    """What /edge/v1/load answers."""
    return json_response(node_load(front))


def node_load(front: Front) -> dict[str, Any]:
    """The object that /edge/v1/load answers."""
    why, stats, facts = front.unready(), front.stats, front.facts
    answer: dict[str, Any] = {
        "model": front.pool.roster.main,
        "version": __version__,
        "uptime_s": round(time.monotonic() - front.begun_s, 1),
        "mode": front.config.mode,
        "ready": why is None,
        "reason": "" if why is None else f"{why[0]}: {why[1]}",
        "in_flight": front.engine.in_flight if front.engine is not None else 0,
        "restarts": front.status.restarts,
        "reductions": front.status.reduced,
    }
    if stats is not None and facts is not None:
        answer |= {
            "load": round((stats.running + stats.waiting) / stats.slots, 3),
            "slots": stats.slots,
            "running": stats.running,
            "waiting": stats.waiting,
            "admits": stats.admits,
            "late_ttft_ms": round(stats.late_ttft_s * 1000, 1),
            "kv_cells_used": stats.cells_used,
            "kv_cells": stats.cells,
            "promise": {
                "ttft_ms": front.config.ttft_slo_s * 1000,
                "itl_ms": front.config.itl_slo_s * 1000,
                "new_prompt_tokens": stats.admits_tokens,
                "answers": stats.admits_streams,
            },
        }
    if front.fleet is not None:
        view = front.fleet.view()
        answer["fleet"] = {
            "available": view.available,
            "reason": view.reason,
            "ttft_ms": round(view.ttft_s * 1000, 1),
            "mib_last_hour": round(front.fleet.bytes_cap.spent(time.monotonic()) / 2**20, 3),
            "cost_last_hour": round(front.fleet.cost_cap.spent(time.monotonic()), 6),
            "upstreams": [asdict(state) for state in front.fleet.states()],
        }
    answer["times"] = front.metrics.recent()
    if front.probes is not None and (found := hardware(front.probes)) is not None:
        answer["hardware"] = found
    answer["memory"] = {"room_bytes": front.pool.limits.room_bytes, "planned_bytes": front.pool.planned_bytes}
    answer["models"] = [model_state(state, front.config.mode) for state in front.pool.roster.states()]
    if front.telemetry is not None:
        answer["alarms"] = front.telemetry.alarms.active()
        answer["outbox"] = front.telemetry.account()
    if front.identity is not None and (about := front.identity.account()) is not None:
        answer["identity"] = about
    answer["decisions"] = [
        {"decision": decision, "reason": reason, "count": count}
        for (decision, reason), count in sorted(front.decisions.counts.items())
    ]
    return answer


@router.get(
    "/edge/v1/decisions", responses={400: {"description": "`limit` is out of range."}, **_KEYED}, response_model=None
)
async def decisions(request: Request, limit: Annotated[int, Query(ge=1, le=REMEMBERED)] = 100) -> Response:
    """The last requests, newest first: where each went and why, what was foreseen and what came of it. Never what was said."""
    front: Front = request.app.state.front
    return json_response({"decisions": list(front.decisions.last(limit))})
