"""`edge version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from edge import __version__


@click.command()
def command() -> None:
    """Show the version of edge, of the native library's bindings and of Python."""
    try:
        bindings = version("llama-cpp-python")
    except PackageNotFoundError:
        bindings = "missing"
    click.echo(f"edge {__version__} (llama-cpp-python {bindings}, Python {platform.python_version()})")
