"""The status page at `/`: one file without anything from elsewhere. It holds no data; it asks /edge/v1/load, with a key where the
node wants one."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

router = APIRouter()

PATH = "/"


@router.get(PATH, include_in_schema=False)
async def status_page() -> Response:
    """For people with a browser."""
    page, policy = _page()
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(page, headers=headers, media_type="text/html")


@lru_cache(maxsize=1)
def _page() -> tuple[bytes, str]:
    """The page, and a policy under which a browser runs what it holds and nothing else."""
    page = files("edge.api").joinpath("status.html").read_bytes()
    rules = {
        "default-src": "'none'",
        "script-src": _sum_of(page, "script"),
        "style-src": _sum_of(page, "style"),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return page, "; ".join(f"{name} {value}" for name, value in rules.items())


def _sum_of(page: bytes, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1]).digest()).decode()}'"
