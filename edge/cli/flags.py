"""Flags that set settings, for every command that reads them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from edge.effective import Effective, default_home, load
from edge.settings import declared

_SHORT = {"model.name": "--model", "server.host": "--host", "server.port": "--port", "log.level": "--log-level"}


Flags = dict[str, tuple[str, str]]
"""A setting's key: its value, and the flag as typed."""


def setting_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command `--model`, `--host`, `--port`, `--log-level` and `--set`.

    The command gets the settings in force as `effective`; ConfigurationError is raised if any source is wrong.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, flags: Flags, **rest: Any) -> Any:
        return function(*args, effective=current(flags), **rest)

    return unread_setting_flags(wrapper)


def unread_setting_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same flags for a command that reads the settings itself; it gets what was given as `flags`."""
    by_key = {setting.key: setting for setting in declared()}

    @functools.wraps(function)
    def wrapper(*args: Any, assignments: tuple[str, ...], **rest: Any) -> Any:
        flags: Flags = {}
        for key, flag in _SHORT.items():
            value = rest.pop(_parameter(flag))
            if value is not None:
                flags[key] = (value, flag)
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals:
                raise click.UsageError(f"--set wants SECTION.NAME=VALUE, not {assignment!r}")
            flags[key.strip()] = (value, f"--set {key.strip()}")
        return function(*args, flags=flags, **rest)

    decorated: Callable[..., Any] = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.NAME=VALUE",
        help="Set any setting, such as engine.slots=4. `edge settings` lists them. May be repeated.",
    )(wrapper)
    for key, flag in reversed(_SHORT.items()):
        default = by_key[key].field.get_default()
        about = f"{by_key[key].field.description} [default: {default}]"
        decorated = click.option(flag, _parameter(flag), metavar=flag.rpartition("-")[2].upper(), help=about)(decorated)
    return decorated


def current(flags: Flags | None = None) -> Effective:
    """The settings in force for this process. Raises ConfigurationError."""
    return load(default_home(os.environ), os.environ, flags or {})


def own_url(effective: Effective) -> str:
    """Where `edge serve` listens with these settings, as seen from this machine."""
    server = effective.settings.server
    return server.url(server.port)


def node_url(given: str | None) -> str:
    """The address of a node as a person may write it (with `/v1`, without `http://`), or where `edge serve` would listen."""
    if not given:
        return own_url(current())
    url = given if "://" in given else f"http://{given}"
    return url.rstrip("/").removesuffix("/v1") if not url.endswith("://") else url


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
