"""The status page at `/`: one file without anything from elsewhere. It holds no data; it asks /edge/v1/load, with a key where the
node wants one."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from edge.api.onefile import page_response

router = APIRouter()

PATH = "/"


@router.get(PATH, include_in_schema=False)
async def status_page() -> Response:
    """For people with a browser."""
    return page_response("edge.api", "status.html")
