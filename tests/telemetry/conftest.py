"""A real broker, a real sink, and a node's outbox and uplink without the rest of the node."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.broker import Broker
from edge.telemetry.alarms import Alarms
from edge.telemetry.node import NodePresence
from edge.telemetry.outbox import Outbox, OutboxLimits
from edge.telemetry.records import Sample
from edge.telemetry.session import Answerer, UplinkConfig
from edge.telemetry.sink import Sink
from edge.telemetry.sinkfile import SinkFile
from edge.telemetry.stamp import Stamp
from edge.telemetry.uplink import Uplink
from tests.waiting import until

_S = 1_000_000_000
PREFIX = "edge/v1/default/n1/"


class HandClock:
    """A clock that stands until it is moved. Our own protocol's fake."""

    def __init__(self, wall_s: float = 1_800_000_000.0, mono_s: float = 1000.0, *, synced: bool = True) -> None:
        self.wall_s, self.mono_s, self.synced, self.kernel_boot = wall_s, mono_s, synced, "k1"

    def now(self) -> Stamp:
        return Stamp(int(self.wall_s * _S), int(self.mono_s * _S), self.kernel_boot, self.synced)

    def pass_s(self, seconds: float) -> None:
        self.wall_s += seconds
        self.mono_s += seconds


def small_sample(value: float = 1.0) -> Sample:
    from edge.telemetry.histogram import Histogram

    histogram = Histogram()
    histogram.observe(value)
    return Sample(
        1_700_000_000 * _S,
        {("edge_requests", (("route", "/v1"),)): value},
        {("edge_slots", ()): [value, value, value]},
        {("gen_ai.server.time_to_first_token", ()): histogram},
    )


class NodeSide:
    """An outbox and, once started, its uplink."""

    def __init__(self, directory: Path, clock: HandClock, cap_bytes: int = 8 << 20, spill_s: float = 3600.0) -> None:
        self.clock, self.alarms = clock, Alarms()
        self.directory = directory
        self.outbox = Outbox(directory, OutboxLimits(cap_bytes, 30 * 86_400, spill_s), clock, self.alarms)
        self.outbox.open()
        self.uplink: Uplink | None = None

    def connect(self, address: Any, *, ack: Any = "sink", answer: Answerer | None = None, **more: Any) -> Uplink:
        config = UplinkConfig(
            address,
            PREFIX,
            "n1",
            ack,
            more.pop("backlog_per_s", 1000.0),
            1.0,
            **{"silence_s": 60.0, "resend_s": 2.0, **more},
        )
        self.presence = NodePresence("n1", self.outbox.boot_id)
        self.uplink = Uplink(self.outbox, self.alarms, config, self.presence, answer)
        self.uplink.start()
        return self.uplink

    def codes(self) -> set[str]:
        return {alarm["code"] for alarm in self.alarms.active()}

    def stop(self) -> None:
        if self.uplink is not None:
            self.uplink.stop(10)
        self.outbox.close()


class SinkSide:
    """The reference sink in a thread."""

    def __init__(self, broker: Broker, path: Path, port: int | None = None) -> None:
        self.path = path
        self._stop = threading.Event()
        file = SinkFile(path)
        self.sink = Sink(broker.address("fleet", port=port, client_id="edge-sink"), "edge/v1/+/+/", file)
        self._thread = threading.Thread(target=self.sink.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def rows(self, query: str = "SELECT seq FROM records ORDER BY seq") -> list[tuple[Any, ...]]:
        db = sqlite3.connect(self.path)
        try:
            return db.execute(query).fetchall()
        finally:
            db.close()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    found = Broker(tmp_path_factory.mktemp("broker"))
    found.start()
    yield found
    found.kill()


@pytest.fixture
def node(tmp_path: Path, clock: HandClock) -> Iterator[NodeSide]:
    found = NodeSide(tmp_path / "outbox", clock)
    yield found
    found.stop()


@pytest.fixture
def sink(broker: Broker, tmp_path: Path) -> Iterator[SinkSide]:
    found = SinkSide(broker, tmp_path / "sink.db")
    until(found.sink.connected.is_set)
    yield found
    found.stop()
