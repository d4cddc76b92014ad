"""`edge fleet sink|key|command`: the other side of the uplink, one part at a time."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edge.cli.flags import current
from edge.errors import ConfigurationError, EdgeError, NodeUnreachable
from edge.logs import start_logging
from edge.printable import printable
from edge.settings import LOG_LEVELS
from edge.telemetry.mqtt import BrokerAddress, Connection, ConnectionFailed, Handlers, Message

_RESEND_S = 5.0
_LONGEST_SAID = 1000
_PREFIX, _NODE_LEVEL = "edge/v1/+/+/", 3
"""And which level of it is the node's name."""


class CommandRefused(EdgeError):
    """The node answered, and did not do it."""

    code = "command_refused"


def _broker_options(function: Callable[..., Any]) -> Callable[..., Any]:
    file = click.Path(path_type=Path, exists=True, dir_okay=False)
    options = (
        click.option("--url", help="The broker [default: mqtt.url of the settings]."),
        click.option("--username", default="", help="Name to log in with."),
        click.option("--password-file", type=file, help="File with the password."),
        click.option("--ca", type=file, help="PEM file of the CA of the broker's certificate."),
        click.option("--cert", type=file, help="PEM file with our certificate chain."),
        click.option("--key", type=file, help="PEM file with that certificate's key."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@dataclass(frozen=True, slots=True)
class _Broker:
    url: str | None
    username: str
    password_file: Path | None
    ca: Path | None
    cert: Path | None
    key: Path | None

    def address(self, client_id: str) -> BrokerAddress:
        from edge.settings import Mqtt, holds_credentials

        url = self.url or current().settings.mqtt.url
        if not url:
            raise click.UsageError("give the broker with --url mqtt://host")
        if holds_credentials(url):
            raise click.UsageError("--url must hold no user and no password: use --username and --password-file")
        try:
            Mqtt(url=url)
        except ValueError:
            raise click.UsageError(f"--url {url} must be mqtt://host[:port] or mqtts://host[:port]") from None
        if (self.cert is None) != (self.key is None):
            raise click.UsageError("--cert and --key belong together")
        return BrokerAddress(
            url, client_id, self.username, self.password_file, ca_file=self.ca, cert_file=self.cert, key_file=self.key
        )


@click.command()
@_broker_options
@click.option("--db", type=click.Path(path_type=Path), required=True, metavar="FILE", help="SQLite file; made if there is none.")  # fmt: skip  # noqa: E501
@click.option("--prefix", default=_PREFIX, show_default=True, help="What the topics of the nodes begin with.")
@click.option("--client-id", default="edge-sink", show_default=True, help="Name of this sink at the broker; keep it.")
@click.option("--keep-days", type=click.FloatRange(min=0), default=0, metavar="DAYS", help="Drop what came longer ago; 0 keeps all [default: 0].")  # fmt: skip  # noqa: E501
def sink(db: Path, prefix: str, client_id: str, keep_days: float, **broker: Any) -> None:
    """Keep what nodes tell in a SQLite file, and acknowledge it. May be killed at any time: nothing is acknowledged before it is
    safe."""
    from edge.telemetry.sink import Sink
    from edge.telemetry.sinkfile import SinkFile

    if not prefix.endswith("/"):
        raise click.UsageError("--prefix must end with a slash")
    start_logging("info", "text")
    file = SinkFile(db, _NODE_LEVEL if prefix == _PREFIX else None)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        Sink(_Broker(**broker).address(client_id), prefix, file, keep_days * 86_400).run(stop)
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"{db} cannot be written ({error}): free space on its disk, or see why; nothing is acknowledged that is not in it"
        ) from None
    counts = file.counts
    file.close()
    click.echo(f"stored {counts.stored}, repeated {counts.repeated}, nonsense {counts.nonsense}", err=True)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def key(file: Path) -> None:
    """Make a key pair for commands: FILE (private, for who commands) and FILE.pub (for mqtt.command_keys_file of nodes)."""
    from edge.telemetry.commands import new_key_pair

    private, public = new_key_pair()
    for path, data, mode in ((file, private, 0o600), (Path(f"{file}.pub"), public, 0o644)):
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be made: {error.strerror}; choose another name") from None
        with os.fdopen(handle, "wb") as opened:
            opened.write(data)
    click.echo(f"made {file} (keep it secret) and {file}.pub")


@click.command("command")
@click.argument("node")
@click.argument("name", type=click.Choice(["drain", "reload", "log-level", "trace", "rebirth"]), metavar="COMMAND")
@click.argument("argument", required=False)
@_broker_options
@click.option("--sign", "key_file", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Private key that signs.")  # fmt: skip  # noqa: E501
@click.option("--group", default="default", show_default=True, help="The node's group.")
@click.option("--prefix", default="edge/v1/{group}/{node}/", show_default=True, help="As in the node's mqtt.prefix.")
@click.option("--resume", is_flag=True, help="With drain: take work again.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(1, 86_400), default=60.0, show_default=True, metavar="SECONDS", help="How long the command holds, and how long to wait for the answer.")  # fmt: skip  # noqa: E501
def send(
    node: str, name: str, argument: str | None, key_file: Path, group: str, prefix: str, resume: bool, timeout_s: float,
    **broker: Any
) -> None:  # fmt: skip
    """Have NODE carry out COMMAND, and show its answer.

    drain: take no new work (--resume: take it again). reload: finish what runs and start anew with the settings as they are then.
    log-level debug|info|warning|error. trace N: tell of the next N requests, without content. rebirth: say again who it is.
    """
    from edge.telemetry.commands import read_private_key, sign

    signer, command_id = read_private_key(key_file), secrets.token_hex(8)
    topic = prefix.replace("{group}", group).replace("{node}", node)
    text = sign(
        signer, command_id=command_id, node=topic.rstrip("/"), name=name, arguments=_arguments(name, argument, resume),
        now_s=time.time(), life_s=timeout_s,
    )  # fmt: skip
    address = _Broker(**broker).address(f"edge-command-{socket.gethostname()}-{command_id}")
    answer = _ask(address, topic, command_id, text, timeout_s)
    if answer.get("status") != "done":
        said = (_plain(answer.get(name)) for name in ("status", "code", "text"))
        raise CommandRefused("{} did not do it ({}, {}): {}".format(node, *said))
    click.echo(json.dumps(answer["result"]) if answer.get("result") else "done")


def _plain(said: Any) -> str:
    """What a node says, as a terminal may show it."""
    return printable(str(said))[:_LONGEST_SAID]


def _arguments(name: str, argument: str | None, resume: bool) -> dict[str, Any]:
    if resume and name != "drain":
        raise click.UsageError("--resume goes with drain")
    if name == "log-level":
        if argument not in LOG_LEVELS:
            raise click.UsageError(f"log-level wants one of {', '.join(LOG_LEVELS)}")
        return {"level": argument}
    if name == "trace":
        if argument is None or not argument.isdecimal():
            raise click.UsageError("trace wants a number of requests")
        return {"requests": int(argument)}
    if argument is not None:
        raise click.UsageError(f"{name} takes no argument")
    return {"resume": resume} if name == "drain" else {}


def _ask(address: BrokerAddress, topic: str, command_id: str, text: bytes, timeout_s: float) -> dict[str, Any]:
    """Send, and send again until there is an answer."""
    answers: list[Message] = []
    refused: list[int] = []
    handlers = Handlers(answers.append, lambda _, code: refused.append(code), lambda _, code: refused.append(code))
    connection = Connection(address, handlers)
    try:
        connection.open()
        connection.subscribe(f"{topic}up/cmd/{command_id}")
        deadline_s, next_s = time.monotonic() + timeout_s, 0.0
        while not answers and time.monotonic() < deadline_s:
            if time.monotonic() >= next_s:
                connection.publish(f"{topic}down/cmd/{command_id}", text)
                next_s = time.monotonic() + _RESEND_S
            connection.turn(0.2)
            if any(code >= 0x80 for code in refused):
                raise NodeUnreachable(
                    f"the broker's access list does not let us command {topic}; see docs/telemetry.md"
                )
        connection.close()
    except ConnectionFailed as failure:
        raise NodeUnreachable(failure.reason) from None
    if not answers:
        raise NodeUnreachable(f"no answer from {topic} within {timeout_s:g} s; is the node connected?")
    try:
        found = json.loads(answers[0].payload)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NodeUnreachable(f"what answers as {topic} makes no sense: it is no JSON object")
    return found
