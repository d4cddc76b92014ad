"""Groups of commands that say in their help what each does, in a whole sentence."""

from __future__ import annotations

import click

_WHOLE = 1000
"""Longer than any first sentence; click cuts at 45 letters by itself."""


class Commands(click.Group):
    """Shows the first sentence of each command's help; groups made by it do so too."""

    group_class = type

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in found if command and not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
