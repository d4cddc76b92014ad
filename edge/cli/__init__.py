"""The command line: parse, delegate, and word errors. Each command's module is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

import click

from edge import __version__
from edge.cli.complaint import INTERNAL, INTERRUPTED, MISUSE, OURS, USAGE, say, wants_json
from edge.errors import ConfigurationError, EdgeError, NotYet

EXIT_FAILURE, EXIT_USAGE, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 1, 2, 78, 130
EXIT_CODES = {
    0: "done",
    EXIT_FAILURE: "failed: the line on standard error says why and what to do",
    EXIT_USAGE: "the command was called wrongly (`edge enroll` has codes of its own, see there)",
    EXIT_CONFIGURATION: "settings, flags or the machine stand in the way; trying again without a change cannot help",
    EXIT_INTERRUPTED: "interrupted by Ctrl-C",
}

_COMMANDS = {
    "serve": "Load a model and answer the API until told to stop.",
    "chat": "Talk to a running node.",
    "status": "Say how a running node is, and what it decided lately.",
    "health": "Say in one line whether a node would take a request now.",
    "bench": "Measure how many requests a second a server answers in time.",
    "plan": "Say how a model fits into this machine's memory, without serving it.",
    "models": "List, fetch, check and remove models.",
    "quantize": "Write a model in fewer bits, and say what that cost.",
    "doctor": "Check this machine and the settings; name what is missing and the cure.",
    "enroll": "Make this machine a node of a fleet, with a token.",
    "identity": "Show, renew or reset who this node is to its fleet.",
    "outbox": "Look at what was not yet acknowledged by the fleet, or send it.",
    "fleet": "The fleet's side: let nodes in, keep what they tell, show and command them.",
    "install": "Make the node a service of this machine.",
    "k3s": "Make a stick that installs the node on K3s machines without a network.",
    "keys": "Create, list and revoke API keys.",
    "settings": "Show every setting, its value and where that came from.",
    "version": "Show the version.",
}


class _Commands(click.Group):
    """Finds a command's module by the command's name, so that `edge --help` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(f"edge.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Try it: `edge serve` in one terminal, `edge chat` in another.",
)
@click.option(
    "--home", type=click.Path(path_type=Path), help="Directory of all state and of edge.toml [default: $EDGE_HOME]."
)
@click.option("--debug", is_flag=True, help="Show the whole traceback of an unexpected error.")
@click.version_option(__version__, "--version", message="edge %(version)s")
@click.pass_context
def root(context: click.Context, home: Path | None, debug: bool) -> None:
    """An inference node for small machines: quantised language models behind an OpenAI-compatible API."""
    if home is not None:
        os.environ["EDGE_HOME"] = str(home.expanduser().absolute())
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main() -> None:
    """Entry point of `edge`; ends with one of EXIT_CODES."""
    debug, as_json = "--debug" in sys.argv, False
    try:
        as_json = wants_json(root, sys.argv[1:])
        outcome = root.main(standalone_mode=False, prog_name="edge")
        code = outcome if isinstance(outcome, int) else 0
    except click.ClickException as error:
        code = EXIT_USAGE if error.exit_code == 1 else error.exit_code
        message = error.format_message().rstrip(".")
        say(message + ("" if as_json else _usage_hint(error)), kind=MISUSE, code=USAGE, as_json=as_json)
    except (click.Abort, KeyboardInterrupt) as stopped:
        code = EXIT_INTERRUPTED
        message = str(stopped) or str(stopped.__cause__ or "")  # click makes the one into the other
        if message or as_json:
            say(message or "interrupted by Ctrl-C", kind=OURS, code=INTERRUPTED, as_json=as_json)
    except EdgeError as error:
        corrigible = isinstance(error, ConfigurationError) and not isinstance(error, NotYet)
        code = EXIT_CONFIGURATION if corrigible else EXIT_FAILURE
        say(error.message, kind=error.kind, code=error.code, param=error.param, as_json=as_json)
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILURE
    except Exception as error:
        if debug:
            raise
        code = EXIT_FAILURE
        message = f"unexpected {type(error).__name__}: {error}{_keep_traceback()}"
        say(message, kind=OURS, code=INTERNAL, as_json=as_json)
    sys.exit(code)


def _usage_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f" (see `{context.command_path} --help`)" if context is not None else ""


def _keep_traceback() -> str:
    """Write the current traceback to a file and say where; the console is no place for it."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    text = f"edge {__version__}, {stamp}, {' '.join(sys.argv)}\n{traceback.format_exc()}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix=f"edge-{stamp}-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
    except OSError:
        return "; run it again as `edge --debug ...` to see where"
    return f"; details are in {file.name}, or run it again as `edge --debug ...`"
