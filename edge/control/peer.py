"""The listeners' connections. That of the nodes knows the client's certificate, which uvicorn does not tell.

A certificate that has ended must get through the handshake, since it may still be renewed: OpenSSL checks the chain and leaves
out the dates (X509_V_FLAG_NO_CHECK_TIME). They are checked where it is decided what the certificate is good for.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

from edge.connection import BoundedConnection, bounded_connection
from edge.errors import ConfigurationError
from edge.listener import HttpServer, PortBusy, bind, say_if_absent, uvicorn_config
from edge.settings import Server

PEER = "edge.peer_certificate"
"""Key of the ASGI scope: DER of the client's certificate, whose chain was checked and whose dates were not; None without one."""
_NO_CHECK_TIME = 0x200000
_KEEP_ALIVE_S = 20


class PeerConnection(BoundedConnection):
    """Says in each request's scope who the client is."""

    _peer: bytes | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The handshake is over."""
        tls = transport.get_extra_info("ssl_object")
        self._peer = tls.getpeercert(binary_form=True) if tls is not None else None
        super().connection_made(transport)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        scope: MutableMapping[str, Any] = self.scope  # type: ignore[assignment]
        scope[PEER] = self._peer


def nodes_context(chain: Path, key: Path, anchors: Path) -> ssl.SSLContext:
    """For the listener of the nodes: a client certificate is not asked of everybody, but must be of our authority. Raises
    ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    refresh(context, chain, key, anchors)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= _NO_CHECK_TIME
    return context


def refresh(context: ssl.SSLContext, chain: Path, key: Path, anchors: Path | None = None) -> None:
    """New handshakes take these files from now on. Trust is only ever added; what counts no longer is refused where it is decided
    what a certificate is good for. Raises ConfigurationError."""
    try:
        context.load_cert_chain(chain, key)
        if anchors is not None:
            context.load_verify_locations(anchors)
    except OSError as error:  # ssl.SSLError is one
        files = ", ".join(str(path) for path in (chain, key, anchors) if path is not None)
        raise ConfigurationError(f"TLS files cannot be used ({error}): {files}") from None


def people_context(chain: Path, key: Path) -> ssl.SSLContext:
    """For the listener of people. Raises ConfigurationError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    refresh(context, chain, key)
    return context


def http_server(
    app: Callable[..., Any], context: ssl.SSLContext | None, *, timeout_s: float, max_connections: int
) -> HttpServer:
    """uvicorn on our connection class."""
    connection = bounded_connection(timeout_s, timeout_s, max_connections, PeerConnection)
    config = uvicorn_config(app, connection, _KEEP_ALIVE_S)
    config.load()
    config.ssl = context
    return HttpServer(config)


def listen(host: str, port: int, section: str) -> socket.socket:
    """Take the address. Raises PortBusy or ConfigurationError that names the setting."""
    try:
        listener = bind(Server(host=host, port=port))
        say_if_absent(listener)
        return listener
    except PortBusy:
        raise PortBusy(
            f"port {port} on {host} is in use already; stop what listens there, or choose another in fleet.toml: [{section}] port"
        ) from None
    except ConfigurationError as error:
        raise type(error)(error.message.replace("server.host", f"[{section}] host")) from None
