"""What a stream of server-sent events said, and when. Read after the answer is complete, never beside it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

_CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls")


@dataclass(slots=True)
class Reading:
    """`content_s`: perf_counter times of the events that carry content, the role-only chunk not among them."""

    content_s: list[float] = field(default_factory=list)
    events: int = 0
    tokens: int | None = None
    """Completion tokens as the server counts them; None if it does not say."""
    error: str = ""
    complete: bool = False
    """It came to its end: [DONE] or a finish reason."""


def read(chunks: list[tuple[float, bytes]]) -> Reading:
    """Read a stream of OpenAI's chat or text completion chunks, given as (arrival, bytes) pieces of the body."""
    reading = Reading()
    for arrived_s, payload in payloads(chunks):
        if payload == b"[DONE]":
            reading.complete = True
            break
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            event = None
        if not isinstance(event, dict):
            reading.error = f"an event is not a JSON object: {payload[:80].decode('utf-8', 'replace')}"
            break
        reading.events += 1
        _take(reading, arrived_s, event)
    return reading


def _take(reading: Reading, arrived_s: float, event: dict[str, Any]) -> None:
    if error := event.get("error"):
        reading.error = str(error.get("message", error) if isinstance(error, dict) else error)
    carries = False
    for choice in _dicts(event.get("choices")):
        delta = choice.get("delta")
        carries = carries or bool(choice.get("text"))
        carries = carries or (isinstance(delta, dict) and any(delta.get(name) for name in _CONTENT))
        if choice.get("finish_reason"):
            reading.complete = True
    if carries:
        reading.content_s.append(arrived_s)
    usage = event.get("usage")
    if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
        reading.tokens = usage["completion_tokens"]


def _dicts(value: object) -> Iterator[dict[str, Any]]:
    yield from (item for item in value if isinstance(item, dict)) if isinstance(value, list) else ()


def payloads(chunks: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Each `data:` line with the time at which its last byte came. Lines end in LF or CRLF (WHATWG, Server-sent events)."""
    rest = b""
    for arrived_s, data in chunks:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield arrived_s, line[5:].strip()
    if chunks and rest.startswith(b"data:"):  # a last line without its end
        yield chunks[-1][0], rest[5:].strip()
