"""The socket and the HTTP server on it. Bound before the model is loaded, so that health answers from the start."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from edge.connection import bounded_connection
from edge.errors import ConfigurationError, EdgeError
from edge.settings import Server

log = logging.getLogger(__name__)

_BACKLOG = 1024
_OPEN_FILES = 65_536
_OTHER_FILES = 256
"""Descriptors for all that is no client: models, the outbox, upstreams, handshakes under way, connections above the limit."""
_KEEP_ALIVE_S = 75
_LAST_WRITES_S = 2


class PortBusy(EdgeError):
    """Another process listens on the address already."""

    code = "port_busy"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name counts by all the addresses it stands for."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def bind(settings: Server) -> socket.socket:
    """Take the address. Raises PortBusy or ConfigurationError with the cure."""
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError):
        raise ConfigurationError(
            f"server.host {host!r} is no address of this machine; use 127.0.0.1 or 0.0.0.0"
        ) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise _bind_failure(error, host, port) from None
    listener.setblocking(False)
    return listener


def _bind_failure(error: OSError, host: str, port: int) -> EdgeError:
    if error.errno == errno.EADDRINUSE:
        return PortBusy(
            f"port {port} on {host} is in use already; stop what listens there or choose another with --port"
        )
    if error.errno == errno.EACCES:
        return ConfigurationError(f"port {port} is for root only; choose one from 1024 on, such as --port 8080")
    if error.errno == errno.EADDRNOTAVAIL:
        return ConfigurationError(f"server.host {host!r} is no address of this machine; use 127.0.0.1 or 0.0.0.0")
    return ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}")


def raise_file_limit(connections: int) -> None:
    """Each connection takes a descriptor, and the usual limit of 1,024 is soft. Where none is left nobody is answered, a probe no
    more than a client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    wanted = max(needed, _OPEN_FILES)
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft != resource.RLIM_INFINITY and soft < needed:
        log.warning(
            "this process may open fewer files than there may be connections; raise its limit (ulimit -n, LimitNOFILE), or "
            "allow fewer connections",
            extra={"event": "few_open_files", "limit": soft, "needed": needed},
        )


def url(settings: Server, listener: socket.socket) -> str:
    """Where people on this machine reach the node."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    if ":" in host and not host.startswith("["):
        host = f"[{host}]"
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: the node decides when to drain and when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield

    @property
    def busy(self) -> int:
        """Requests that are being answered."""
        return len(self.server_state.tasks)


def require_tls_files(settings: Server) -> None:
    """Raises ConfigurationError when certificate or key cannot be used: said before anything that takes long."""
    _loaded(lambda scope, receive, send: None, settings)


def http_server(application: Callable[..., Any], settings: Server) -> HttpServer:
    """The server for an ASGI application. Raises ConfigurationError when certificate or key cannot be used."""
    return HttpServer(_loaded(application, settings))


def uvicorn_config(
    application: Callable[..., Any], connection: type[asyncio.Protocol], keep_alive_s: int, **tls: Any
) -> uvicorn.Config:
    """What all our servers have alike; `tls`: uvicorn's settings of that."""
    return uvicorn.Config(
        application,
        loop="uvloop",
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=_LAST_WRITES_S,
        **tls,
    )


def _loaded(application: Callable[..., Any], settings: Server) -> uvicorn.Config:
    config = uvicorn_config(
        application,
        bounded_connection(settings.header_timeout_s, settings.write_timeout_s, settings.max_connections),
        _KEEP_ALIVE_S,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        ssl_ca_certs=settings.tls_client_ca,
        ssl_cert_reqs=ssl.CERT_REQUIRED if settings.tls_client_ca else ssl.CERT_NONE,
    )
    try:
        config.load()
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"TLS files cannot be used ({error.reason or error}): {settings.tls_cert} and {settings.tls_key} must be "
            "PEM files that belong together"
        ) from None
    except OSError as error:
        files = ", ".join(str(p) for p in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if p)
        raise ConfigurationError(f"cannot read a TLS file ({error.strerror}): check {files}") from None
    return config
