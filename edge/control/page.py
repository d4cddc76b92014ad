"""The page at `/`: one file without anything from elsewhere. It holds no data; it asks the JSON API, in a session."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

page_router = APIRouter()


@page_router.get("/", include_in_schema=False)
async def page() -> Response:
    """For people with a browser."""
    text, policy = _page()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-cache",
    }
    return Response(text, headers=headers, media_type="text/html")


@page_router.get("/health", tags=["health"])
async def health() -> JSONResponse:
    """For who watches the server."""
    return JSONResponse({"status": "ok"})


@lru_cache(maxsize=1)
def _page() -> tuple[bytes, str]:
    """The page, and a policy under which a browser runs what it holds and nothing else."""
    text = files("edge.control").joinpath("page.html").read_bytes()
    rules = {
        "default-src": "'none'",
        "script-src": _sum_of(text, "script"),
        "style-src": _sum_of(text, "style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text, "; ".join(f"{name} {value}" for name, value in rules.items())


def _sum_of(text: bytes, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), text, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"
