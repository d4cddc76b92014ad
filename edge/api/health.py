"""Health and metrics. Live: this loop runs. Ready: new work is taken, since a real forward pass succeeded lately, or since the
fleet answers in the meantime; `by` says which."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from edge.api.front import Front
from edge.api.metrics import CONTENT_TYPE
from edge.api.render import json_response

router = APIRouter()

_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not ready; `code` and `reason` say why."}}


@router.get("/health/live", response_model=None)
async def live(request: Request) -> Response:
    """The process runs and its loop answers."""
    return await alive(request.app.state.front)


@router.get("/health/ready", responses=_NOT_READY, response_model=None)
@router.get("/health", responses=_NOT_READY, response_model=None)
@router.get("/healthz", responses=_NOT_READY, response_model=None)
async def ready(request: Request) -> Response:
    """Whether a request sent now would be worked on."""
    return await readiness(request.app.state.front)


@router.get(
    "/metrics",
    responses={401: {"description": "No API key."}, 403: {"description": "No `metrics` scope."}},
    response_model=None,
)
async def metrics(request: Request) -> Response:
    """Prometheus's text form."""
    return await scraped(request.app.state.front)


async def alive(_: Front) -> Response:
    """What /health/live answers."""
    return json_response({"status": "ok"})


async def readiness(front: Front) -> Response:
    """What /health/ready answers."""
    model = front.pool.roster.main
    if (why := front.unready()) is not None:
        code, reason = why
        if front.covered():
            return json_response({"status": "ok", "by": "fleet", "model": model, "code": code, "reason": reason})
        return json_response(
            {"status": "unavailable", "code": code, "reason": reason}, status=503, headers={"retry-after": "1"}
        )
    stats = front.stats
    age_s = round(stats.forward_age_s, 3) if stats is not None else None
    return json_response({"status": "ok", "by": "node", "model": model, "forward_age_s": age_s})


async def scraped(front: Front) -> Response:
    """What /metrics answers."""
    return Response(await front.metrics.page(), media_type=CONTENT_TYPE)
