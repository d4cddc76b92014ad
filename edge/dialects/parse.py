"""An answer's text, as it arrives, told apart into reasoning, content and tool calls. Pure and incremental.

No part of a marker is ever let out as content, and nothing that the model wrote is lost: what looks like a call and
is none comes out as content, as it was written.
"""

from __future__ import annotations

import enum
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from edge.dialects.jsontext import ObjectSpan, arguments_of, string_of
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import ToolFormat


@dataclass(frozen=True, slots=True)
class ContentPiece:
    """Text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningPiece:
    """Text that the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins; its arguments follow in pieces."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments, raw JSON text."""

    index: int
    text: str


Piece = ContentPiece | ReasoningPiece | ToolCallStart | ToolCallArguments

_OPEN = {
    ToolFormat.HERMES: "<tool_call>",
    ToolFormat.LLAMA3: "<|python_tag|>",
    ToolFormat.MISTRAL: "[TOOL_CALLS]",
    ToolFormat.MISTRAL_ARGS: "[TOOL_CALLS]",
}
_STRING = r'"((?:[^"\\]|\\.)*)"'
_JSON_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*{_STRING}\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_ARGS_HEAD = re.compile(r"\s*([\w.\-]+)\[ARGS\]\s*(?=\{)")
_BARE_START = '{"name":"'
_CLOSE = re.compile(r"\s*</tool_call>")


class _Mode(enum.Enum):
    REASONING = enum.auto()
    TEXT = enum.auto()
    CALL = enum.auto()  # after an opening marker: a call's head is expected
    ARGUMENTS = enum.auto()
    AFTER = enum.auto()  # after a call's arguments: whatever closes it


class AnswerParser:
    """One answer's parser. `feed` text as it comes, `finish` once at the end.

    `fmt` None: no tools are expected. `tools`: names that may be called. `reasoning_open`: the prompt ended in
    reasoning.
    """

    def __init__(
        self,
        *,
        fmt: ToolFormat | None,
        tools: frozenset[str] | None,
        reasoning: ReasoningTags | None,
        reasoning_open: bool,
        parallel: bool = True,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        self._fmt = fmt if tools else None
        self._tools = tools or frozenset()
        self._tags = reasoning
        self._parallel = parallel
        self._new_id = new_id or (lambda: f"call_{secrets.token_hex(12)}")
        self._mode = _Mode.REASONING if reasoning_open and reasoning else _Mode.TEXT
        self._maybe_reasoning = reasoning is not None and not reasoning_open
        self._buffer = ""
        self._marker = ""  # what opened the call that is being read
        self._written = False  # some content went out
        self._trim = self._mode is _Mode.REASONING  # drop white space before what comes next
        self._span = ObjectSpan()
        self._calls = 0
        self._out: list[Piece] = []

    @property
    def saw_tool_calls(self) -> bool:
        """Whether a call began."""
        return self._calls > 0

    @property
    def tool_call_complete(self) -> bool:
        """False while a call's arguments are not closed."""
        return self._mode is not _Mode.ARGUMENTS

    def feed(self, text: str) -> list[Piece]:
        """More text; returns what is certain by now."""
        self._buffer += text
        return self._pump(final=False)

    def finish(self) -> list[Piece]:
        """The answer is over; returns what was held back."""
        return self._pump(final=True)

    def _pump(self, *, final: bool) -> list[Piece]:
        steps = {
            _Mode.REASONING: self._reasoning,
            _Mode.TEXT: self._text,
            _Mode.CALL: self._call,
            _Mode.ARGUMENTS: self._arguments,
            _Mode.AFTER: self._after,
        }
        while steps[self._mode](final):
            pass
        out, self._out = self._out, []
        return _merged(out)

    # Each step consumes from the buffer and says whether another step may find more to do.

    def _reasoning(self, final: bool) -> bool:
        assert self._tags is not None
        at = self._buffer.find(self._tags.close)
        if at >= 0:
            self._emit_reasoning(self._buffer[:at].rstrip())
            self._buffer = self._buffer[at + len(self._tags.close) :]
            self._mode, self._trim = _Mode.TEXT, True
            return True
        keep = 0 if final else _uncertain(self._buffer, self._tags.close)
        cut = len(self._buffer) - keep
        self._emit_reasoning(self._buffer[:cut])
        self._buffer = self._buffer[cut:]
        return False

    def _text(self, final: bool) -> bool:
        if self._maybe_reasoning and self._tags is not None:
            head = self._buffer.lstrip()
            if head.startswith(self._tags.open):
                self._buffer = head[len(self._tags.open) :]
                self._maybe_reasoning, self._mode, self._trim = False, _Mode.REASONING, True
                return True
            if self._tags.open.startswith(head) and not final:
                return False
            self._maybe_reasoning = False
        if self._fmt is None:
            self._content(self._buffer)
            self._buffer = ""
            return False
        return self._text_or_call(self._fmt, final)

    def _text_or_call(self, fmt: ToolFormat, final: bool) -> bool:
        if fmt is ToolFormat.LLAMA3 and not self._written and self._bare_call(final):
            return self._mode is _Mode.CALL
        marker = _OPEN[fmt]
        at = self._buffer.find(marker)
        if at >= 0:
            before = self._buffer[:at]
            self._content(before.rstrip())
            self._marker = before[len(before.rstrip()) :] + marker
            self._buffer = self._buffer[at + len(marker) :]
            self._mode = _Mode.CALL
            return True
        keep = 0 if final else _uncertain(self._buffer, marker)
        cut = len(self._buffer) - keep
        self._content(self._buffer[:cut])
        self._buffer = self._buffer[cut:]
        return False

    def _bare_call(self, final: bool) -> bool:
        """Llama 3 writes a call with no marker: decide whether the text's beginning is (or may become) one."""
        compact = re.sub(r"\s", "", self._buffer.lstrip()[:64])
        if compact.startswith(_BARE_START):
            self._marker, self._mode = "", _Mode.CALL
            return True
        return not final and _BARE_START.startswith(compact)

    def _call(self, final: bool) -> bool:
        head = (_ARGS_HEAD if self._fmt is ToolFormat.MISTRAL_ARGS else _JSON_HEAD).match(self._lead())
        if head is not None:
            name = head[1] if self._fmt is ToolFormat.MISTRAL_ARGS else string_of(head[1])
            if name is None or name not in self._tools:
                return self._give_up()
            self._buffer = self._lead()[head.end() :]
            self._begin(name)
            self._span, self._mode = ObjectSpan(), _Mode.ARGUMENTS
            return True
        return self._whole_call(final)

    def _lead(self) -> str:
        """The buffer without the bracket or comma that comes before a call in Mistral's list."""
        return re.sub(r"^\s*[\[,]", "", self._buffer, count=1) if self._fmt is ToolFormat.MISTRAL else self._buffer

    def _whole_call(self, final: bool) -> bool:
        """A call whose keys come in another order, or without arguments, is read when it is complete."""
        text = self._lead()
        start = len(text) - len(text.lstrip())
        if self._fmt is ToolFormat.MISTRAL_ARGS or (text.strip() and text.lstrip()[0] != "{"):
            return self._give_up() if final or self._fmt is not ToolFormat.MISTRAL_ARGS else False
        end = ObjectSpan().end_of(text[start:])
        if end is None:
            return self._give_up() if final else False
        try:
            call = json.loads(text[start : start + end])
            name, arguments = call["name"], call.get("arguments", call.get("parameters"))
        except (ValueError, KeyError, RecursionError):
            return self._give_up()
        if not isinstance(name, str) or name not in self._tools:
            return self._give_up()
        self._buffer = "}" + text[start + end :]  # the brace that `_after` expects
        self._begin(name)
        self._arguments_piece(arguments_of(arguments))
        self._mode = _Mode.AFTER
        return True

    def _give_up(self) -> bool:
        """It is no call: the marker was text. What follows it is read again, as text, wherever it was cut."""
        text, self._marker, self._mode = self._marker, "", _Mode.TEXT
        if text:
            self._trim = False
            self._out.append(ContentPiece(text))
        else:  # a bare call: its beginning must not be taken for one again
            self._content(self._buffer[:1])
            self._buffer = self._buffer[1:]
        self._written = True
        return True

    def _arguments(self, _: bool) -> bool:
        end = self._span.end_of(self._buffer)
        text, self._buffer = (self._buffer, "") if end is None else (self._buffer[:end], self._buffer[end:])
        self._arguments_piece(text)
        if end is None:
            return False
        self._mode = _Mode.AFTER
        return True

    def _after(self, final: bool) -> bool:
        """Consume what closes a call: its brace, then the family's closing mark or the next call."""
        if self._fmt is ToolFormat.MISTRAL_ARGS:
            return self._to_text()
        rest = self._buffer.lstrip()
        if not rest.startswith("}"):
            return self._to_text() if rest else False
        rest = rest[1:].lstrip()
        if self._fmt is ToolFormat.HERMES:
            if close := _CLOSE.match(rest):
                self._buffer = rest[close.end() :]
                return self._to_text()
            if not final and "</tool_call>".startswith(rest):
                return False
        elif rest[:1] in (";", ","):
            self._buffer, self._marker, self._mode = rest[1:], rest[0], _Mode.CALL
            return True
        elif not rest and not final:
            return False
        self._buffer = rest.removeprefix("]") if self._fmt is ToolFormat.MISTRAL else rest
        return self._to_text()

    def _to_text(self) -> bool:
        self._mode, self._trim = _Mode.TEXT, True
        return bool(self._buffer)

    def _begin(self, name: str) -> None:
        self._calls += 1
        self._written = True
        if self._parallel or self._calls == 1:
            self._out.append(ToolCallStart(self._calls - 1, self._new_id(), name))

    def _arguments_piece(self, text: str) -> None:
        if text and (self._parallel or self._calls == 1):
            self._out.append(ToolCallArguments(self._calls - 1, text))

    def _content(self, text: str) -> None:
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            self._written = self._written or bool(text.strip())
            self._out.append(ContentPiece(text))

    def _emit_reasoning(self, text: str) -> None:
        if self._trim:
            text = text.lstrip()
        if text:
            self._trim = False
            self._out.append(ReasoningPiece(text))


def _uncertain(text: str, marker: str) -> int:
    """Length of the end of `text` that may be white space before `marker`, and the beginning of it."""
    overlap = 0
    for size in range(min(len(marker) - 1, len(text)), 0, -1):
        if marker.startswith(text[-size:]):
            overlap = size
            break
    return len(text) - len(text[: len(text) - overlap].rstrip())


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Join neighbours of one kind."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        if isinstance(piece, ContentPiece) and isinstance(last, ContentPiece):
            out[-1] = ContentPiece(last.text + piece.text)
        elif isinstance(piece, ReasoningPiece) and isinstance(last, ReasoningPiece):
            out[-1] = ReasoningPiece(last.text + piece.text)
        elif isinstance(piece, ToolCallArguments) and isinstance(last, ToolCallArguments) and last.index == piece.index:
            out[-1] = ToolCallArguments(piece.index, last.text + piece.text)
        else:
            out.append(piece)
    return out
