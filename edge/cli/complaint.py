"""How a failed command says so on standard error: in a line, or for programs as the object that the API answers with."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click

from edge.errors import EdgeError, InvalidRequest

USAGE, INTERNAL, INTERRUPTED = "usage_error", "internal_error", "interrupted"
"""Codes of what is no EdgeError."""
MISUSE, OURS = InvalidRequest.kind, EdgeError.kind


def wants_json(root: click.Group, arguments: Sequence[str]) -> bool:
    """Whether the command that these call was asked for JSON. They may be wrong: that is what is to be said then."""
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if "--json" not in words:
        return False
    command: click.Command = root
    context = click.Context(root)
    for word in words:
        if isinstance(command, click.Group) and not word.startswith("-"):
            command = command.get_command(context, word) or command
    return any(
        isinstance(option, click.Option) and option.is_flag and "--json" in option.opts for option in command.params
    )


def say(message: str, *, kind: str, code: str | None, param: str | None = None, as_json: bool) -> None:
    """On one line."""
    told = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    print(json.dumps(told, ensure_ascii=False) if as_json else f"edge: {message}", file=sys.stderr)
