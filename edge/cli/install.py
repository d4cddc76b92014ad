"""`edge install`."""

from __future__ import annotations

from pathlib import Path

import click

from edge.service.unit import STATE, UNIT


@click.command()
@click.option("--systemd", is_flag=True, required=True, help="As a service of systemd, started at every boot.")
@click.option("--uninstall", is_flag=True, help="Take the service away; its state and settings stay.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--no-start", is_flag=True, help="Start it at the next boot, not now.")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Root directory of another system that is being put together; nothing is started.",
)
@click.option(
    "--executable",
    type=click.Path(path_type=Path),
    help="The `edge` that the service runs [default: this one].",
)
def command(
    systemd: bool, uninstall: bool, dry_run: bool, no_start: bool, root: Path | None, executable: Path | None
) -> None:
    """Install the node as a hardened service. Safe to run again: only what differs is done."""
    from edge.service.install import carry_out, examine
    from edge.service.plan import install_steps, require, uninstall_steps

    root = root.resolve() if root is not None else None
    machine = examine(root, executable)
    if not dry_run:
        require(machine)
    steps = uninstall_steps(machine) if uninstall else install_steps(machine, start=not no_start)
    if dry_run:
        click.echo("\n".join(f"would {step}" for step in steps) or "nothing would be done: all is as it should be")
        return
    carry_out(steps, root, click.echo)
    if not steps:
        click.echo("nothing to do: all is as it should be")
    elif uninstall:
        click.echo(f"the service is gone; its state is still there: `rm -r {STATE}; userdel edge` would take that too")
    elif root is None:
        click.echo(f"`systemctl status edge` shows it, `journalctl -u edge` its log; the unit is {UNIT}")
