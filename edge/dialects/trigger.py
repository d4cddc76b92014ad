"""Where in an answer a lazy grammar begins. Pure and incremental; bytes, since tokens may end inside a character."""

from __future__ import annotations

import enum

from edge.dialects.reasoning import ReasoningTags


class _Phase(enum.Enum):
    OPENING = enum.auto()  # nothing but white space so far: reasoning may begin
    THOUGHT = enum.auto()
    ANSWER = enum.auto()


class TriggerWatch:
    """Reads an answer until its grammar begins.

    `trigger`: the text behind which the grammar begins; None: with the answer itself. `lead`: as in GrammarSpec.
    `reasoning`: tags whose content is no answer, so that nothing in it triggers; `reasoning_open`: the prompt ended
    inside them.
    """

    def __init__(
        self, trigger: str | None, *, lead: str | None, reasoning: ReasoningTags | None, reasoning_open: bool
    ) -> None:
        self._trigger = trigger.encode() if trigger is not None else None
        self._lead = lead.encode() if lead is not None else None
        self._open = reasoning.open.encode() if reasoning is not None else b""
        self._close = reasoning.close.encode() if reasoning is not None else b""
        self._phase = _Phase.ANSWER
        if reasoning is not None:
            self._phase = _Phase.THOUGHT if reasoning_open else _Phase.OPENING
        self._text = b""
        self._in_place = True  # only white space since the answer's beginning, or since the lead

    def feed(self, piece: bytes) -> bytes | None:
        """More text. None while the grammar waits; else the end of `piece` that the grammar must read already."""
        self._text += piece
        if self._phase is _Phase.OPENING:
            self._opening()
        if self._phase is _Phase.THOUGHT:
            self._thought()
        if self._phase is not _Phase.ANSWER:
            return None
        if self._trigger is None:
            return b""  # white space behind the closing tag, which is no part of the answer
        return self._anywhere(self._trigger) if self._lead is None else self._placed(self._trigger, self._lead)

    def _opening(self) -> None:
        head = self._text.lstrip()
        if head.startswith(self._open):
            self._text, self._phase = head[len(self._open) :], _Phase.THOUGHT
        elif not self._open.startswith(head):
            self._phase = _Phase.ANSWER

    def _thought(self) -> None:
        at = self._text.find(self._close)
        if at < 0:
            self._text = self._text[-len(self._close) :]
            return
        self._text, self._phase = self._text[at + len(self._close) :], _Phase.ANSWER

    def _anywhere(self, trigger: bytes) -> bytes | None:
        at = self._text.find(trigger)
        if at < 0:
            self._text = self._text[-len(trigger) :]
            return None
        rest, self._text = self._text[at + len(trigger) :], b""
        return rest

    def _placed(self, trigger: bytes, lead: bytes) -> bytes | None:
        while True:
            if self._in_place:
                head = self._text.lstrip()
                if head.startswith(trigger):
                    self._text, self._in_place = b"", False
                    return head[len(trigger) :]
                if trigger.startswith(head):
                    return None
                self._in_place = False
            at = self._text.find(lead)
            if at < 0:
                self._text = self._text[-len(lead) :]
                return None
            self._text, self._in_place = self._text[at + len(lead) :], True
