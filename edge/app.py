"""The composition root: builds the pool of models, front and listener, wires them, runs them, and stops them in good order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from edge import __version__
from edge.api import DrainState, Front, FrontConfig, KeyStore, build_application
from edge.api.hosts import HostNames
from edge.directed import Directed
from edge.effective import Effective
from edge.engine.client import EngineClient
from edge.enrolled import Standing, begun, keeper_of, standing_of, telemetry_of
from edge.errors import ConfigurationError
from edge.fitting import Fitter, wishes_of
from edge.handshakes import HandshakeLoop
from edge.identity.keeper import Keeper
from edge.identity.owner import other_owner
from edge.listener import bind, http_server, is_here, keep_looking_for, raise_file_limit, require_tls_files
from edge.loading import SettingsPlanner, engine_limits, pinned_prompts, specs
from edge.logs import start_logging
from edge.machine import resident_bytes
from edge.messages import ModelFacts
from edge.observation import Observation, dcgm_names
from edge.onnx.client import TensorClient
from edge.onnx.messages import LoadTensors
from edge.prerequisites import build_fleet, mode_of, require_keys, require_startable
from edge.quiet import settle_collector, yield_soon
from edge.registry.resolve import Registry, ResolvedModel, model_directories
from edge.residency import Fitted, Pool, PoolLimits
from edge.sole import sole_node
from edge.systemd import Notifier
from edge.telemetry.node import Telemetry
from edge.tlsfiles import TlsFiles
from edge.watch import Watch, patient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """What a node is once its model answers. Sizes in bytes."""

    home: Path
    model: ResolvedModel
    model_name: str
    facts: ModelFacts
    url: str
    is_here: bool
    """The machine has that address now."""
    everywhere: bool
    """It listens on all addresses of the machine; `url` is one of them."""
    keys_required: bool
    engine_bytes: int
    front_bytes: int
    ttft_slo_ms: float
    itl_slo_ms: float
    promises: bool
    fleet: tuple[str, ...]
    """Names of the upstreams that may be asked."""
    further: tuple[str, ...]
    """Names of the other models that it serves."""


class StartObserver(Protocol):
    """Who wants to see the node start."""

    def checking(self, path: Path, done_bytes: int) -> None:
        """A checksum is being computed for the first time; so much was read so far."""
        ...

    def loading(self, stage: str, fraction: float) -> None:
        """Loading goes on: `fraction` 0..1 of `stage`."""
        ...

    def ready(self, started: Started) -> None:
        """The model answers."""
        ...


def serve(effective: Effective, observer: StartObserver) -> None:
    """Run a node until it is told to stop. Raises EdgeError with the cure when it cannot start."""
    settings = effective.settings
    yield_soon()
    os.environ.setdefault(
        "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
    )  # devices have the numbers that the management library gives them
    start_logging(settings.log.level, settings.log.format)
    connections = raise_file_limit(settings.server.max_connections)
    require_tls_files(settings.server)
    if (owner := other_owner(effective.home)) is not None:
        log.warning(
            "root runs this node on the home of another user, whose own node cannot use what is written there now; run it as "
            "that user, and give him what lies there already (chown -R)",
            extra={"event": "home_of_another", "home": str(effective.home), "uid": owner.uid},
        )
    with sole_node(effective.home):
        standing = begun(effective, os.environ)
        _serve(replace(standing, effective=standing.effective.with_connections(connections)), observer)


def _serve(standing: Standing, observer: StartObserver) -> None:
    effective, settings = standing.effective, standing.effective.settings
    # Before what takes long, so that an enrollment while a large file is checked is noticed.
    keeper = keeper_of(settings, effective.home, standing.damage)
    notifier = Notifier(os.environ, os.getpid())
    listener = bind(settings.server)  # before anything that takes long: a busy port is noticed at once
    registry = Registry(model_directories(effective.home), effective.home / "verified.json")
    model = registry.resolve(settings.model.name, patient(notifier, observer.checking))
    node = Node(effective, model, registry, listener, observer, notifier, keeper, telemetry_of(standing, keeper))
    loop = partial(HandshakeLoop, settings.server.header_timeout_s, settings.server.max_connections)
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(node.run())
    if node.begin_again:
        listener.close()
        # Port and lock are let go of by that: the node that begins takes them as any other does.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


class Node:
    """One process's models, front and listener, from start to drained stop. Construct it, then `run` it once."""

    def __init__(
        self,
        effective: Effective,
        model: ResolvedModel,
        registry: Registry,
        listener: socket.socket,
        observer: StartObserver,
        notifier: Notifier,
        keeper: Keeper,
        telemetry: Telemetry | None,
    ) -> None:
        self._effective, settings = effective, effective.settings
        self._home, self._settings, self._model = effective.home, settings, model
        self._further = tuple(settings.models)
        self._listener, self._observer = listener, observer
        self._model_name = settings.model.alias or model.name
        self._keys = KeyStore(effective.keys_file)
        self._keys_required = require_keys(settings, self._keys)
        self._pool = self._pool_of_models(registry, Fitter(settings))
        self._fleet = build_fleet(settings, effective.home)
        self._mode = mode_of(settings, has_fleet=self._fleet is not None)
        self._drain = DrainState()
        self._observation = Observation(settings, self._home, self._pool)
        self._keeper = keeper
        self._telemetry = telemetry
        front = self._front()
        self._observation.attach(front)
        if self._telemetry is not None:
            front.metrics.listen(self._telemetry.latencies)
        self._server = http_server(build_application(front, __version__), settings.server)
        self._tls = self._tls_files()
        if self._tls is not None:
            front.metrics.registry.register(self._tls)
        self._stop, self._stop_now = asyncio.Event(), asyncio.Event()
        self._told_to_end = False
        self._watch = Watch(notifier, self._pool, settings, self._stop, self._model_name)
        self.begin_again = False
        """The fleet asked for a start with the settings as they are by then."""
        self._directed = (
            Directed(self._telemetry, front, self._reload, self._require_startable) if self._telemetry else None
        )
        self._keeper.on_settings = self._take_up_enrollment

    def _pool_of_models(self, registry: Registry, fitter: Fitter) -> Pool:
        settings, limits = self._settings, engine_limits(self._settings.engine)
        pinned_prompts(settings, self._home)  # what is wrong with the settings is said before anything starts

        def start(fitted: Fitted, restarts: bool) -> EngineClient | TensorClient:
            if isinstance(fitted.load, LoadTensors):
                return TensorClient(fitted.load, limits, restarts=restarts)
            return EngineClient(fitted.load, limits, smaller=fitted.smaller, restarts=restarts)

        own = fitter.fit(self._model.header, wishes_of(settings))  # and that it does not fit, in its own words
        trained, context = self._model.header.context_tokens, own.plan.layout.context_tokens
        if 0 < trained < context:
            log.warning(
                "requests may be longer than what the model was trained to; answers get worse there",
                extra={"event": "context_beyond_training", "context_tokens": context, "trained_tokens": trained},
            )
        room = PoolLimits(own.budget.bytes, limits.max_waiting, limits.restart_backoff_max_s)
        models = specs(settings, self._model_name)
        planner = SettingsPlanner(settings, self._home, registry, fitter, models[1:])
        return Pool(models, planner, start, room)

    def _front(self) -> Front:
        server = self._settings.server
        config = FrontConfig(
            keys_required=self._keys_required,
            hosts=HostNames(server.host, server.allowed_hosts),
            max_body_bytes=server.max_body_bytes,
            body_timeout_s=server.body_timeout_s,
            ttft_slo_s=self._settings.slo.ttft_ms / 1000,
            itl_slo_s=self._settings.slo.itl_ms / 1000,
            mode=self._mode,
            offline=self._settings.admission.offline,
            max_wait_s=self._settings.admission.max_wait_s,
            load_wait_s=self._settings.admission.load_wait_s,
            dcgm_names=dcgm_names(self._settings.metrics),
        )
        return Front(
            self._pool,
            config,
            self._keys,
            self._drain,
            self._fleet,
            probes=self._observation.probes,
            telemetry=self._telemetry,
            identity=self._keeper,
        )

    def _tls_files(self) -> TlsFiles | None:
        server, context = self._settings.server, self._server.config.ssl
        if context is None or server.tls_cert is None or server.tls_key is None:
            return None
        return TlsFiles(context, server.tls_cert, server.tls_key, server.tls_client_ca)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain. Raises ModelUnusable or DoesNotFit if the main model cannot be loaded."""
        self._catch_signals()
        await self._observation.start()
        if self._directed is not None:
            await self._directed.start()
        await self._keeper.start()
        await self._pool.start()
        if self._fleet is not None:
            await self._fleet.start()
        serving = asyncio.create_task(self._server.serve(sockets=[self._listener]), name="http-server")
        serving.add_done_callback(lambda _: self._stop.set())  # it ends by itself only when it fails
        looking = [asyncio.create_task(keep_looking_for(self._listener), name="address")]
        if self._tls is not None:
            looking.append(asyncio.create_task(self._tls.keep_looking(), name="tls-files"))
        try:
            if await self._watch.loaded(self._observer.loading):
                settle_collector()
                self._observer.ready(self._started())
                self._watch.ready()
                others = asyncio.create_task(self._pool.look_at_others(), name="further-models")
                await self._watch.serving()
                others.cancel()
            await self._finish_requests()
        finally:
            for task in looking:
                task.cancel()
            await self._end(serving)

    async def _end(self, serving: asyncio.Task[None]) -> None:
        """Engines may take minutes to save what they keep (`cache.kept_mib`), and whoever stops this process may not wait so
        long: all else ends meanwhile, so that telemetry is told and on disk by then."""
        alive = asyncio.create_task(self._watch.stay_alive(), name="alive")
        engines = asyncio.create_task(self._pool.stop(), name="end-engines")
        hurry = asyncio.create_task(self._end_at_once_if_told(), name="hurry")
        try:
            self._server.should_exit = True
            await serving
            if self._fleet is not None:
                await self._fleet.stop()
            await self._keeper.stop()
            if self._directed is not None:
                await self._directed.stop()
            await self._observation.stop()  # last: a collector may hang, and what the outbox holds is on disk by now
        finally:
            await engines
            hurry.cancel()
            alive.cancel()

    async def _end_at_once_if_told(self) -> None:
        await self._stop_now.wait()
        self._pool.kill()

    def _require_startable(self) -> None:
        """Raises ConfigurationError if the settings as they are now would not start a node."""
        require_startable(standing_of(self._effective.anew(os.environ), os.environ).effective)

    def _reload(self) -> None:
        """End in good order, and begin again with the settings as they are then; not where a signal has asked for the end."""
        self.begin_again = not self._told_to_end
        self._stop.set()

    def _take_up_enrollment(self) -> str:
        """The fleet, or who enrolled or reset this node, wants other settings: begin anew with them, if that can be. Returns why
        it cannot."""
        try:
            self._require_startable()
        except ConfigurationError as error:
            return error.message
        log.info("the enrollment has changed: starting anew", extra={"event": "enrollment_changed"})
        self._reload()
        return ""

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is signal.SIG_DFL:  # nohup(1) wants it ignored
                loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        """The first asks for a drained stop, the second for a stop at once, unless it is SIGHUP: of a terminal that is closed
        both the kernel and the shell tell. Who sends one does not want the node to begin anew, whatever the fleet has asked."""
        again, self._told_to_end = self._told_to_end and number != signal.SIGHUP, True
        if self.begin_again:
            self.begin_again = False
            self._watch.draining(begin_again=False)
        log.info("stopping" if not again else "stopping at once", extra={"event": "stopping", "signal": number.name})
        self._stop.set()
        if again:
            self._stop_now.set()
            self._server.force_exit = True

    async def _finish_requests(self) -> None:
        """Take no new work, and let what runs finish, for `server.drain_timeout_s` at most."""
        self._watch.draining(begin_again=self.begin_again)
        self._drain.begin()
        if self._telemetry is not None:
            self._telemetry.presence.change(draining=True)
        deadline_s = time.monotonic() + self._settings.server.drain_timeout_s
        while self._server.busy and time.monotonic() < deadline_s and not self._stop_now.is_set():
            await self._watch.still_draining()
        if self._server.busy:
            log.warning("requests given up", extra={"event": "drain_incomplete", "requests": self._server.busy})
        self._watch.ending()

    def _started(self) -> Started:
        engine = self._pool.roster.main_engine
        assert engine is not None and engine.facts is not None
        facts, pid = engine.facts, engine.status.pid
        return Started(
            home=self._home,
            model=self._model,
            model_name=self._model_name,
            facts=facts,
            url=self._settings.server.url(self._listener.getsockname()[1]),
            is_here=is_here(self._listener),
            everywhere=self._settings.server.everywhere,
            keys_required=self._keys_required,
            engine_bytes=resident_bytes(pid) if pid is not None else 0,
            front_bytes=resident_bytes(os.getpid()),
            ttft_slo_ms=self._settings.slo.ttft_ms,
            itl_slo_ms=self._settings.slo.itl_ms,
            promises=self._settings.admission.mode != "off",
            fleet=tuple(state.name for state in self._fleet.states()) if self._mode == "fleet" and self._fleet else (),
            further=self._further,
        )
