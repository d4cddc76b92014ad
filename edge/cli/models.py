"""`edge models`."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click
from rich.console import Console

from edge import quantities
from edge.cli.asking import RunningNode, node_options
from edge.cli.listing import Commands
from edge.effective import default_home

if TYPE_CHECKING:  # `edge models --help` waits for neither the HTTP client nor pydantic
    from edge.registry.inventory import Inventory, Row
    from edge.registry.pull import Pulled

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_TITLES = ("name", "task", "parameters", "size", "state", "licence", "manifest")
_SUM = re.compile(r"[0-9a-f]{64}")


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List, fetch, check and remove models, and have a running node load them. `edge serve --model NAME` serves one."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _name_option(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _NAME.fullmatch(value):
        raise click.BadParameter(f"{value!r}: up to 63 of a-z, 0-9, dot, dash and underscore", context, option)
    return value


def _sum_option(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    found = value.lower().removeprefix("sha256:")
    if not _SUM.fullmatch(found):
        raise click.BadParameter(f"{value!r}: 64 hexadecimal digits", context, option)
    return found


def _licence_option(context: click.Context, option: click.Parameter, value: str) -> str:
    if not value.strip():
        raise click.BadParameter("is empty; leave it out where the licence is not known", context, option)
    return value


name_option = click.option(
    "--name", metavar="NAME", callback=_name_option, help="Name to know it by [default: made from the file's]."
)
licence_option = click.option(
    "--licence",
    metavar="SPDX",
    default="NOASSERTION",
    callback=_licence_option,
    help="SPDX identifier of its licence, for the manifest.",
)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of text.")
def list_models(as_json: bool) -> None:
    """Show every known model: what it is for, how large, whether it is here, its licence, whose manifest it is."""
    rows = _inventory().rows()
    if as_json:
        click.echo(json.dumps([_object(row) for row in rows], indent=1))
        return
    cells = [_TITLES, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_TITLES))]
    for line in cells:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if row.manifest is None:
            click.echo(f"{row.name} is not finished: {_goes_on(row.source)} goes on with it", err=True)
    if not all(row.manifest is None or row.manifest.served for row in rows):
        click.echo("* can be fetched, but this version does not serve it yet", err=True)


@command.command()
@click.argument("wish", metavar="NAME|SOURCE")
@name_option
@click.option("--sha256", metavar="SUM", callback=_sum_option, help="The checksum that the file of a SOURCE must have.")
@licence_option
def pull(wish: str, name: str | None, sha256: str | None, licence: str) -> None:
    """Fetch a model: a NAME of `edge models list`, or a SOURCE: https://..., http://..., file:/path, or
    hf:OWNER/REPO:FILE_OR_QUANT.

    What was interrupted goes on where it stopped when the same command is given again. Nothing is served before its checksum
    and header are right.
    """
    inventory = _inventory()
    from edge.cli.pulling import PullView

    with PullView(_console()) as view:
        try:
            pulled = inventory.pull(wish, view, name=name, sha256=sha256, licence=licence)
        except KeyboardInterrupt:
            if view.have_bytes:
                view.notes(f"stopped; {view.far} is here and kept: the same command goes on from there")
            raise
    _say_pulled(pulled)


@command.command()
@click.argument("file", type=click.Path(path_type=Path))
@name_option
@click.option("--link", is_flag=True, help="Leave the file where it is; without this it is copied into the store.")
@licence_option
def add(file: Path, name: str | None, link: bool, licence: str) -> None:
    """Make a FILE on this machine or on a stick a known model, without any network."""
    inventory = _inventory()
    from edge.cli.pulling import PullView
    from edge.registry.manifest import Manifest

    with PullView(_console()) as view:
        added = inventory.add(file, view, name=name, link=link, licence=licence)
    if isinstance(added, Manifest):
        click.echo(f"{added.name} is known, and stays at {added.file}; try it: edge serve --model {added.name}")
    else:
        _say_pulled(added)


@command.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
def verify(names: tuple[str, ...]) -> int:
    """Read the files of these models whole, or of all that are here, and compare their checksums.

    Damaged files are set aside, so that they are not served. Ends with 1 if one was damaged, missing or cannot be read.
    """
    console = _console()
    with console.status("reading ...") as status:
        checks = _inventory().verify(list(names), lambda file, path: status.update(f"reading {file} ..."))
    bad = 0
    for check in checks:
        text = {
            "good": "good",
            "unstated": f"no checksum is known; `edge models add` records one for {check.path}",
            "unreadable": f"cannot be read, at {check.path}: look at its owner, and at the disk",
            "missing": f"not here; `edge models pull {check.name}` fetches it",
            "damaged": f"DAMAGED, {_what_became(check.aside, check.path)}; `edge models pull {check.name}` fetches it again",
        }[check.verdict]
        bad += check.verdict in ("missing", "damaged", "unreadable")
        click.echo(f"{check.name}  {check.file}  {text}")
    if not checks:
        click.echo("no model is here; `edge models list` shows which there are", err=True)
    return 1 if bad else 0


@command.command()
@click.argument("name")
def remove(name: str) -> None:
    """Take the files of model NAME away, and its manifest if `edge models` wrote it."""
    removed = _inventory().remove(name)
    if removed.freed_bytes or removed.manifest:
        freed = (
            f"{quantities.size(removed.freed_bytes)} freed"
            if removed.freed_bytes
            else "no file went with it: linked, another model's too, or not here"
        )
        click.echo(f"removed {name}, {freed}")
    else:
        click.echo(f"nothing of {name} takes space here")


@command.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--partials", is_flag=True, help="Also unfinished downloads that were touched within the last seven days."
)
def prune(dry_run: bool, partials: bool) -> None:
    """Remove what no model needs: unused files, damaged ones, and downloads that nobody went on with for seven days."""
    leftovers = _inventory().prune(every_partial=partials, dry_run=dry_run)
    for leftover in leftovers:
        click.echo(f"{quantities.size(leftover.size_bytes):>10}  {leftover.why}  {leftover.path.name}")
    freed = quantities.size(sum(leftover.size_bytes for leftover in leftovers))
    click.echo(f"{freed} {'would be' if dry_run else 'were'} freed" if leftovers else "nothing to remove")


@command.command()
@click.argument("name")
@node_options("admin")
def load(node: RunningNode, name: str) -> None:
    """Have a running node load model NAME of its settings, or the new version of its file, and wait until it answers."""
    found = node.post(f"/edge/v1/models/{quote(name)}/load")
    size = found["bytes_planned"]
    click.echo(f"{found['name']} is loaded" + (f", {quantities.size(size)}" if size else ""))


@command.command()
@click.argument("name")
@node_options("admin")
def unload(node: RunningNode, name: str) -> None:
    """Have a running node unload model NAME when its last answer has ended. The next request for it loads it again."""
    click.echo(f"{node.post(f'/edge/v1/models/{quote(name)}/unload')['name']} is not loaded any more")


def _inventory() -> Inventory:
    from edge.registry.inventory import Inventory

    return Inventory(default_home(os.environ))


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _say_pulled(pulled: Pulled) -> None:
    from edge.registry.manifest import LANGUAGE

    manifest = pulled.record.manifest
    name, size = manifest.name, quantities.size(pulled.record.size_bytes)
    if pulled.already:
        click.echo(f"{name} is here already, {size}")
        return
    for stored in pulled.trusted:
        print(
            f"nobody states a checksum for {stored.file}; from now on it must be what came now, sha256 {stored.sha256}",
            file=sys.stderr,
        )
    if manifest.task in LANGUAGE:
        click.echo(f"{name} is here, {size}; try it: edge serve --model {name}")
    elif manifest.served:
        click.echo(f"{name} is here, {size}; to serve it for {manifest.task}, write [models.{name}] into edge.toml")
    else:
        click.echo(f"{name} is here, {size}; this version does not serve {manifest.task} yet")


def _cells(row: Row) -> tuple[str, ...]:
    size = "?" if row.size_bytes is None else quantities.size(row.size_bytes)
    manifest = row.manifest
    if manifest is None:
        return (row.name, "?", "?", size, _state(row), "?", row.origin)
    return (
        row.name,
        manifest.task if manifest.served else f"{manifest.task}*",
        f"{manifest.parameters / 1e6:,.0f} M" if manifest.parameters else "?",
        size,
        _state(row),
        manifest.licence,
        row.origin,
    )


def _state(row: Row) -> str:
    if row.state == "partial":
        share = f" {row.have_bytes / row.size_bytes:.0%}" if row.size_bytes else ""
        return f"partial{share}"
    return "damaged or lost, pull it" if row.state == "incomplete" else row.state


def _goes_on(source: str) -> str:
    from edge.registry.source import may_be_secret, shown

    secret = may_be_secret(source)
    return f"`edge models pull` with the whole address of {shown(source)}" if secret else f"`edge models pull {source}`"


def _object(row: Row) -> dict[str, object]:
    """For programs. Sizes in bytes."""
    from edge.registry.source import shown

    manifest = row.manifest
    here: dict[str, object] = {
        "name": row.name,
        "state": row.state.replace(" ", "_"),
        "have_bytes": row.have_bytes,
        "size_bytes": row.size_bytes,
        "source": shown(row.source),
    }
    if manifest is None:
        return {**here, "manifest": None}
    return {
        **here,
        "manifest": row.origin,
        "task": manifest.task,
        "served": manifest.served,
        "licence": manifest.licence,
        "parameters": manifest.parameters,
        "context_tokens": manifest.context_tokens or None,
        "description": manifest.description,
    }


def _what_became(aside: Path | None, path: Path) -> str:
    return f"set aside as {aside}" if aside is not None else f"at {path}"
