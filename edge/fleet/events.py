"""Server-sent events of an OpenAI-compatible stream, cut out of the bytes as they come. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

MAX_EVENT_BYTES = 4 << 20
DONE = b"[DONE]"
_END = re.compile(rb"(?:\r?\n){2}")
_LONGEST_END = 4
_CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls")


class BadStream(Exception):
    """What came is no such stream. The message never shows what it was."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: the bytes of its lines with the blank line, and what they say. `body` None: [DONE]."""

    raw: bytes
    body: dict[str, Any] | None

    @property
    def choices(self) -> list[dict[str, Any]]:
        """Its choices, those that are objects."""
        found = self.body.get("choices") if self.body is not None else None
        return [c for c in found if isinstance(c, dict)] if isinstance(found, list) else []

    @property
    def has_content(self) -> bool:
        """It carries text, reasoning or a tool call."""
        return any(
            c.get("text") or (isinstance(d := c.get("delta"), dict) and any(d.get(name) for name in _CONTENT))
            for c in self.choices
        )

    @property
    def ends(self) -> bool:
        """The answer is complete."""
        return self.body is None or any(c.get("finish_reason") for c in self.choices)

    @property
    def error(self) -> str:
        """Code or type of the upstream's own error, empty if it is none. Its message may quote the prompt: it is not for logs."""
        found = self.body.get("error") if self.body is not None else None
        if not found:
            return ""
        said = (found.get("code") or found.get("type")) if isinstance(found, dict) else None
        return str(said or "unnamed")[:60]


class EventCutter:
    """Owner of what has come of an event that is not complete."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._seen = 0
        """So much of it was looked at: an event may be long, and come in very small pieces."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield the events that are complete now. Raises BadStream."""
        self._rest += data
        begin = 0
        try:
            while (end := _END.search(self._rest, max(begin, self._seen))) is not None:
                lines = bytes(self._rest[begin : end.start()]).replace(b"\r\n", b"\n")
                begin = end.end()
                payload = b"\n".join(line[5:].strip() for line in lines.split(b"\n") if line.startswith(b"data:"))
                if payload:  # else a comment: it keeps a connection open and says nothing
                    yield Event(lines + b"\n\n", None if payload == DONE else _object(payload))
        finally:
            del self._rest[:begin]
            self._seen = max(0, len(self._rest) - _LONGEST_END + 1)
        if len(self._rest) > MAX_EVENT_BYTES:
            raise BadStream("an event is too long")


def _object(payload: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise BadStream("an event is not JSON") from None
    if not isinstance(found, dict) or not ("choices" in found or "error" in found or "usage" in found):
        raise BadStream("an event is none of the API's")
    return found
