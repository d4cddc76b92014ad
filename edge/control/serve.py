"""`edge fleet serve`: listeners, sink, registry and enforcer, from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edge import __version__
from edge.control import endings
from edge.control.admin import build_people_application
from edge.control.credentials import renew_credentials
from edge.control.database import migrated
from edge.control.enforcement import SINK, broker_config, reload_broker
from edge.control.est import build_nodes_application
from edge.control.files import close_directory, write_if_changed
from edge.control.fleet import Fleet
from edge.control.peer import (
    http_server,
    listen,
    nodes_context,
    people_context,
    refresh,
)
from edge.control.registry import Registry, TellingSinkFile
from edge.control.settings import FleetHome, FleetSettings, load_settings
from edge.control.x509 import now_utc
from edge.durable import locked
from edge.errors import ConfigurationError, EdgeError
from edge.handshakes import HandshakeLoop
from edge.listener import HttpServer, is_loopback, raise_file_limit
from edge.telemetry.mqtt import BrokerAddress, Message
from edge.telemetry.sink import Sink

log = logging.getLogger(__name__)

_TICK_S = 1.0
_HOUSEKEEPING_S = 3600.0
_CLOCK_SET_S = 60.0
"""A clock that moved so far was set: what was made before may not be good yet, or be over."""
_SINK_AGAIN_S, _SINK_WORKED_S = 5.0, 60.0
_KEEP_FREE_BYTES = 256 << 20
"""Of the disk, or a twentieth if that is less: telemetry fills the rest at most, so that revocations find room."""
_ADMIN_CONNECTIONS = 200


@dataclass(frozen=True, slots=True)
class Serving:
    """Where it is reached."""

    nodes: str
    people: str
    broker: str | None


def serve_fleet(home: FleetHome, started: Callable[[Serving], None]) -> None:
    """Until SIGTERM or Ctrl-C. Raises EdgeError with the cure when it cannot start."""
    settings = load_settings(home)
    _check(home, settings)
    close_directory(home.root)
    with locked(home.serving, f"the fleet in {home.root}"):
        listeners = [listen(settings.est.host, settings.est.port, "est")]
        try:
            listeners.append(listen(settings.admin.host, settings.admin.port, "admin"))
            raise_file_limit(settings.est.max_connections + _ADMIN_CONNECTIONS)
            server = FleetServer(home, settings, listeners)
            loop = partial(HandshakeLoop, settings.est.timeout_s, settings.est.max_connections)
            with asyncio.Runner(loop_factory=loop) as runner:
                runner.run(server.run(started))
        finally:
            for listener in listeners:
                listener.close()


def _check(home: FleetHome, settings: FleetSettings) -> None:
    admin = settings.admin
    if (admin.tls_cert is None) != (admin.tls_key is None):
        raise ConfigurationError("[admin] tls_cert and tls_key belong together: set both or none")
    if admin.tls_cert is None and not is_loopback(admin.host):
        raise ConfigurationError(
            f"[admin] host {admin.host} can be reached from elsewhere: set [admin] tls_cert and tls_key "
            f"(such as {home.tls / 'server.pem'} and server.key), or leave it at 127.0.0.1"
        )


class FleetServer:
    """One process. Construct it, then `run` it once."""

    def __init__(self, home: FleetHome, settings: FleetSettings, listeners: list[socket.socket]) -> None:
        """Raises ConfigurationError."""
        self._home, self._settings, self._listeners = home, settings, listeners
        self._database = migrated(home.database)
        self._fleet = Fleet(home, settings, self._database)
        renew_credentials(home, settings, self._fleet.authority, now_utc())
        self._fleet.enforcer.enforce()  # before anybody is let in, and before a broker looks for its lists
        write_if_changed(home.broker / "mosquitto.conf", broker_config(home.broker, settings.broker.port).encode())
        self._context = nodes_context(home.tls / "server.pem", home.tls / "server.key", home.tls / "ca.pem")
        self._people = self._people_context()
        self._registry = Registry(self._database)
        self._stop = threading.Event()
        self._sink_thread: threading.Thread | None = None
        self._sink_failure = self._keep_failure = ""
        self._sink_now: Sink | None = None
        self._endings_told = endings.Told()
        self._fleet.watched += [self._sink_problem, lambda: self._keep_failure, self._what_ends]
        self._nodes_server = http_server(
            build_nodes_application(self._fleet, __version__),
            self._context,
            timeout_s=settings.est.timeout_s,
            max_connections=settings.est.max_connections,
        )
        self._people_server = http_server(
            build_people_application(self._fleet, __version__),
            self._people,
            timeout_s=settings.est.timeout_s,
            max_connections=_ADMIN_CONNECTIONS,
        )

    def _people_context(self) -> ssl.SSLContext | None:
        admin, root = self._settings.admin, self._home.root
        if admin.tls_cert is None or admin.tls_key is None:
            return None
        return people_context(root / admin.tls_cert, root / admin.tls_key)

    async def run(self, started: Callable[[Serving], None]) -> None:
        """Until told to stop."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self._fleet.enforcer.start()
        self._registry.start()
        self._start_sink()
        servers = [self._nodes_server, self._people_server]
        tasks = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, self._listeners, strict=True)
        ]
        while not all(server.started for server in servers) and not any(task.done() for task in tasks):
            await asyncio.sleep(0.01)
        started(self._serving())
        self._endings_told.warn(self._fleet.authority, now_utc())
        keeper = asyncio.create_task(self._keep())
        await stop.wait()
        keeper.cancel()
        await self._end(servers, tasks)

    async def _end(self, servers: list[HttpServer], tasks: list[asyncio.Task[None]]) -> None:
        log.info("stopping", extra={"event": "stopping"})
        for server in servers:
            server.should_exit = True
        self._stop.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._end_threads)
        self._database.close()

    def _end_threads(self) -> None:
        if self._sink_thread is not None:
            self._sink_thread.join(15)
        self._registry.stop()
        self._fleet.enforcer.stop()

    def _serving(self) -> Serving:
        admin = self._settings.admin
        ports = [listener.getsockname()[1] for listener in self._listeners]
        host = admin.host if admin.host not in ("0.0.0.0", "::") else self._settings.hosts[0]
        name = self._settings.hosts[0]
        scheme = "https" if admin.tls_cert is not None else "http"
        return Serving(
            f"https://{_bracketed(name)}:{ports[0]}",
            f"{scheme}://{_bracketed(host)}:{ports[1]}",
            self._settings.broker.url,
        )

    # --- the sink -----------------------------------------------------------------------------------------------------

    def _start_sink(self) -> None:
        broker = self._settings.broker
        url = broker.sink_url or broker.url
        if url is None:
            return
        tls = self._home.tls
        address = BrokerAddress(
            url, SINK, ca_file=tls / "ca.pem", cert_file=tls / f"{SINK}.pem", key_file=tls / f"{SINK}.key"
        )
        self._sink_thread = threading.Thread(target=self._sink, args=(address,), name="sink", daemon=True)
        self._sink_thread.start()

    def _sink(self, address: BrokerAddress) -> None:
        """What was not stored comes again, so a database that fails (a full disk) is tried again."""
        said, keep_s = "", self._settings.telemetry.keep_days * 86_400
        keep_free_bytes = min(_KEEP_FREE_BYTES, shutil.disk_usage(self._home.root).total // 20)
        while not self._stop.is_set():
            begun_s = time.monotonic()
            try:
                file = TellingSinkFile(self._home.telemetry, self._told, keep_s, keep_free_bytes)
                with contextlib.closing(file):
                    self._sink_now = Sink(address, "edge/v1/+/+/", file)
                    self._sink_now.run(self._stop)
            except (sqlite3.Error, EdgeError) as error:
                if str(error) != said or time.monotonic() - begun_s > _SINK_WORKED_S:
                    log.error("the sink's database fails", extra={"event": "sink_failed", "reason": str(error)})
                said = str(error)
                self._sink_failure = f"telemetry is not stored: {said}"
                self._stop.wait(_SINK_AGAIN_S)
            except Exception as error:  # a thread that ends here would leave the fleet without telemetry
                log.error("the sink failed", extra={"event": "bug"}, exc_info=error)
                self._stop.wait(_SINK_AGAIN_S)

    def _told(self, batch: list[Message]) -> None:
        self._sink_failure = ""
        self._registry.tell(batch)

    def _sink_problem(self) -> str:
        if self._sink_thread is None or self._sink_failure:
            return self._sink_failure
        if self._sink_now is not None and self._sink_now.connected.is_set():
            return ""
        return "telemetry stands still, and what is shown of nodes is old: there is no connection to the broker; the log says why"

    # --- what ends, and what others change ---------------------------------------------------------------------------

    def _what_ends(self) -> str:
        return endings.problem(self._fleet.authority, now_utc())

    async def _keep(self) -> None:
        """Look whether the authority was changed by a command, and whether certificates are to be renewed."""
        since_s, seen, said, clock_s = 0.0, self._stamp(), "", _clock_s()
        while True:
            await asyncio.sleep(_TICK_S)
            since_s, now = since_s + _TICK_S, self._stamp()
            was_set = abs(_clock_s() - clock_s) > _CLOCK_SET_S
            if now == seen and since_s < _HOUSEKEEPING_S and not was_set:
                continue
            problem = await asyncio.to_thread(self._refreshed)
            if not problem:
                since_s, seen, clock_s = 0.0, now, _clock_s()
            elif problem != said:
                log.error("certificates cannot be renewed", extra={"event": "fleet_credentials", "reason": problem})
            said = problem
            self._keep_failure = f"certificates cannot be renewed: {problem}" if problem else ""

    def _refreshed(self) -> str:
        """Why not, or nothing. It is tried again."""
        self._endings_told.warn(self._fleet.authority, now_utc())
        try:
            self._refresh()
        except EdgeError as error:
            return error.message
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def _stamp(self) -> tuple[int, ...]:
        watched = [self._home.ca / "state.json", self._home.tls / "server.pem", *self._admin_files()]
        return tuple(map(_changed_ns, watched))

    def _admin_files(self) -> list[Path]:
        admin, root = self._settings.admin, self._home.root
        return [root / path for path in (admin.tls_cert, admin.tls_key) if path is not None]

    def _refresh(self) -> None:
        home = self._home
        if self._fleet.reload_authority():
            log.info("the authority has changed", extra={"event": "fleet_authority"})
        renewed = renew_credentials(home, self._settings, self._fleet.authority, now_utc())
        refresh(self._context, home.tls / "server.pem", home.tls / "server.key", home.tls / "ca.pem")
        if self._people is not None:
            cert, key = self._admin_files()
            refresh(self._people, cert, key)
        if renewed.names:
            log.info("certificates made", extra={"event": "fleet_certificates", "names": ", ".join(renewed.names)})
        if renewed.broker and (problem := reload_broker(home, self._settings)):
            log.error(
                "the broker has not read its certificates", extra={"event": "broker_reload_failed", "reason": problem}
            )
        self._fleet.enforcer.ask()


def _clock_s() -> float:
    """Moves when the clock is set, and hardly else."""
    return time.time() - time.monotonic()


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
