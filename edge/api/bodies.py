"""What stands around an application in pure ASGI: a body of bounded size in bounded time, and an answer of ours for our own
faults."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.errors import BodyTooLarge, Overloaded, SlowClient

_SMALL_BYTES = 64 * 1024


class Vanished(Exception):
    """The client closed its connection while its body was read."""


@dataclass(slots=True)
class BodyRoom:
    """Owner of the memory for bodies: each is bounded, but a thousand clients may send one at a time."""

    most_bytes: int
    held_bytes: int = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[Callable[[int], None]]:
        """For one request, as long as it holds its body; call it with the size of each part. It raises Overloaded where there is
        no room. Small bodies, as most are, always find some."""
        own_bytes = 0

        def take(size_bytes: int) -> None:
            nonlocal own_bytes
            if own_bytes + size_bytes > _SMALL_BYTES and self.held_bytes + size_bytes > self.most_bytes:
                refusal = Overloaded(
                    f"large requests under way take {self.held_bytes >> 20} MiB, the node takes no more; try again shortly"
                )
                refusal.reason = "bodies"
                raise refusal
            own_bytes += size_bytes
            self.held_bytes += size_bytes

        try:
            yield take
        finally:
            self.held_bytes -= own_bytes


def _unbounded(_: int) -> None:
    """Where bodies are small."""


async def whole_body(
    headers: Headers,
    receive: Receive,
    *,
    most_bytes: int,
    timeout_s: float,
    setting: str = "",
    take: Callable[[int], None] = _unbounded,
) -> bytes:
    """The request's body. `setting` names what bounds it, `take` is told of each part. Raises BodyTooLarge, SlowClient, Vanished,
    and what `take` raises."""
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
                take(len(part))
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise SlowClient(f"the request's body did not arrive within {timeout_s:g} s") from None


def media_type(headers: Headers, without: str = "") -> str:
    """The type of a body without its parameters, in small letters; `without`: where no type is named."""
    return headers.get("content-type", without).partition(";")[0].strip().lower()


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
