"""Server-sent events: chunks of one answer, written as they come, and ended at once when the client leaves."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edge.admission.decisions import Entry
from edge.api.answers import Choices, new_id
from edge.api.front import Front
from edge.api.job import Job
from edge.api.render import error_object, usage
from edge.api.served import Served
from edge.errors import EdgeError, EngineFault
from edge.messages import Offer, Token

log = logging.getLogger(__name__)

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
DONE = b"data: [DONE]\n\n"
GoOn = Callable[[EdgeError], AsyncIterator[bytes]]


class ChunkWriter:
    """Serialises chunks of one answer. What they share is serialised once."""

    def __init__(self, choices: Choices, model: str, fingerprint: str, *, with_usage: bool) -> None:
        head = {
            "id": new_id("chatcmpl" if choices.chunk_name.startswith("chat") else "cmpl"),
            "object": choices.chunk_name,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def chunk(self, choice: dict[str, Any]) -> bytes:
        """One choice's delta."""
        return self._head + b"[" + orjson.dumps(choice) + b"]" + self._tail

    def usage(self, counts: dict[str, Any]) -> bytes:
        """The extra chunk with the token counts."""
        return self._head + b'[],"usage":' + orjson.dumps(counts) + b"}\n\n"


async def frames(
    first: list[tuple[int, Token]],
    events: AsyncIterator[tuple[int, Offer | Token]],
    *,
    job: Job,
    choices: Choices,
    writer: ChunkWriter,
    watch: StreamWatch,
    with_usage: bool,
    go_on: GoOn,
) -> AsyncIterator[bytes]:
    """The stream's bytes. When the engine fails, `go_on` yields the rest or raises; an error after the headers becomes an error
    event, and ends the stream."""
    opening = b"".join(writer.chunk(c) for c in choices.opening())
    try:
        yield opening + b"".join(_chunks(early, choices, writer, watch) for early in first)
        async for prompt, event in events:
            if isinstance(event, Offer):
                choices.offer(prompt, event)
            elif data := _chunks((prompt, event), choices, writer, watch):
                yield data
    except EdgeError as error:
        async for data in _rescued(error, go_on, watch):
            yield data
        return
    except Exception as error:
        yield _failure(error, watch)
        return
    watch.ended("ok")
    yield (writer.usage(usage(job.finished)) if with_usage else b"") + DONE


async def _rescued(failure: EdgeError, go_on: GoOn, watch: StreamWatch) -> AsyncIterator[bytes]:
    try:
        async for data in go_on(failure):
            yield data
        watch.ended("ok")
        yield DONE
    except Exception as error:
        yield _failure(error, watch)


def _failure(error: Exception, watch: StreamWatch) -> bytes:
    if isinstance(error, EdgeError):
        fields = {"code": error.code, "reason": error.message, "request_id": watch.request_id}
        log.warning("stream failed", extra={"event": "stream_failed", **fields})
    else:
        log.error("stream failed", extra={"event": "bug"}, exc_info=error)
        error = EngineFault("the node met an error of its own; its log says more")
    watch.ended(error.code or error.kind)
    return b"data: " + orjson.dumps(error_object(error)) + b"\n\n"


def _chunks(item: tuple[int, Token], choices: Choices, writer: ChunkWriter, watch: StreamWatch) -> bytes:
    prompt, token = item
    made = choices.deltas(prompt, token)
    if any(_has_content(c) for c in made):
        watch.content((prompt, token.index))
    return b"".join(writer.chunk(c) for c in made)


def _has_content(choice: dict[str, Any]) -> bool:
    return bool(choice.get("text") or choice.get("delta"))


class StreamWatch:
    """Times of one answer's content events, for the promise's two figures."""

    def __init__(
        self, front: Front, served: Served, entry: Entry, read_s: float, *, operation: str, admitted: bool
    ) -> None:
        self._violations = front.metrics.violations
        recent = served.main and (admitted or front.config.mode == "off")
        times = front.metrics.times(operation, served.name, recent=recent)
        self._ttft, self._itl = times.ttft, times.itl
        self._entry = entry
        self._promised_ttft_s = front.config.ttft_slo_s if admitted else math.inf
        self._promised_itl_s = front.config.itl_slo_s if admitted else math.inf
        self._read_s = read_s
        self._last_s: dict[tuple[int, int], float] = {}
        self._longest_s = -math.inf

    @property
    def request_id(self) -> str:
        """Whose answer it is."""
        return self._entry.request_id

    def content(self, answer: tuple[int, int]) -> None:
        """New text of an answer goes out now. Called for every token: what is not needed at once waits (`edge.api.timings`)."""
        now_s = time.monotonic()
        last_s = self._last_s.get(answer)
        if last_s is not None:
            gap_s = now_s - last_s
            self._itl.note(gap_s, now_s)
            if gap_s > self._longest_s:
                self._longest_s = self._entry.itl_max_s = gap_s
            if gap_s > self._promised_itl_s:
                self._violations.labels("itl").inc()
        elif not self._last_s:
            self._first(now_s)
        self._last_s[answer] = now_s

    def _first(self, now_s: float) -> None:
        took_s = self._entry.ttft_s = now_s - self._read_s
        self._ttft.note(took_s, now_s)
        if took_s > self._promised_ttft_s:
            self._violations.labels("ttft").inc()

    def ended(self, outcome: str) -> None:
        """The answer is over."""
        self._entry.outcome = outcome


class EventStream(Response):
    """ASGI response. Watches for the client's leaving while it writes; newer Starlette's own class does not. One that does not
    read is given up by its connection (edge.connection)."""

    def __init__(self, body: AsyncIterator[bytes], abort: Callable[[], None], headers: Mapping[str, str]) -> None:
        # Response's own constructor would render a body and give its length.
        self.status_code = 200
        self.background = None
        self.raw_headers = [*_HEADERS, *((k.encode(), v.encode()) for k, v in headers.items())]
        self._body = body
        self._abort = abort

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the end, or the client's leaving."""
        writing, left = asyncio.create_task(self._write(send)), asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({writing, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._abort()
            for task in (writing, left):
                if not task.done():
                    task.cancel()
            outcome = (await asyncio.gather(writing, left, return_exceptions=True))[0]
        if isinstance(outcome, Exception) and not isinstance(outcome, OSError):
            raise outcome

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._body:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
