"""A page that is one file: HTML that holds its script and its style, and needs nothing from elsewhere.

What pages have in common of their style is written once, in look.css, and put into each of them here.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import lru_cache
from importlib.resources import files

from starlette.responses import Response

_LOOK_HERE = b"/* look.css */\n"
"""Stands in a page where the style that all pages have in common is put in."""


def page_response(package: str, name: str) -> Response:
    """The file `name` of a package, under a policy by which a browser runs what it holds and nothing else."""
    page, policy = _page(package, name)
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }
    return Response(page, headers=headers, media_type="text/html")


@lru_cache
def _page(package: str, name: str) -> tuple[bytes, str]:
    page = files(package).joinpath(name).read_bytes()
    assert page.count(_LOOK_HERE) == 1
    page = page.replace(_LOOK_HERE, files("edge.api").joinpath("look.css").read_bytes())
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
