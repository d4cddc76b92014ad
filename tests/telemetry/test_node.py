"""A real node with its uplink: what it tells, what it does when told, and that it serves whatever is wrong upstream."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bench.broker import Broker
from edge.settings import Mqtt
from edge.telemetry.mqtt import Connection, Handlers, Message
from edge.telemetry.node import place_of
from tests.conftest import RunEdge
from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.telemetry.conftest import PREFIX, SinkSide
from tests.waiting import until

pytestmark = pytest.mark.e2e


def settings(broker: Broker, **more: str) -> dict[str, str]:
    pem = str(broker.identity("n1"))
    return {
        "EDGE_MQTT__URL": f"mqtts://localhost:{broker.port}", "EDGE_MQTT__NODE": "n1", "EDGE_MQTT__INTERVAL_S": "1",
        "EDGE_MQTT__CA_FILE": str(broker.home / "ca.pem"), "EDGE_MQTT__CERT_FILE": pem, "EDGE_MQTT__KEY_FILE": pem,
        "EDGE_MQTT__BACKOFF_MAX_S": "1", "EDGE_MQTT__TRUST_CLOCK": "true", **more,
    }  # fmt: skip


@contextmanager
def serving(home: Path, **env: str) -> Iterator[RunningNode]:
    running = start_node(home, **env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            stop_node(running)


def ask(node: RunningNode) -> httpx.Response:
    body = {"model": "edge-builtin", "messages": [{"role": "user", "content": "Stop pump 2."}], "max_tokens": 4}
    streamed = {**body, "stream": True}
    httpx.post(f"{node.base_url}/v1/chat/completions", json=streamed, timeout=60, trust_env=False)
    return httpx.post(f"{node.base_url}/v1/chat/completions", json=body, timeout=60, trust_env=False)


def load(node: RunningNode) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{node.base_url}/edge/v1/load", timeout=60, trust_env=False).json()
    return found


def events(sink: SinkSide) -> list[str]:
    return [orjson.loads(p)["event"] for (p,) in sink.rows("SELECT payload FROM records WHERE kind = 'event'")]


def command(broker: Broker, key: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    fleet = str(broker.identity("fleet"))
    files = ["--ca", str(broker.home / "ca.pem"), "--cert", fleet, "--key", fleet, "--sign", str(key)]
    return subprocess.run(
        [sys.executable, "-m", "edge", "fleet", "command", "n1", *arguments, "--url", f"mqtts://localhost:{broker.port}", *files],
        env={**os.environ, "EDGE_HOME": "/nonexistent"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def retained(sink: SinkSide, topic: str) -> dict[str, Any]:
    found = sink.rows(f"SELECT payload FROM retained WHERE topic = '{PREFIX}{topic}'")
    return orjson.loads(found[0][0]) if found else {}


def test_a_node_tells_what_happens_and_does_what_it_is_told(
    home: Path, broker: Broker, sink: SinkSide, run_edge: RunEdge, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    assert run_edge("fleet", "key", str(key)).returncode == 0
    with serving(home, **settings(broker, EDGE_MQTT__COMMAND_KEYS_FILE=f"{key}.pub", EDGE_LOG__LEVEL="error")) as node:
        assert ask(node).status_code == httpx.codes.OK
        query = "SELECT 1 FROM records WHERE kind = 'metrics' AND instr(CAST(payload AS TEXT), 'time_per_output_token')"
        until(lambda: sink.rows(query))
        until(lambda: {"start", "engine_ready"} <= set(events(sink)))  # metrics may overtake what happened before
        until(lambda: retained(sink, "up/info").get("model") == "edge-builtin")
        assert load(node)["alarms"] == [] and load(node)["outbox"]["connected"]
        assert "edge_uplink_connected 1.0" in httpx.get(f"{node.base_url}/metrics", timeout=60, trust_env=False).text
        assert "connected to mqtts://" in run_edge("status", "--url", node.base_url).stdout

        drained = command(broker, key, "drain")
        assert drained.returncode == 0, drained.stderr
        assert json.loads(drained.stdout)["draining"] is True
        assert ask(node).status_code == httpx.codes.SERVICE_UNAVAILABLE
        until(lambda: retained(sink, "up/state").get("state") == "draining")
        assert command(broker, key, "drain", "--resume").returncode == 0
        assert ask(node).status_code == httpx.codes.OK

        assert command(broker, key, "trace", "2").returncode == 0
        ask(node)
        until(lambda: events(sink).count("request_trace") == 2)
        assert command(broker, key, "log-level", "debug").returncode == 0
        assert command(broker, key, "rebirth").returncode == 0

        stranger = tmp_path / "stranger"
        run_edge("fleet", "key", str(stranger))
        refused = command(broker, stranger, "drain")
        assert refused.returncode == 1 and "bad_signature" in refused.stderr
        until(lambda: "command_refused" in events(sink))

        pid = node.process.pid
        assert command(broker, key, "reload").returncode == 0
        until(lambda: events(sink).count("start") == 2)  # the same process, with a boot id of its own
        until(lambda: events(sink).count("engine_ready") == 2)
        assert node.process.poll() is None and node.process.pid == pid
    until(lambda: events(sink).count("stop") == 2)
    until(lambda: retained(sink, "up/state").get("state") == "offline")
    assert sink.rows("SELECT * FROM gaps") == []


def test_a_reload_is_refused_while_the_settings_are_wrong(
    home: Path, broker: Broker, run_edge: RunEdge, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    run_edge("fleet", "key", str(key))
    with serving(home, **settings(broker, EDGE_MQTT__COMMAND_KEYS_FILE=f"{key}.pub")) as node:
        until(lambda: load(node)["outbox"]["connected"])
        for wrong, named in (
            ("[server]\nmax_connections = 'many'\n", "server.max_connections"),
            ("[admission]\nmode = 'fleet'\n", "no fleet is set"),
        ):
            (home / "edge.toml").write_text(wrong)
            refused = command(broker, key, "reload")
            assert refused.returncode == 1 and named in refused.stderr
        (home / "edge.toml").unlink()
        assert ask(node).status_code == httpx.codes.OK


@pytest.mark.parametrize(
    "wrong",
    [
        {"EDGE_MQTT__URL": "mqtts://no-such-host.invalid"},
        {"EDGE_MQTT__URL": "mqtts://127.0.0.1:1"},
        {"EDGE_MQTT__CERT_FILE": "/nonexistent/a.pem", "EDGE_MQTT__KEY_FILE": "/nonexistent/a.pem"},
    ],
    ids=["no such name", "nobody there", "no certificate"],
)
def test_a_node_serves_with_everything_upstream_wrong(home: Path, broker: Broker, wrong: dict[str, str]) -> None:
    with serving(home, **{**settings(broker), **wrong}) as node:
        assert ask(node).status_code == httpx.codes.OK
        until(lambda: load(node)["outbox"]["reason"])
        assert not load(node)["outbox"]["connected"]
        if "EDGE_MQTT__CERT_FILE" in wrong:
            until(lambda: "uplink_tls" in [alarm["code"] for alarm in load(node)["alarms"]])


def test_what_a_stopped_node_left_can_be_looked_at_and_sent(
    home: Path, broker: Broker, sink: SinkSide, run_edge: RunEdge
) -> None:
    dead = {**settings(broker), "EDGE_MQTT__URL": "mqtt://127.0.0.1:1", "EDGE_MQTT__SPILL_S": "0.5"}
    del dead["EDGE_MQTT__CA_FILE"], dead["EDGE_MQTT__CERT_FILE"], dead["EDGE_MQTT__KEY_FILE"]
    assert "there is no outbox" in run_edge("outbox", "stats").stderr
    with serving(home, **dead):
        busy = run_edge("outbox", "drain", **settings(broker))
        assert busy.returncode == 1 and "in use" in busy.stderr
        until(lambda: "metrics" in json.loads(run_edge("outbox", "stats", "--json").stdout)["records"])
    stats = run_edge("outbox", "stats", "--json")
    assert json.loads(stats.stdout)["records"]["event"] >= 3
    assert "event" in run_edge("outbox", "stats").stdout
    peek = run_edge("outbox", "peek", "--limit", "1000").stdout
    assert "start version=" in peek and "engine_ready" in peek and "metrics over" in peek
    drained = run_edge("outbox", "drain", **settings(broker))
    assert drained.returncode == 0, drained.stderr
    assert "all acknowledged" in drained.stdout
    assert {"start", "engine_ready", "stop"} <= set(events(sink))
    assert json.loads(run_edge("outbox", "stats", "--json").stdout)["records"] == {}


def test_wrong_settings_are_refused_with_the_cure(run_edge: RunEdge) -> None:
    cases = {
        "http://x": "mqtt://host[:port]",
        "mqtt://user:word@x": "mqtt.password_file",
        "mqtt://x/path": "mqtt://host[:port]",
    }
    for url, cure in cases.items():
        refused = run_edge("settings", EDGE_MQTT__URL=url)
        assert (
            refused.returncode == 78 and cure in refused.stderr and "word" not in refused.stderr.replace("password", "")
        )
    for name, value in {"NODE": "a/b", "GROUP": "+", "PREFIX": "edge/"}.items():
        assert run_edge("settings", **{f"EDGE_MQTT__{name}": value}).returncode == 78


def test_no_two_nodes_have_one_client_id(tmp_path: Path) -> None:
    ids = {
        place_of(Mqtt(group=group, node=node), tmp_path).config.address.client_id
        for group, node in (("plant-7", "1"), ("plant", "7-1"), ("plant-", "7-1"), ("plant", "-7-1"))
    }
    assert len(ids) == 4


@pytest.mark.parametrize("name", ["n" * 201, "a\nb", "a\x7f", "a\u0085b", "a\ufffe"])
def test_a_name_that_a_broker_or_a_sink_refuses_is_refused_at_once(name: str) -> None:
    for field in ("node", "group"):
        with pytest.raises(ValueError, match=f"{field}"):
            Mqtt(**{field: name})
    assert Mqtt(node="n" * 200, group="Werk Süd 7").node


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            b'{"status": "failed\\u001b[2J", "code": "c", "text": "\\u001b]0;owned\\u0007"}',
            "did not do it (failed[2J, c): ]0;owned",
        ),
        (b"[1]", "makes no sense"),
        (b"{", "makes no sense"),
        (b"{}", "did not do it"),
    ],
)
def test_what_a_node_answers_does_nothing_to_a_terminal(
    broker: Broker, run_edge: RunEdge, tmp_path: Path, answer: bytes, said: str
) -> None:
    key, over = tmp_path / "key", threading.Event()
    assert run_edge("fleet", "key", str(key)).returncode == 0
    asked: list[Message] = []
    node = Connection(broker.address("n1"), Handlers(asked.append))
    node.open()
    node.subscribe(f"{PREFIX}down/cmd/+")

    def reply() -> None:
        while not over.is_set():
            node.turn(0.05)
            while asked:
                node.publish(f"{PREFIX}up/cmd/{asked.pop().topic.rpartition('/')[2]}", answer)

    replying = threading.Thread(target=reply)
    replying.start()
    try:
        done = command(broker, key, "rebirth")
    finally:
        over.set()
        replying.join()
    node.close()
    assert done.returncode == 1 and said in done.stderr and "\x1b" not in done.stderr and "Traceback" not in done.stderr
