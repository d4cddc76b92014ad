"""From a bare box to a managed node: the real fleet, a real mosquitto with mTLS, and a node that was running before."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.broker import Broker
from bench.est_authority import now
from bench.est_server import EstServer
from bench.fleet_side import FleetSide
from bench.servers import free_port
from edge.identity.identity import LastTry
from edge.identity.store import Store
from tests.conftest import RunEdge
from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.waiting import until

PATIENCE_S = 240.0


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetSide]:
    side = FleetSide(tmp_path / "fleet")
    side.start()
    side.start_broker()
    yield side
    side.end()


@pytest.fixture
def node(home: Path) -> Iterator[RunningNode]:
    running = start_node(home, port=free_port())
    yield running
    stop_node(running)


def load(node: RunningNode) -> dict[str, Any]:
    try:
        found: dict[str, Any] = httpx.get(f"{node.base_url}/edge/v1/load", timeout=60, trust_env=False).json()
    except httpx.TransportError:  # it starts anew
        return {}
    return found


def codes(node: RunningNode) -> set[str]:
    return {alarm["code"] for alarm in load(node)["alarms"]}


def events(fleet: FleetSide) -> list[str]:
    return [str(event["event"]) for event in told(fleet)]


def told(fleet: FleetSide) -> list[dict[str, Any]]:
    """All events that have arrived."""
    with sqlite3.connect(f"file:{fleet.home.telemetry}?mode=ro", uri=True) as db:
        rows = db.execute("SELECT payload FROM records WHERE kind = 'event'").fetchall()
    return [json.loads(row[0]) for row in rows]


@pytest.mark.e2e
def test_a_running_box_becomes_a_managed_node_and_stays_one_until_it_is_revoked(
    fleet: FleetSide, node: RunningNode, run_edge: RunEdge
) -> None:
    assert "identity" not in load(node)
    done = run_edge(
        "enroll", "--fleet", fleet.url, "--name", "Press 7", EDGE_ENROLL_TOKEN=str(fleet.token(group="press"))
    )
    assert done.returncode == 0, done.stderr
    assert "lets this node in" in done.stdout

    # The node takes it up by itself, and the fleet sees it.
    until(lambda: load(node).get("outbox", {}).get("connected"), PATIENCE_S)
    assert load(node)["identity"]["node"] == "press-7"
    shown = until(lambda: (row := fleet.node("press-7"))["health"] == "online" and row, PATIENCE_S)
    assert (shown["group"], shown["label"]) == ("press", "Press 7")
    until(lambda: fleet.node("press-7")["models"], PATIENCE_S)
    until(lambda: "enrolled" in events(fleet), PATIENCE_S)

    # A renewal from outside: the same node, with another certificate, without a restart.
    began = load(node)["uptime_s"]
    assert run_edge("identity", "renew").returncode == 0
    until(lambda: load(node)["identity"]["generation"] == 2, PATIENCE_S)
    until(lambda: "renewed" in events(fleet), PATIENCE_S)
    until(lambda: load(node)["outbox"]["connected"], PATIENCE_S)
    assert load(node)["uptime_s"] > began
    metrics = httpx.get(f"{node.base_url}/metrics", timeout=60, trust_env=False).text
    left_s = next(
        float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("edge_certificate_expires_s")
    )
    assert 29 * 86_400 < left_s <= 30 * 86_400

    # Revoked, it is let in nowhere, and says why; it goes on answering those beside it.
    revoked = fleet.cli("revoke", "press-7")
    assert revoked.returncode == 0, revoked.stderr
    until(lambda: not load(node)["outbox"]["connected"], PATIENCE_S)
    refused = run_edge("identity", "renew")
    assert (refused.returncode, "revoked this node" in refused.stderr) == (3, True)
    body = {"model": load(node)["model"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    assert httpx.post(f"{node.base_url}/v1/chat/completions", json=body, timeout=60, trust_env=False).status_code == 200


@pytest.mark.e2e
def test_a_node_that_waits_for_approval_is_let_in_by_one_command(fleet: FleetSide, run_edge: RunEdge) -> None:
    token = str(fleet.token(approval=True))
    waiting = run_edge("enroll", "--fleet", fleet.url, "--name", "box", EDGE_ENROLL_TOKEN=token)
    assert waiting.returncode == 4, waiting.stderr
    approved = fleet.cli("approve", "box")
    assert approved.returncode == 0, approved.stderr
    done = run_edge("enroll", "--fleet", fleet.url, "--name", "box", EDGE_ENROLL_TOKEN=token)
    assert done.returncode == 0 and "box of plant" in done.stdout
    with fleet.people() as people:
        assert [row["id"] for row in people.get("/fleet/v1/nodes").json()["items"]] == ["box"]


@pytest.mark.e2e
def test_the_fleets_ca_rolls_over_and_the_node_follows(fleet: FleetSide, run_edge: RunEdge) -> None:
    assert run_edge("enroll", "--fleet", fleet.url, EDGE_ENROLL_TOKEN=str(fleet.token())).returncode == 0

    def shown() -> Any:
        return json.loads(run_edge("identity", "show", "--json").stdout)

    def renewed() -> Any:
        return run_edge("identity", "renew").returncode == 0 and shown()

    before = shown()
    assert fleet.cli("ca", "new-root").returncode == 0
    until(lambda: (now := renewed()) and set(before["roots_sha256"]) < set(now["roots_sha256"]), PATIENCE_S)
    assert fleet.cli("ca", "new-issuing").returncode == 0
    until(lambda: (now := renewed()) and now["certificate"]["issuer"] != before["certificate"]["issuer"], PATIENCE_S)
    assert shown()["node"] == before["node"]


@pytest.mark.e2e
def test_a_node_renews_its_certificate_while_it_runs(home: Path, tmp_path: Path, run_edge: RunEdge) -> None:
    """Twenty of thirty days have gone when it starts. What it renews with is tried at the broker, and then the uplink uses it."""
    est = EstServer(tmp_path / "est")
    (tmp_path / "broker").mkdir()

    def certify(place: Path) -> None:
        est.authority.trusted_pem(place / "ca.pem")
        est.authority.server_pem(place / "broker.pem", "localhost")

    broker = Broker(tmp_path / "broker", certify=certify)
    broker.start()
    est.more = {"mqtt": {"url": f"mqtts://localhost:{broker.port}"}}
    est.manner.begins = now() - timedelta(days=28)
    assert run_edge("enroll", "--fleet", est.url, EDGE_ENROLL_TOKEN=est.token()).returncode == 0
    broker.kill()  # nothing to try it at: the old one must stay
    est.manner.begins = None
    Store(home).remember_try(
        LastTry(time.time(), 8, "")
    )  # after so many it tries again by itself long after this is over
    running = start_node(home, "--set", "mqtt.backoff_max_s=1", port=free_port())
    try:
        until(lambda: load(running)["identity"]["renewal_failure"], PATIENCE_S)
        assert "the old one serves" in load(running)["identity"]["renewal_failure"]
        assert load(running)["identity"]["generation"] == 1
        until(lambda: "certificate_expiring" in codes(running), PATIENCE_S)
        broker.start()
        until(lambda: load(running)["outbox"]["connected"], PATIENCE_S)
        assert run_edge("identity", "renew").returncode == 0, "what waits for its trial is not asked for again"
        until(lambda: load(running)["identity"]["generation"] == 2, PATIENCE_S)
        assert est.asked.count("simplereenroll") == 1
        until(lambda: "certificate_expiring" not in codes(running), PATIENCE_S)
        assert load(running)["identity"]["renewal_failure"] == ""
        until(lambda: broker.connections() >= 3 and load(running)["outbox"]["connected"], PATIENCE_S)
        until(lambda: [path.name for path in (home / "identity" / "generations").iterdir()] == ["000002"], PATIENCE_S)
        assert est.complaints == []
    finally:
        stop_node(running)
        broker.kill()
        est.stop()


@pytest.mark.e2e
def test_a_node_whose_identity_is_damaged_serves_and_tells_all_of_it_later(
    fleet: FleetSide, home: Path, run_edge: RunEdge
) -> None:
    assert run_edge("enroll", "--fleet", fleet.url, EDGE_ENROLL_TOKEN=str(fleet.token())).returncode == 0
    key = home / "identity" / "current" / "key.pem"
    good = key.read_bytes()
    key.write_bytes(b"")
    running = start_node(home, port=free_port())
    try:
        body = {"model": load(running)["model"], "prompt": "Hello", "max_tokens": 4}
        answer = httpx.post(f"{running.base_url}/v1/completions", json=body, timeout=PATIENCE_S, trust_env=False)
        assert answer.status_code == 200
        assert "identity_damaged" in codes(running)
        assert load(running)["identity"]["standing"] == "damaged"
        assert not load(running)["outbox"]["connected"] and "fleet" not in load(running)
        shown = run_edge("status", "--url", running.base_url).stdout
        assert "serves without its fleet" in shown and "edge enroll --force" in shown
        metrics = httpx.get(f"{running.base_url}/metrics", timeout=PATIENCE_S, trust_env=False).text
        assert "edge_identity_damaged 1.0" in metrics
        key.write_bytes(good)
        until(lambda: load(running).get("outbox", {}).get("connected"), PATIENCE_S)
        assert load(running)["identity"]["standing"] == "good"
        until(lambda: events(fleet).count("start") == 2, PATIENCE_S)
        until(
            lambda: any(event["event"] == "alarm_raised" and "identity_damaged" in str(event) for event in told(fleet))
        )
    finally:
        stop_node(running)


@pytest.fixture
def est(tmp_path: Path) -> Iterator[EstServer]:
    server = EstServer(tmp_path / "est")
    yield server
    server.stop()


@pytest.mark.e2e
def test_a_stop_that_comes_while_a_node_ends_to_begin_anew_stops_it(
    est: EstServer, node: RunningNode, run_edge: RunEdge
) -> None:
    long = {"model": "edge-builtin", "prompt": "pump 3", "max_tokens": 200, "stream": True, "ignore_eos": True}
    with (
        httpx.Client(trust_env=False, timeout=60) as client,
        client.stream("POST", f"{node.base_url}/v1/completions", json=long) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        node.engine.suspend()  # the answer is not over before all that has happened
        assert run_edge("enroll", "--fleet", est.url, EDGE_ENROLL_TOKEN=est.token()).returncode == 0
        until(lambda: "starting anew" in node.said(), PATIENCE_S)
        node.process.terminate()
        until(lambda: "stopping" in node.said(), PATIENCE_S)
        node.engine.resume()
        assert [line for line in lines if line][-1] == "data: [DONE]", "one signal is no reason to give requests up"
    assert node.process.wait(PATIENCE_S) == 0
    assert node.said().count("engine ready") == 1


@pytest.mark.e2e
def test_a_node_goes_on_as_it_is_where_it_could_not_begin_anew(est: EstServer, home: Path, run_edge: RunEdge) -> None:
    """Nobody stands beside a box whose fleet takes away what its settings count on."""
    est.more = {"fallback": {"url": "http://127.0.0.1:9/v1", "model": ""}}
    assert run_edge("enroll", "--fleet", est.url, EDGE_ENROLL_TOKEN=est.token()).returncode == 0
    running = start_node(home, "--set", "admission.mode=fleet", port=free_port())
    try:
        assert run_edge("identity", "reset", "--yes").returncode == 0
        until(lambda: "the enrollment's settings cannot be taken up" in running.said(), PATIENCE_S)
        assert "admission.mode is fleet, and no fleet is set" in running.said()
        assert run_edge("health", "--url", running.base_url).stdout == "ready\n"
        assert "starting anew" not in running.said()
    finally:
        stop_node(running)
