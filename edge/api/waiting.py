"""How a request waits for its model to be loaded, where nothing else is decided about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from edge.api.front import Front
from edge.api.job import unless_gone
from edge.errors import ModelLoading
from edge.residency import Lease

ServedT = TypeVar("ServedT")


async def waited_for(
    request: Request, front: Front, model: str | None, serve: Callable[[str | None, Lease | None], ServedT]
) -> ServedT:
    """The model as `serve` gives it, loaded if need be. Raises EdgeError, ClientGone."""
    try:
        return serve(model, None)
    except ModelLoading:
        if not front.may_wait(model):
            raise
    waiting = asyncio.create_task(front.pool.acquire(front.pool.roster.require(model), front.config.load_wait_s))
    return serve(model, await unless_gone(request, waiting))
