"""The text of /metrics: as Prometheus's own client writes it, and in pieces."""

from __future__ import annotations

import asyncio
import math
import time

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from edge.api.exposition import rendered
from tests.api.conftest import Serve
from tests.api.fake_engine import FakeEngine
from tests.api.test_metrics import STATS

_VALUES = st.one_of(
    st.floats(),
    st.integers(-(2**60), 2**60).map(float),
    st.sampled_from([0.0, 1e6, 999999.0, 1e16, 1e21, 1e-7, math.inf]),
)


class _Bare(Collector):
    """A family that is neither counter nor gauge, as DCGM's are."""

    def __init__(self, value: float) -> None:
        self._value = value

    def collect(self) -> list[Metric]:
        family = Metric("UNTYPED", "back\\slash\nand line", "unknown")
        family.add_sample("UNTYPED", {"z": "1", "a": "2"}, self._value)
        return [family]


@given(st.text(max_size=20), _VALUES)
def test_the_text_is_that_of_prometheus_own_client(label: str, value: float) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("vllm:some", 'A "text".', ["b", "a"], registry=registry)
    gauge.labels(label, "x").set(value)
    gauge.labels("second", label).set(-value)
    Gauge("plain", "Of an integer.", registry=registry).set(3)
    Counter("many", "Counted.", ["reason"], registry=registry).labels(label).inc(7)
    Histogram("taken_seconds", "Taken.", ["model"], registry=registry).labels(label).observe(0.3)
    Counter("empty", "Of no series.", ["reason"], registry=registry)
    registry.register(_Bare(value))
    assert "".join(map(rendered, registry.collect())) == generate_latest(registry).decode()


def test_a_nodes_own_page_is_that_of_prometheus_own_client(serve: Serve) -> None:
    metrics = serve(FakeEngine(stats=STATS)).front.metrics
    assert "".join(map(rendered, metrics.registry.collect())) == generate_latest(metrics.registry).decode()


def test_others_have_their_turn_while_a_long_page_is_made(serve: Serve) -> None:
    metrics = serve().front.metrics
    for number in range(300):
        metrics.tensors.labels(f"model-{number}").observe(1)
        Gauge(f"edge_more_{number}", "One of many.", registry=metrics.registry)
    turns: list[float] = []

    async def others() -> None:
        while True:
            turns.append(time.monotonic())
            await asyncio.sleep(0)

    async def both() -> bytes:
        beside = asyncio.create_task(others())
        page = await metrics.page()
        beside.cancel()
        return page

    page = asyncio.run(both()).decode()
    assert len(turns) > 2
    assert {f"edge_more_{number}" for number in range(300)} < {f.name for f in text_string_to_metric_families(page)}
