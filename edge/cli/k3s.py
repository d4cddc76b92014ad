"""`edge k3s`."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from edge import quantities
from edge.cli.listing import Commands
from edge.effective import default_home

if TYPE_CHECKING:  # `edge k3s --help` waits for none of it
    from rich.status import Status

_FILE = click.Path(path_type=Path)
_GPU_MODES = ("none", "devicePlugin", "runtimeOnly")
"""Those that need no further value; the others go by --values."""
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@click.group(cls=Commands, invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Bring the node onto K3s machines. The chart itself is for Helm; see docs/install/k3s.md."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _label(context: click.Context, option: click.Parameter, value: str) -> str:
    if not _LABEL.fullmatch(value):
        raise click.BadParameter(f"{value!r}: up to 63 of a-z, 0-9 and dash", context, option)
    return value


@command.command()
@click.option(
    "--image", type=_FILE, required=True, help="Archive of the node's image: podman save -o FILE IMAGE, or docker save."
)
@click.option("--to", "target", type=_FILE, required=True, help="Directory to make, such as /media/stick/edge.")
@click.option("--image-name", metavar="NAME", help="Which of the archive's images [default: the only one].")
@click.option(
    "--model",
    "models",
    metavar="FILE|NAME",
    multiple=True,
    help="GGUF file, or a model of `edge models list` that is here; the first is the node's own. May be repeated "
    "[default: the image's built-in one].",
)
@click.option("--keys", type=_FILE, help="A keys.json that `edge keys` wrote: hashes of the API keys.")
@click.option(
    "--values", type=_FILE, help="Values of the chart for this site, in YAML; they win over the bundle's own."
)
@click.option(
    "--gpu",
    type=click.Choice(_GPU_MODES),
    help="How the pods get a GPU: gpu.mode of the chart. Must be said, here or in --values, for an image that is made for GPUs.",
)
@click.option(
    "--cache-file",
    is_flag=True,
    help="Have K3s import the image once and not at each start. For K3s's releases from July 2026 on: with older ones the "
    "image can be deleted when the disk gets full, and does not come back.",
)
@click.option(
    "--namespace", default="edge", show_default=True, callback=_label, help="Namespace in which the node will run."
)
def bundle(
    image: Path,
    target: Path,
    image_name: str | None,
    models: tuple[str, ...],
    keys: Path | None,
    values: Path | None,
    namespace: str,
    gpu: str | None,
    cache_file: bool,
) -> None:
    """Make a directory that installs the node on K3s machines without a network, from a stick. Its README.md says how."""
    from edge.k3s.bundle import Wish, carried, make_bundle
    from edge.registry.resolve import Registry

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidied up after like Ctrl-C
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with console.status("reading ...") as status:
        registry = Registry.at(default_home(os.environ))
        along = tuple(carried(model, registry) for model in models)
        wish = Wish(image, image_name, along, keys, values, namespace, gpu, cache_file)
        made = make_bundle(wish, target, _View(status))
    click.echo(
        f"{target} is made: {made.image.name} for {made.image.architecture}, {quantities.count(made.files, 'file')}, "
        f"{quantities.size(made.size_bytes)}; on the machine: cd {shlex.quote(str(target))}, and README.md says what then"
    )
    if keys is None:
        click.echo("it has no API keys, so the node will wait for them: README.md says how, or give --keys", err=True)


class _View:
    """One line that says how far it is."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def goes_on(self, what: str, done_bytes: int) -> None:
        """So much of `what` is there."""
        self._status.update(f"{what}: {quantities.size(done_bytes)} ...")
