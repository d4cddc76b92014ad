"""`edge serve`: what a person sees of a starting node."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edge import __version__, quantities
from edge.cli import words
from edge.cli.flags import setting_flags
from edge.effective import Effective

if TYPE_CHECKING:  # `edge serve --help` waits for neither the server nor the event loop
    from edge.app import Started

_PLAIN_STEP = 0.25
_LONG_READ_BYTES = 256 << 20
_EXAMPLE = "What can you do?"


@click.command()
@setting_flags
def command(effective: Effective) -> None:
    """Load a model and answer the OpenAI-compatible API until told to stop.

    SIGTERM or Ctrl-C lets running answers finish (server.drain_timeout_s); a second one ends at once.
    """
    from edge.app import serve

    output = cast("IO[str]", LastingOutput(sys.stdout)) if sys.stdout is not None else None
    with StartView(Console(file=output, soft_wrap=True, highlight=False)) as view:
        serve(effective, view)


class LastingOutput:
    """Standard output for what shows how a node starts. Its reader may leave, the disk of its file may be full, a terminal may
    lack a letter: none of that keeps the node from starting. What cannot be shown is not, and nothing after it."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """As a text stream has it; never raises."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # UnicodeEncodeError is a ValueError, and so is a stream that is closed
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """The same."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # what is still in its buffer goes there when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class StartView:
    """Progress while loading, and then the facts. A bar on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._said = ""
        self._fraction_said = 0.0
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)

    def __enter__(self) -> StartView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def checking(self, path: Path, done_bytes: int) -> None:
        """A checksum is being computed for the first time."""
        if done_bytes == 0 and path.stat().st_size >= _LONG_READ_BYTES:
            self._console.print(f"checking {path} (once for each file) ...")

    def loading(self, stage: str, fraction: float) -> None:
        """Loading goes on: `fraction` 0..1 of `stage`."""
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task(stage, total=1.0)
                self._bar.start()
            self._bar.update(self._bar.tasks[0].id, description=stage, completed=fraction)
        elif stage != self._said or fraction - self._fraction_said >= _PLAIN_STEP:
            self._said, self._fraction_said = stage, fraction
            self._console.print(f"{stage}: {fraction:.0%}" if fraction else f"{stage} ...")

    def ready(self, started: Started) -> None:
        """The model answers: say what, where, how much memory, and how to try it."""
        self._end_bar()
        for label, text in _account(started):
            self._console.print(f"{label:8} {text}", markup=False)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _account(started: Started) -> list[tuple[str, str]]:
    facts, url = started.facts, started.url
    keys = "an API key is required" if started.keys_required else "no API key is required from this machine"
    others = ", and on all other addresses of this machine" if started.everywhere else ""
    absent = "" if started.is_here else "; nobody gets there yet: it is no address of this machine"
    key_header = "-H 'Authorization: Bearer '$EDGE_API_KEY " if started.keys_required else ""
    edge = words.called(sys.argv[0], on_path=shutil.which("edge") is not None)
    chat = f"{edge} chat" if url == "http://127.0.0.1:8080" else f"{edge} chat --url {url}"
    body = f'{{"model": "{started.model_name}", "messages": [{{"role": "user", "content": "{_EXAMPLE}"}}]}}'
    return [
        ("edge", f"{__version__}, state in {started.home}"),
        ("model", f"{started.model_name}: {words.of_header(started.model)}"),
        ("runs on", words.runs_on(facts)),
        (
            "memory",
            f"{words.native_memory(facts)}; processes: engine {quantities.size(started.engine_bytes)}, "
            f"front {quantities.size(started.front_bytes)}",
        ),
        (
            "promise",
            words.promise(facts, started.ttft_slo_ms, started.itl_slo_ms, promises=started.promises),
        ),
        *(
            [("fleet", f"what would be late may go to {', '.join(started.fleet)}; see `edge status`")]
            if started.fleet
            else []
        ),
        *(
            [("further", f"{', '.join(started.further)}: loaded when asked for, best-effort; see `edge status`")]
            if started.further
            else []
        ),
        ("serves", f"{url}/v1{others} ({keys}{absent})"),
        ("try it", f'{chat} "{_EXAMPLE}"'),
        ("", f"curl {url}/v1/chat/completions {key_header}-H 'Content-Type: application/json' -d '{body}'"),
    ]
