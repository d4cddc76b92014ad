"""What is sent of counters that others kept before the node began: what came since, so that no start counts the past again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from opentelemetry.sdk.metrics.export import Sum
from prometheus_client import CollectorRegistry, Counter

from edge.api.hardware import HardwareFamilies
from edge.api.told import Told
from edge.otlp.metrics import converted
from edge.probes.host import Roots
from edge.probes.sample import Probes
from edge.telemetry.collector import Latencies, sample
from edge.telemetry.records import Envelope, Record, payload
from edge.telemetry.stamp import Stamp
from tests.probes.boards import ORIN, PLAIN, PRESSURE, STAT, plant, rewrite

BUSY = ("edge_host_cpu_seconds", (("mode", "user"),))
STALLED = ("edge_host_pressure_seconds", (("kind", "some"), ("resource", "cpu")))


@pytest.fixture
def probes(tmp_path: Path) -> Iterator[Probes]:
    plant(tmp_path, PLAIN)
    found = Probes(Roots(tmp_path / "proc", tmp_path / "sys", tmp_path), 0.02, lambda change: None)
    found.start()
    _until(lambda: found.now() is not None)
    yield found
    found.stop()


def _until(done: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + 60
    while not done():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


def _told(probes: Probes) -> tuple[CollectorRegistry, Told]:
    registry, hardware = CollectorRegistry(), HardwareFamilies(probes)
    registry.register(hardware)
    return registry, Told(registry, hardware)


def _read(probes: Probes) -> None:
    """Wait for a round that began after this call."""
    for _ in range(2):
        before = probes.now()
        _until(lambda: probes.now() not in (None, before))  # noqa: B023


def test_a_counter_that_is_older_than_the_node_is_told_from_its_first_reading_on(
    probes: Probes, tmp_path: Path
) -> None:
    rewrite(tmp_path / "proc/stat", STAT.replace("cpu  2000", "cpu  2300"))
    rewrite(tmp_path / "proc/pressure/cpu", PRESSURE.replace("total=2500000", "total=2750000"))
    _read(probes)
    registry, told = _told(probes)
    counters = sample(told, Latencies(), 0).counters
    assert counters[BUSY] == pytest.approx(3.0) and counters[STALLED] == pytest.approx(0.25)
    assert not [key for key in counters if key[0] == BUSY[0] and key != BUSY], "the other modes did not go on"
    assert registry.get_sample_value("edge_host_cpu_seconds_total", {"mode": "user"}) == 23.0


def test_a_reading_that_falls_takes_nothing_away_and_counts_nothing_twice(probes: Probes, tmp_path: Path) -> None:
    _, told = _told(probes)
    for ticks, seconds in ((2500, 5.0), (100, 5.0), (400, 8.0)):
        rewrite(tmp_path / "proc/stat", STAT.replace("cpu  2000", f"cpu  {ticks}"))
        _read(probes)
        assert sample(told, Latencies(), 0).counters[BUSY] == pytest.approx(seconds)


def test_no_sum_on_the_wire_is_larger_than_the_time_since_its_start_allows(probes: Probes, tmp_path: Path) -> None:
    rewrite(tmp_path / "proc/stat", STAT.replace("cpu  2000", "cpu  2100"))
    _read(probes)
    _, told = _told(probes)
    began_ns = 1_000 * 10**9
    record = Record(
        "b", 1, "metrics", Stamp(began_ns + 10**9, 10**9, "k", True), sample(told, Latencies(), began_ns).packed()
    )
    metrics = orjson.loads(payload(record, Envelope("n", 1, False)))["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    (point,) = next(m for m in metrics if m["name"] == BUSY[0])["sum"]["dataPoints"]
    assert (point["asDouble"], point["startTimeUnixNano"]) == (pytest.approx(1.0), str(began_ns))
    sums = {m.name: m.data for m in converted(told.collect(), began_ns, began_ns + 10**9) if isinstance(m.data, Sum)}
    assert {p.attributes["mode"]: p.value for p in sums[BUSY[0]].data_points if p.value} == {"user": pytest.approx(1.0)}  # type: ignore[index]


def test_a_device_that_comes_later_is_told_from_then_on(tmp_path: Path, probes: Probes) -> None:
    _, told = _told(probes)
    sample(told, Latencies(), 0)
    plant(tmp_path, ORIN)
    _read(probes)
    alarms = [key for key in sample(told, Latencies(), 0).counters if key[0] == "edge_board_over_current"]
    assert not alarms


def test_the_nodes_own_counters_are_told_as_they_are(probes: Probes) -> None:
    registry, told = _told(probes)
    Counter("edge_requests", "x", registry=registry).inc(3)
    assert sample(told, Latencies(), 0).counters[("edge_requests", ())] == 3.0
