"""Tokens to text, one at a time: no broken character and no part of a stop string ever leaves."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass

from edge.messages import TokenLogprob


@dataclass(frozen=True, slots=True)
class Released:
    """Text that may be sent, and the logprobs of the tokens whose text is thereby complete."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    stopped: bool = False
    """A stop string was found; nothing comes after this."""


class TextGate:
    """Holds back what is not certain yet: bytes of an incomplete character, and text that may begin a stop string.

    Owner: one answer. `stops` are matched in the answer's text, across token borders, earliest first.
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._stops = tuple(s for s in stops if s)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._seen = 0  # characters decoded so far, held ones included
        self._waiting: deque[tuple[int, TokenLogprob]] = (
            deque()
        )  # logprobs by the offset at which their text is complete

    def push(self, piece: bytes, logprob: TokenLogprob | None = None) -> Released:
        """Add one token's bytes; return what may go out now."""
        text = self._decoder.decode(piece)
        self._seen += len(text)
        if not self._stops and logprob is None:
            return Released(text)
        self._held += text
        if logprob is not None:
            incomplete = bool(self._decoder.getstate()[0])
            self._waiting.append((self._seen + (1 if incomplete else 0), logprob))
        if not self._stops:
            return self._release(len(self._held))
        found = self._first_stop()
        if found is not None:
            released = self._release(found)
            self._held = ""
            self._waiting.clear()
            return Released(released.text, released.logprobs, stopped=True)
        return self._release(len(self._held) - self._possible_start())

    def finish(self) -> Released:
        """End of the answer: everything held goes out, an incomplete character as U+FFFD."""
        text = self._decoder.decode(b"", final=True)
        self._seen += len(text)
        self._held += text
        released = self._release(len(self._held))
        rest = tuple(logprob for _, logprob in self._waiting)
        self._waiting.clear()
        return Released(released.text, released.logprobs + rest)

    def _release(self, count: int) -> Released:
        text, self._held = self._held[:count], self._held[count:]
        if not self._waiting:
            return Released(text)
        out = self._seen - len(self._held)
        logprobs: list[TokenLogprob] = []
        while self._waiting and self._waiting[0][0] <= out:
            logprobs.append(self._waiting.popleft()[1])
        return Released(text, tuple(logprobs))

    def _first_stop(self) -> int | None:
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(places, default=None)

    def _possible_start(self) -> int:
        """Length of the longest held suffix that begins some stop string."""
        longest = max(len(stop) for stop in self._stops) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
