"""`edge chat`: the terminal's side of a conversation."""

from __future__ import annotations

import contextlib
import json
import os
import readline
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from edge.cli.flags import node_url
from edge.conversation import Conversation, End, Event, Reasoning, Text, ToolCall
from edge.effective import default_home
from edge.errors import ConfigurationError, EdgeError

_HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer."
_HISTORY_LINES = 1000
_DIM, _PLAIN = "\033[2m", "\033[0m"


@click.command()
@click.argument("text", nargs=-1)
@click.option("--url", envvar="EDGE_URL", help="Address of the node [default: where `edge serve` would listen].")
@click.option("--key", envvar="EDGE_API_KEY", default="", help="API key [default: $EDGE_API_KEY].")
@click.option("--ca", type=click.Path(path_type=Path), help="PEM file of the CA that signed the node's certificate.")
@click.option("--tools", type=click.Path(path_type=Path), help="JSON file with OpenAI tool definitions to offer.")
@click.option("--system", default="", help="A system message to begin with.")
def command(text: tuple[str, ...], url: str | None, key: str, ca: Path | None, tools: Path | None, system: str) -> None:
    """Talk to a running node: one answer to TEXT, or a conversation without it.

    With --tools, calls that the model wants made are shown; in a conversation you type what they returned.
    """
    with Conversation(
        node_url(url), key=key, tools=_read_tools(tools) if tools else None, authority=ca
    ) as conversation:
        if system:
            conversation.messages.append({"role": "system", "content": system})
        if text:
            _show(conversation.say(" ".join(text)))
        elif sys.stdin.isatty():
            _converse(conversation)
        else:
            _show(conversation.say(sys.stdin.read()))


def _read_tools(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}; check --tools") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise ConfigurationError(f"{path} must hold a JSON list of tools, as the `tools` field of a request does")
    return found


def _show(events: Iterator[Event]) -> tuple[ToolCall, ...]:
    """Print an answer while it comes. Returns the tool calls in it."""
    tinted = sys.stdout.isatty()
    thinking = False
    for event in events:
        match event:
            case Reasoning(text=piece):
                if tinted and not thinking:
                    click.echo(_DIM, nl=False)
                thinking = True
                click.echo(piece, nl=False)
            case Text(text=piece):
                if thinking:
                    click.echo(_PLAIN if tinted else "\n", nl=tinted)
                    thinking = False
                click.echo(piece, nl=False)
            case End(finish_reason=reason, tool_calls=calls):
                click.echo(_PLAIN if thinking and tinted else "")
                for call in calls:
                    click.echo(f"-> {call.name}({call.arguments})")
                if reason == "length":
                    click.echo("(cut off: the context or the token limit is used up)", err=True)
                return calls
    return ()


def _converse(conversation: Conversation) -> None:
    click.echo(f"{conversation.model()}. {_HELP}")
    with _history(default_home(os.environ) / "chat_history"):
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                click.echo()
                return
            except KeyboardInterrupt:  # an unfinished line is dropped, as shells do
                click.echo()
                continue
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                conversation.messages[:] = [m for m in conversation.messages if m["role"] == "system"]
                click.echo("forgotten")
            elif line.startswith("/"):
                click.echo(_HELP)
            elif line:
                _turn(conversation, line)


def _turn(conversation: Conversation, line: str) -> None:
    """One person's message, and answers until the model calls no more tools. A turn that fails leaves no trace."""
    kept = len(conversation.messages)
    try:
        calls = _show(conversation.say(line))
        while calls:
            for call in calls:
                conversation.report(call, input(f"what did {call.name} return? [ok] ") or "ok")
            calls = _show(conversation.go_on())
    except (KeyboardInterrupt, EOFError):
        del conversation.messages[kept:]
        click.echo(" (stopped)")
    except EdgeError as error:
        del conversation.messages[kept:]
        click.echo(f"edge: {error.message}", err=True)


@contextlib.contextmanager
def _history(path: Path) -> Iterator[None]:
    """Lines typed in earlier conversations, behind the arrow keys."""
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(_HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
            path.chmod(0o600)
