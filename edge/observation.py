"""What looks at a node and its hardware and tells others: the probes, and the sender to a collector. Owned by the node."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from edge import __version__
from edge.api import Front
from edge.engine.client import EngineClient
from edge.errors import ConfigurationError
from edge.memory.gpu import is_jetson
from edge.probes.host import Roots
from edge.probes.sample import Probes
from edge.probes.throttle import Change
from edge.residency import Pool
from edge.settings import Metrics, Otlp, Settings
from edge.telemetry.node import node_name

if TYPE_CHECKING:
    from edge.otlp.exporter import OtlpSender

log = logging.getLogger(__name__)

_COLLECT_S = 5.0
T = TypeVar("T")


def dcgm_names(settings: Metrics) -> bool:
    """Whether /metrics has GPU figures under DCGM's names too."""
    return settings.dcgm_names == "on" or (settings.dcgm_names == "auto" and is_jetson())


class Observation:
    """Construct it before the front, `attach` the front, then `start` and `stop` it on the event loop."""

    def __init__(self, settings: Settings, home: Path, pool: Pool) -> None:
        every_s = settings.metrics.interval_s
        self.probes = Probes(Roots(home=home), every_s, self._on_throttle) if every_s else None
        self._otlp, self._home, self._pool = settings.otlp, home, pool
        self._name = node_name(settings.mqtt)
        self._sender: OtlpSender | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, front: Front) -> None:
        """From now on the front's times and traces go to the collector, if there is one. Raises ConfigurationError."""
        if self._otlp.endpoint:
            self._sender = sender = self._sender_for(self._otlp, front)
            front.metrics.listen(sender.latencies)
            if sender.traces is not None:
                front.tracing = sender.traces

    async def start(self) -> None:
        """Begin to look."""
        self._loop = asyncio.get_running_loop()
        if self.probes is not None:
            self.probes.start()

    async def stop(self) -> None:
        """Look no longer, and send what is left."""
        if self.probes is not None:
            await asyncio.to_thread(self.probes.stop)
        if self._sender is not None:
            await asyncio.to_thread(self._sender.stop)

    def _sender_for(self, settings: Otlp, front: Front) -> OtlpSender:
        try:
            from edge.otlp.exporter import OtlpSender, Source
        except ImportError:
            raise ConfigurationError(
                "otlp.endpoint is set, and the OpenTelemetry SDK is not installed: pip install 'edge-node[otlp]', or "
                "leave otlp.endpoint empty"
            ) from None

        source = Source(self._name, __version__)
        return OtlpSender(settings, self._home, source, front.metrics.told, self._on_loop)

    def _on_loop(self, work: Callable[[], T]) -> T:
        """Have the loop do something, from a thread of the sender's: the node's figures change there."""

        async def done() -> T:
            return work()

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(done(), self._loop).result(_COLLECT_S)

    def _on_throttle(self, change: Change) -> None:
        """On the probes' thread: the machine is slowed down, or runs freely again."""
        if change.begins:
            log.warning("machine is slowed down", extra={"event": "throttle", "signs": ", ".join(change.signs)})
        else:
            log.info("machine runs freely again", extra={"event": "throttle_over"})
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._clocks_changed)

    def _clocks_changed(self) -> None:
        for model in self._pool.roster:
            engine = self._pool.roster.engine(model.spec.name)
            if isinstance(engine, EngineClient):
                engine.clocks_changed()
