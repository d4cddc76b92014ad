"""`edge settings`."""

from __future__ import annotations

import click

from edge.cli.flags import setting_flags
from edge.effective import Effective
from edge.settings import declared, toml_value


@click.command()
@setting_flags
@click.option("--changed", is_flag=True, help="Only those that are not left at their default.")
def command(effective: Effective, changed: bool) -> None:
    """Show every setting, its value and where that came from.

    The output is itself a valid settings file. A flag comes before the environment, that before the file
    EDGE_HOME/edge.toml, and that before the default.
    """
    click.echo(f"# EDGE_HOME is {effective.home}")
    section = ""
    for setting in declared():
        origin = effective.origins[setting.key]
        if changed and origin.source == "default":
            continue
        if setting.section != section:
            section = setting.section
            click.echo(f"\n[{section}]")
        value = effective.value(setting)
        line = f"# {setting.name} is not set" if value is None else f"{setting.name} = {toml_value(value)}"
        click.echo(f"{line:44}  # {origin.where}")
