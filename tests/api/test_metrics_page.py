"""The text of /metrics: as Prometheus's own client writes it, and in pieces."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import Serve
from tests.api.fake_engine import FakeEngine
from tests.api.test_metrics import STATS


def test_a_page_in_pieces_is_the_page_of_prometheus_own_client(serve: Serve) -> None:
    metrics = serve(FakeEngine(stats=STATS)).front.metrics
    whole = generate_latest(metrics.registry)
    assert len(whole) > 5000 and asyncio.run(metrics.page()).startswith(whole)


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
