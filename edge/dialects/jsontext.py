"""JSON text that arrives in pieces, from a model that may write it wrongly."""

from __future__ import annotations

import json


class ObjectSpan:
    """Finds where a JSON object ends, over as many pieces of text as it takes."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end_of(self, text: str) -> int | None:
        """Index just after the object's last brace, None if `text` does not hold it."""
        for at, character in enumerate(text):
            if self._in_string:
                self._in_text(character)
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None

    def _in_text(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._in_string = False


def string_of(quoted: str) -> str | None:
    """Text of a JSON string's inside; None if its escapes are wrong."""
    try:
        return str(json.loads(f'"{quoted}"'))
    except ValueError:
        return None


def arguments_of(arguments: object) -> str:
    """Arguments as JSON text. A lone surrogate, which an escape can make, could not be encoded for the client."""
    if isinstance(arguments, str):
        return arguments.encode("utf-8", "replace").decode()
    return "{}" if arguments is None else json.dumps(arguments)
