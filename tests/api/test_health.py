"""What probes hear while the engine, the fleet, or both are away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from edge.engine.port import EngineStatus
from edge.errors import EngineDown
from tests.api.conftest import Node, Serve
from tests.api.test_dispatch import configured
from tests.fleet.upstream import Upstream, running, wait_until

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
DOWN = EngineStatus("down", "killed by signal 9", 0.0, 1, None)
READY = EngineStatus("ready", "", 1.0, 1, None)


@pytest.fixture
def fleet() -> Iterator[Upstream]:
    with running(Upstream()) as upstream:
        yield upstream


def asked(node: Node, path: str = "/health/ready") -> tuple[int, dict[str, Any]]:
    with node.http() as client:
        answer = client.get(path)
        return answer.status_code, answer.json()


def break_engine(node: Node) -> None:
    node.engine.status, node.engine.refusal = DOWN, EngineDown("down")


@pytest.mark.parametrize("path", ["/health", "/healthz", "/health/ready", "/v2/health/ready"])
def test_a_node_stays_ready_while_the_fleet_answers_for_its_engine(serve: Serve, fleet: Upstream, path: str) -> None:
    node = serve(upstreams=[configured(fleet)], mode="fleet")
    assert asked(node)[1]["by"] == "node"
    break_engine(node)
    status, said = asked(node, path)
    assert status == 200
    if not path.startswith("/v2"):
        assert said == {
            "status": "ok",
            "by": "fleet",
            "model": "fake",
            "code": "engine_down",
            "reason": "down: killed by signal 9",
        }
    with node.http() as client:
        assert client.post("/v1/chat/completions", json=CHAT).headers["x-edge-route"] == "fleet"
    assert asked(node, "/edge/v1/load")[1]["ready"] is False, "that is of the node's own model"
    node.engine.status, node.engine.refusal = READY, None
    assert asked(node)[1]["by"] == "node"


def test_it_is_not_ready_when_the_fleet_is_away_too_and_again_when_that_is_back(serve: Serve, fleet: Upstream) -> None:
    node = serve(upstreams=[configured(fleet)], mode="fleet")
    break_engine(node)
    fleet.mood, fleet.sick = "dead", True
    with node.http() as client:

        def is_away() -> bool:  # a few requests have to fail for it, if the first probe was answered
            assert client.post("/v1/chat/completions", json=CHAT).headers["x-edge-reason"] == "engine_down"
            return client.get("/health/ready").status_code == 503

        wait_until(is_away)
        assert asked(node)[1]["code"] == "engine_down"
        fleet.mood, fleet.sick = "well", False
        # On trial: without this nobody would send the request that closes the breaker.
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        assert client.post("/v1/chat/completions", json=CHAT).headers["x-edge-route"] == "fleet"


@pytest.mark.parametrize("mode", ["best-effort", "strict", "off"])
def test_a_mode_that_asks_no_fleet_is_not_ready_by_it(serve: Serve, fleet: Upstream, mode: str) -> None:
    node = serve(upstreams=[configured(fleet)], mode=mode)
    break_engine(node)
    assert asked(node)[0] == asked(node, "/v2/health/ready")[0] == 503


def test_a_draining_node_is_not_ready_by_the_fleet(serve: Serve, fleet: Upstream) -> None:
    node = serve(upstreams=[configured(fleet)], mode="fleet")
    break_engine(node)
    node.front.drain.begin()
    assert asked(node) == (
        503,
        {"status": "unavailable", "code": "draining", "reason": "the node is shutting down, or was told to drain"},
    )


def test_a_busy_fleet_is_a_fleet_and_a_spent_one_is_none(serve: Serve, fleet: Upstream) -> None:
    fleet.mood = "busy"
    node = serve(upstreams=[configured(fleet)], mode="fleet")
    break_engine(node)
    with node.http() as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 503
    assert asked(node)[0] == 200, "overload makes no probe fail"
    assert node.front.fleet is not None
    node.front.fleet.bytes_cap.cap = 1
    node.front.fleet.bytes_cap.spend(10, time.monotonic())
    assert asked(node)[0] == 503
