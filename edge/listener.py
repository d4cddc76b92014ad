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
from edge.errors import ConfigurationError, EdgeError, NotYet
from edge.settings import Server

log = logging.getLogger(__name__)

_BACKLOG = 1024
_OPEN_FILES = 65_536
_OTHER_FILES = 256
"""Descriptors for all that is no client: models, the outbox, upstreams, handshakes under way, connections above the limit."""
_KEEP_ALIVE_S = 75
_LAST_WRITES_S = 2
_LOOK_S = 5.0
_FREEBIND = {socket.AF_INET: (socket.SOL_IP, 15), socket.AF_INET6: (socket.IPPROTO_IPV6, 78)}
"""ip(7), IP_FREEBIND and IPV6_FREEBIND: an address may be taken before the machine has it. Python has no names for them."""


class PortBusy(EdgeError):
    """Another process listens on the address already."""

    code = "port_busy"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name counts by all the addresses it stands for."""
    if _address(host) is not None:
        return is_loopback_address(host)
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]).is_loopback for entry in found)


def is_loopback_address(host: str) -> bool:
    """The same without looking a name up, which may take long: a name is none."""
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def bind(settings: Server) -> socket.socket:
    """Take the address. One that is written as such may be none of this machine's yet: a box comes back from a power cut before
    the server that gives it its address does. `say_if_absent` tells of it. Raises PortBusy, NotYet or ConfigurationError with
    the cure."""
    host, port = settings.host, settings.port
    failure: OSError | None = None
    for family, kind, protocol, _, address in _looked_up(host, port):
        listener: socket.socket | None = None
        try:
            listener = socket.socket(family, kind, protocol)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _take(listener, address, absent=_address(host) is not None)
            listener.listen(_BACKLOG)
        except OSError as error:
            if listener is not None:
                listener.close()
            failure = failure or error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                break
        else:
            listener.setblocking(False)
            return listener
    assert failure is not None
    raise _bind_failure(failure, host, port)


def _looked_up(host: str, port: int) -> list[Any]:
    """What the host stands for, the best first."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        if (
            isinstance(error, UnicodeError) or ":" in host or host.rpartition(".")[2].isdigit()
        ):  # that is no name either
            raise ConfigurationError(
                f"server.host {host!r} is no address of this machine; use 127.0.0.1 or 0.0.0.0"
            ) from None
        raise NotYet(
            f"server.host {host!r} is no address, and no name that can be looked up now ({error.strerror}): correct it, or see "
            "that this machine's name server answers; 0.0.0.0 needs none"
        ) from None


def _take(listener: socket.socket, address: Any, *, absent: bool) -> None:
    try:
        listener.bind(address)
    except OSError as error:
        if not absent or error.errno != errno.EADDRNOTAVAIL:
            raise
        listener.setsockopt(*_FREEBIND[listener.family], 1)
        listener.bind(address)


def _bind_failure(error: OSError, host: str, port: int) -> EdgeError:
    if error.errno == errno.EADDRINUSE:
        return PortBusy(
            f"port {port} on {host} is in use already; stop what listens there or choose another with --port"
        )
    if error.errno == errno.EACCES:
        return ConfigurationError(f"port {port} is for root only; choose one from 1024 on, such as --port 8080")
    if error.errno == errno.EADDRNOTAVAIL:
        return NotYet(
            f"server.host {host!r} stands for no address that this machine has now; use 127.0.0.1, 0.0.0.0 or the address "
            "itself, which may come later"
        )
    if error.errno == errno.EAFNOSUPPORT:
        return ConfigurationError(
            f"server.host {host!r} needs IPv6, which this machine's kernel has not; use an IPv4 address such as 0.0.0.0"
        )
    return ConfigurationError(f"cannot listen on {host} port {port}: {error.strerror}")


def say_if_absent(listener: socket.socket) -> bool:
    """Nobody reaches a listener whose address the machine has not: a mistake, or not yet. Returns whether it is so."""
    if is_here(listener):
        return False
    log.warning(
        "no address of this machine: nobody gets here until it is one; if it never will be, correct the setting",
        extra={"event": "address_absent", "address": listener.getsockname()[0]},
    )
    return True


async def keep_looking_for(listener: socket.socket, every_s: float = _LOOK_S) -> None:
    """If the machine has not the listener's address, say so, and say when it has."""
    if not say_if_absent(listener):
        return
    while not is_here(listener):
        await asyncio.sleep(every_s)
    log.info("the address is there", extra={"event": "address_here", "address": listener.getsockname()[0]})


def is_here(listener: socket.socket) -> bool:
    """Whether the machine has the listener's address now."""
    host, _, *scope = listener.getsockname()
    with socket.socket(listener.family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0, *scope))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def raise_file_limit(connections: int) -> int:
    """Each connection takes a descriptor, and the usual limit of 1,024 is soft. Where none is left nobody is answered, a probe no
    more than a client: so no more connections than the limit leaves room for. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + _OTHER_FILES
    wanted = max(needed, _OPEN_FILES)
    if hard != resource.RLIM_INFINITY:
        wanted = min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    fewer = max(soft - _OTHER_FILES, soft // 2)
    log.warning(
        "this process may open few files, so it takes fewer connections; raise its limit (ulimit -n, LimitNOFILE)",
        extra={"event": "few_open_files", "limit": soft, "needed": needed, "connections": fewer},
    )
    return fewer


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
        raise NotYet(  # certificate and key are two files, and whoever renews them may have come to one
            f"TLS files cannot be used ({error.reason or error}): {settings.tls_cert} and {settings.tls_key} must be "
            "PEM files that belong together"
        ) from None
    except OSError as error:
        files = ", ".join(str(p) for p in (settings.tls_cert, settings.tls_key, settings.tls_client_ca) if p)
        raise NotYet(f"cannot read a TLS file ({error.strerror}): check {files}") from None
    return config
