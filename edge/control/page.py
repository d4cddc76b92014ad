"""The page at `/`: one file without anything from elsewhere. It holds no data; it asks the JSON API, in a session."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from edge.api.onefile import page_response

page_router = APIRouter()


@page_router.get("/", include_in_schema=False)
async def page() -> Response:
    """For people with a browser."""
    answer = page_response("edge.control", "page.html")
    answer.headers["x-frame-options"] = "DENY"
    answer.headers["cross-origin-opener-policy"] = "same-origin"
    return answer


@page_router.get("/health", tags=["health"])
async def health(request: Request) -> JSONResponse:
    """For who watches the server. `degraded`: it answers, and a part of it does not work; `/fleet/v1/overview` says which."""
    return JSONResponse({"status": "degraded" if request.app.state.fleet.problems() else "ok"})
