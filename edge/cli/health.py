"""`edge health`: one question to the node on this machine, for container runtimes and scripts.

The standard library asks it, since it is asked every half minute.
"""

from __future__ import annotations

import http.client
import json
import ssl
from urllib.parse import urlsplit

import click

from edge.cli.flags import node_url
from edge.errors import NodeUnreachable

_TIMEOUT_S = 5.0
_OK = 200
_HANDSHAKE = 22
_CERTIFICATE_REQUEST = 13
"""RFC 8446, 4 and 5.1."""


@click.command()
@click.option("--url", envvar="EDGE_URL", help="Address of the node [default: where `edge serve` would listen].")
@click.option("--live", is_flag=True, help="Only whether it runs; not whether it would take a request now.")
def command(url: str | None, live: bool) -> int:
    """Say in one line whether a node would take a request now. Needs no API key.

    Ends with 1 if it would not. If its own model does not answer and the fleet does, it takes requests, and the line says so. A
    node that asks for client certificates can be asked by nobody without one: that it does so is all that is looked at then.
    """
    base = node_url(url)
    try:
        status, body = _ask(base, "/health/live" if live else "/health/ready")
    except _NoCertificate:
        click.echo("it runs; whether it is ready it tells those with a client certificate only")
        return 0
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NodeUnreachable(f"nothing answers at {base} ({reason}); start a node with `edge serve`") from None
    if status == _OK:
        by_fleet = _said(body, "by") == "fleet"
        ready = f"ready by the fleet alone, its own model is not: {_said(body, 'reason')}" if by_fleet else "ready"
        click.echo("it runs" if live else ready)
        return 0
    click.echo(f"not ready: {_said(body, 'reason') or f'it answers with {status}'}", err=True)
    return 1


class _NoCertificate(Exception):
    """In the handshake the other side asked for a certificate, and without one it hung up. Only a node that runs does."""


def _ask(base: str, path: str) -> tuple[int, bytes]:
    """The address is this machine's own, and its certificate is made for names that others use: it is not checked."""
    parts = urlsplit(base)
    host = parts.hostname or ""
    handshake = _Handshake()
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        trusting = ssl.create_default_context()
        trusting.check_hostname = False
        trusting.verify_mode = ssl.CERT_NONE
        trusting._msg_callback = handshake.heard  # type: ignore[attr-defined]  # there is no public way to see it
        connection = http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT_S, context=trusting)
    else:
        connection = http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_S)
    try:
        connection.connect()
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (ssl.SSLError, ConnectionError):
        # A hang-up alone says nothing, and asyncio's servers end a handshake without the alert that would.
        if handshake.certificate_wanted:
            raise _NoCertificate from None
        raise
    finally:
        connection.close()


class _Handshake:
    """What the other side says while TLS begins."""

    def __init__(self) -> None:
        self.certificate_wanted = False

    def heard(
        self, _connection: object, direction: str, _version: int, content: int, message: int, _data: bytes
    ) -> None:
        """One message of TLS went by, here or there."""
        if (direction, content, message) == ("read", _HANDSHAKE, _CERTIFICATE_REQUEST):
            self.certificate_wanted = True


def _said(body: bytes, field: str) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    return str(found.get(field, "")) if isinstance(found, dict) else ""
