"""What stands around an application in pure ASGI: a body of bounded size in bounded time, and an answer of ours for our own
faults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.errors import BodyTooLarge, SlowClient


class Vanished(Exception):
    """The client closed its connection while its body was read."""


async def whole_body(
    headers: Headers, receive: Receive, *, most_bytes: int, timeout_s: float, setting: str = ""
) -> bytes:
    """The request's body. `setting` names what bounds it. Raises BodyTooLarge, SlowClient, Vanished."""
    too_large = BodyTooLarge(f"the request's body is over {most_bytes} bytes{f' ({setting})' if setting else ''}")
    declared = headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Vanished
                part = message.get("body", b"")
                size += len(part)
                if size > most_bytes:
                    raise too_large
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise SlowClient(f"the request's body did not arrive within {timeout_s:g} s") from None


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, then whatever comes from the connection."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def hand_over(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, failed: Callable[[Exception], Response]
) -> None:
    """To the application. A fault of our own is answered with what `failed` makes of it: here nothing above closes the
    connection for it."""
    begun = False

    async def noting(message: Message) -> None:
        nonlocal begun
        begun = True
        await send(message)

    try:
        await app(scope, receive, noting)
    except Exception as error:
        answer = failed(error)
        if begun:  # half an answer must not look like a whole one: the server cuts the connection
            raise
        await answer(scope, receive, send)
