"""`edge doctor`."""

from __future__ import annotations

import os

import click

from edge.cli.flags import Flags, unread_setting_flags
from edge.effective import default_home

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@unread_setting_flags
def command(flags: Flags) -> int:
    """Check this machine and the settings; name what is missing and the cure.

    Give it the flags that `edge serve` gets, and it checks what that would meet.
    Ends with 1 if a check failed; warnings alone end with 0.
    """
    from edge.doctor import examine  # brings the server's modules with it

    levels = set()
    for finding in examine(default_home(os.environ), os.environ, flags):
        levels.add(finding.level)
        click.echo(
            f"{click.style(f'{finding.level:4}', fg=_COLOURS[finding.level])}  {finding.subject:14}  {finding.text}"
        )
        if finding.cure:
            click.echo(f"{'':22}do: {finding.cure}")
    return 1 if "fail" in levels else 0
