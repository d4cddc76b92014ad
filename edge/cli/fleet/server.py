"""`edge fleet init` and `edge fleet serve`."""

from __future__ import annotations

import re
import shutil
import socket
from pathlib import Path

import click

from edge.cli.fleet.place import actor, fleet_option
from edge.control.founding import Wish, found_fleet
from edge.control.serve import Serving, serve_fleet
from edge.control.settings import FleetHome
from edge.logs import start_logging
from edge.settings import LOG_LEVELS

_PORT = click.IntRange(1, 65_535)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the fleet, part of each node's identity [default: that of the directory].")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Name or address by which nodes reach this server and the broker; the first is told to them. May be repeated "
    "[default: this machine's name, localhost and 127.0.0.1].",
)
@click.option("--port", type=_PORT, default=8443, show_default=True, help="For nodes (EST, bootstrap).")
@click.option("--admin-port", type=_PORT, default=8444, show_default=True, help="For people, on this machine only.")
@click.option("--broker-port", type=_PORT, default=8883, show_default=True, help="Of mosquitto.")
def init(
    directory: Path, name: str | None, hosts: tuple[str, ...], port: int, admin_port: int, broker_port: int
) -> None:
    """Make a new fleet in DIRECTORY: a root and an issuing authority, certificates of the servers, mosquitto's configuration, a
    key that signs commands, the database, and a first admin key, which is printed once."""
    plain = re.sub(r"[^a-z0-9]+", "-", (name or directory.absolute().name).lower()).strip("-")[:60] or "fleet"
    known = tuple(dict.fromkeys(hosts or (*_machine(), "localhost", "127.0.0.1")))
    wish = Wish(name or plain, known, port, admin_port, broker_port)
    found = found_fleet(directory, wish, actor())
    root = found.home.root
    here = "" if root == Path("fleet").absolute() else f" --dir {directory}"
    click.echo(f"made the fleet {wish.name} in {root}, for {', '.join(wish.hosts)}")
    click.echo(f"broker:    {_mosquitto()} -c {directory / 'broker' / 'mosquitto.conf'}")
    click.echo(f"server:    edge fleet serve{here}")
    click.echo(f"token:     edge fleet token create{here}")
    click.echo(f"admin key: {found.admin_key}   (for http://127.0.0.1:{admin_port}; kept as a hash, not shown again)")
    click.echo(f"The root's key {directory / 'ca' / 'root-1.key'} is not needed for this: move it to a safe place.")


def _mosquitto() -> str:
    """How it is called here: Debian puts it where the paths of most users do not lead."""
    away = Path("/usr/sbin/mosquitto")
    return str(away) if shutil.which("mosquitto") is None and away.exists() else "mosquitto"


def _machine() -> tuple[str, ...]:
    """This machine's name, if it stands for an address and can stand in a certificate."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except (OSError, UnicodeError):
        return ()
    return (name,) if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.\-]{0,252}", name) else ()


@click.command()
@fleet_option
@click.option(
    "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True, help="How much is logged."
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="For people or for programs.")  # fmt: skip  # noqa: E501
def serve(home: FleetHome, log_level: str, log_format: str) -> None:
    """Run the fleet's server until told to stop: EST and bootstrap for nodes, the page and its API for people, the telemetry
    sink, and mosquitto's access list."""
    start_logging(log_level, log_format)  # type: ignore[arg-type]

    def started(serving: Serving) -> None:
        click.echo(f"nodes enroll at {serving.nodes}", err=True)
        click.echo(f"people look at  {serving.people}", err=True)
        click.echo(f"the broker is   {serving.broker or 'not set ([broker] url in fleet.toml)'}", err=True)

    serve_fleet(home, started)
