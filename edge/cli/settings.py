"""`edge settings`."""

from __future__ import annotations

import os
from typing import Any

import click

from edge.cli.flags import setting_flags
from edge.effective import Effective
from edge.settings import declared, declared_of_a_model, toml_value


@click.command()
@setting_flags
@click.option("--changed", is_flag=True, help="Only those that are not left at their default.")
def command(effective: Effective, changed: bool) -> None:
    """Show every setting, its value and where that came from.

    The output is itself a valid settings file. A flag comes before the environment, that before the file
    EDGE_HOME/edge.toml, that before what the fleet told this node when it enrolled, and that before the default.
    """
    from edge.enrolled import standing_of

    standing = standing_of(effective, os.environ)
    if standing.damage:
        click.echo(f"edge: {standing.damage}; so nothing of the enrollment is among these", err=True)
        effective = standing.effective
    click.echo(f"# EDGE_HOME is {effective.home}")
    section = ""
    for setting in declared():
        origin = effective.origins[setting.key]
        if changed and origin.source == "default":
            continue
        if setting.section != section:
            section = setting.section
            click.echo(f"\n[{section}]")
        _show(setting.name, effective.value(setting), origin.where)
    for name, further in effective.settings.models.items():
        click.echo(f"\n[models.{toml_value(name)}]")
        for setting in declared_of_a_model(name):
            given = setting.name in further.model_fields_set
            if given or not changed:
                _show(setting.name, getattr(further, setting.name), effective.file if given else "default")


def _show(name: str, value: Any, where: object) -> None:
    line = f"# {name} is not set" if value is None else f"{name} = {toml_value(value)}"
    click.echo(f"{line:44}  # {where}")
