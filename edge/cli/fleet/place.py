"""What the commands on a fleet's directory share: which one it is, who calls, and how times are written."""

from __future__ import annotations

import contextlib
import getpass
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from edge.control.database import Database
from edge.control.settings import FleetHome, FleetSettings, load_settings
from edge.printable import printable

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def fleet_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--dir`; the command gets a FleetHome as `home`."""
    return click.option(
        "--dir", "home", type=click.Path(path_type=Path), default="fleet", envvar="EDGE_FLEET_DIR", metavar="DIR",
        help="The fleet's directory [default: $EDGE_FLEET_DIR, else ./fleet].",
        callback=lambda _, __, value: FleetHome(value.absolute()),
    )(function)  # fmt: skip


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@contextlib.contextmanager
def opened(home: FleetHome) -> Iterator[tuple[FleetSettings, Database]]:
    """Its settings and database. Raises ConfigurationError."""
    settings = load_settings(home)
    database = Database(home.database)
    try:
        yield settings, database
    finally:
        database.close()


def actor() -> str:
    """For the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`90s`, `30m`, `12h`, `7d`, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Of the text."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", str(value).strip())
        if found is None:
            self.fail(f"{value!r} is no time such as 30m, 24h or 7d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def moment(at_s: float | None) -> str:
    """A time for people, in UTC."""
    return "-" if at_s is None else f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d %H:%M}Z"


def ago(at_s: float | None, now_s: float) -> str:
    """How long since."""
    if at_s is None:
        return "never"
    passed = max(0.0, now_s - at_s)
    for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
        if passed >= 2 * seconds:
            return f"{passed // seconds:.0f} {unit} ago"
    return f"{passed:.0f} s ago"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Columns as wide as they must be. What a terminal would take for a command is not printed."""
    rows = [tuple(printable(cell) for cell in row) for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
