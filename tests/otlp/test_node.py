"""A real node that sends to a collector: what arrives, and what never does."""

from __future__ import annotations

import fcntl
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from edge.otlp.exporter import Source
from tests.conftest import RunEdge
from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.otlp.sink import Sink, collecting, plain

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
SECRET = "xyzzy-the-magic-word"


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def node(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("node")
    (home / "headers").write_text("# for the collector\nAuthorization: Bearer s3cret\nX-Scope: edge\n")
    settings = [
        "mqtt.node=robot-12",
        "otlp.traces=on",
        "otlp.sample=0",
        "otlp.interval_s=1",
        "otlp.headers_file=headers",
    ]
    flags = [part for setting in (f"otlp.endpoint={sink.url}/", *settings) for part in ("--set", setting)]
    running = start_node(home, *flags)
    yield running
    stop_node(running)


@pytest.fixture(scope="module")
def spans(node: RunningNode, sink: Sink) -> dict[str, Span]:
    """Of one streamed request whose sender wants a trace, by name."""
    body = {"messages": [{"role": "user", "content": SECRET}], "stream": True, "max_tokens": 12, "ignore_eos": True}
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(f"{node.base_url}/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200
    version, trace_id, span_id, flags = answer.headers["traceresponse"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE_ID, "01")
    sink.wait_for(lambda: len(sink.spans()) >= 4)
    found = {span.name: span for span in sink.spans()}
    assert found["POST /v1/chat/completions"].span_id.hex() == span_id
    return found


def test_a_trace_has_the_request_its_queue_its_prefill_and_its_decode(spans: dict[str, Span]) -> None:
    server = spans["POST /v1/chat/completions"]
    assert set(spans) == {"POST /v1/chat/completions", "queue", "prefill", "decode"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE_ID}
    assert server.parent_span_id.hex() == "00f067aa0ba902b7" and server.kind == Span.SPAN_KIND_SERVER
    at = server.start_time_unix_nano
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent_span_id == server.span_id
        assert at <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano <= server.end_time_unix_nano
        at = spans[name].end_time_unix_nano


def test_a_trace_says_what_was_asked_of_which_model_and_what_it_took(spans: dict[str, Span]) -> None:
    said = plain(list(spans["POST /v1/chat/completions"].attributes))
    assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.request.model"] == "edge-builtin"
    assert said["gen_ai.usage.output_tokens"] == 12 and int(str(said["gen_ai.usage.input_tokens"])) > 0
    assert said["http.response.status_code"] == 200 and said["edge.route"] in ("local", "late")
    assert "error.type" not in said


def test_who_wants_no_trace_gets_none_and_a_share_of_zero_makes_none(node: RunningNode, sink: Sink) -> None:
    body = {"prompt": "pump", "max_tokens": 2}
    before = len(sink.spans())
    with httpx.Client(trust_env=False, timeout=60, base_url=node.base_url) as client:
        client.post("/v1/completions", json=body, headers={"traceparent": PARENT[:-1] + "0"})
        client.post("/v1/completions", json=body)
        wrong = client.post("/v1/completions", json={"prompt": 7.5}, headers={"traceparent": PARENT})
    assert wrong.status_code == 400
    sink.wait_for(lambda: len(sink.spans()) > before)
    fresh = sink.spans()[before:]
    assert [span.name for span in fresh] == ["POST /v1/completions"], "the last one alone"
    assert plain(list(fresh[0].attributes))["error.type"] == "400"


def test_metrics_come_as_exponential_histograms_beside_the_nodes_own(
    node: RunningNode, sink: Sink, spans: dict[str, Span]
) -> None:
    sink.wait_for(lambda: bool(sink.metrics) and "gen_ai.server.request.duration" in sink.newest())
    found = sink.newest()
    resource = plain(list(sink.metrics[-1].resource_metrics[0].resource.attributes))
    assert resource["service.name"] == "edge-node" and resource["service.version"]
    assert resource["service.instance.id"] == "robot-12"
    for name in ("time_to_first_token", "time_per_output_token", "request.duration"):
        metric = found[f"gen_ai.server.{name}"]
        assert metric.unit == "s" and metric.WhichOneof("data") == "exponential_histogram"
        point = metric.exponential_histogram.data_points[0]
        assert point.count >= 1 and 0 < len(point.positive.bucket_counts) <= 160
        assert plain(list(point.attributes))["gen_ai.request.model"] == "edge-builtin"
    total = found["edge_prompt_tokens"].sum
    assert total.is_monotonic and total.data_points[0].as_double > 0
    assert found["edge_slots"].gauge.data_points[0].as_double == 8
    assert found["process.uptime"].gauge.data_points[0].as_double > 0
    assert not [name for name in found if name.startswith(("vllm:", "DCGM"))], "others' names would be the same twice"


def test_what_is_sent_has_the_nodes_name_and_the_environment_stands_above(monkeypatch: pytest.MonkeyPatch) -> None:
    said = dict(Source("robot-12", "1.2").resource().attributes)
    assert (said["service.name"], said["service.instance.id"], said["service.version"]) == (
        "edge-node",
        "robot-12",
        "1.2",
    )
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=line%207,deployment.environment=plant")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "arms")
    said = dict(Source("robot-12", "1.2").resource().attributes)
    assert (said["service.name"], said["service.instance.id"], said["service.version"]) == ("arms", "line 7", "1.2")
    assert said["deployment.environment"] == "plant" and said["telemetry.sdk.language"] == "python"


def test_headers_go_with_it_and_no_word_that_was_said(sink: Sink, spans: dict[str, Span]) -> None:
    assert all(h["authorization"] == "Bearer s3cret" and h["x-scope"] == "edge" for h in sink.headers)
    assert SECRET.encode() not in sink.bytes


def test_a_collector_that_refuses_is_told_of_once_and_stops_nothing(home: Path) -> None:
    with collecting() as sink:
        sink.sick = True
        flags = ["--set", f"otlp.endpoint={sink.url}", "--set", "otlp.interval_s=1", "--set", "log.format=json"]
        node = start_node(home, *flags)
        sink.wait_for(lambda: len(sink.headers) >= 2)
        body = {"prompt": "pump", "max_tokens": 2}
        answer = httpx.post(f"{node.base_url}/v1/completions", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200
        sink.sick = False
        sink.wait_for(lambda: bool(sink.metrics))
        assert stop_node(node) == 0
    events = [json.loads(line).get("event") for line in node.said().splitlines() if line.startswith("{")]
    assert events.count("otlp_failed") == 1 and events.count("otlp_works") == 1
    assert "Traceback" not in node.said()


def test_a_collector_that_says_nothing_is_given_up_and_nothing_else_waits_for_it(home: Path, tmp_path: Path) -> None:
    outbox_free: dict[str, bool] = {}
    heard: list[str] = []
    heard_before: dict[str, int] = {}
    over = threading.Event()

    def say_nothing(path: str) -> None:
        with (home / "outbox" / "outbox.lock").open("rb+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # traces and metrics may come here at the same moment
                outbox_free[path] = True
            except OSError:
                outbox_free[path] = False
        heard_before[path] = len(heard)
        over.wait()

    settings = ["otlp.traces=on", "otlp.sample=1", "otlp.interval_s=3600", "mqtt.url=mqtt://127.0.0.1:9"]
    with collecting() as sink, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        sink.before_answer = say_nothing
        given = (f"otlp.endpoint={sink.url}", "log.format=json", *settings)
        node = start_node(
            home,
            *(part for setting in given for part in ("--set", setting)),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="200000",  # thirty signs of life in the three seconds that a collector has
        )
        hearing = threading.Thread(target=hear, args=(manager, heard))
        hearing.start()
        try:
            body = {"prompt": "pump", "max_tokens": 2}
            answer = httpx.post(f"{node.base_url}/v1/completions", json=body, timeout=60, trust_env=False)
            assert answer.status_code == 200
            assert stop_node(node) == 0
        finally:
            over.set()
            manager.shutdown(socket.SHUT_RDWR)
            hearing.join()
    events = [json.loads(line) for line in node.said().splitlines() if line.startswith("{")]
    (given_up,) = [event for event in events if event.get("event") == "otlp_abandoned"]
    assert (given_up["spans"], given_up["metrics"]) == (4, 1)
    assert outbox_free["/v1/metrics"], "it was asked to wait before the outbox was closed"
    assert any("STOPPING=1" in message for message in heard)
    assert heard[heard_before["/v1/metrics"] :].count("WATCHDOG=1") >= 5, "the loop stood still meanwhile"
    assert "Traceback" not in node.said() and "never awaited" not in node.said()


def hear(manager: socket.socket, heard: list[str]) -> None:
    """Until it is shut down."""
    while message := manager.recv(4096):
        heard.append(message.decode())


def test_a_collector_that_is_not_there_does_not_hold_up_the_end(home: Path) -> None:
    node = start_node(home, "--set", "otlp.endpoint=http://127.0.0.1:9", "--set", "otlp.traces=on")
    assert stop_node(node) == 0
    assert "Traceback" not in node.said()


@pytest.mark.parametrize(
    ("setting", "text", "expected"),
    [
        ("otlp.endpoint=localhost:4318", "", "otlp.endpoint must be http://host:port"),
        ("otlp.headers_file=h", "no colon here", "is no header; write `Name: value`"),
        ("otlp.headers_file=other", "A: b", "cannot read otlp.headers_file"),
    ],
)
def test_settings_that_are_wrong_are_named(
    run_edge: RunEdge, home: Path, setting: str, text: str, expected: str
) -> None:
    (home / "h").write_text(text)
    endpoint = [] if setting.startswith("otlp.endpoint") else ["--set", "otlp.endpoint=http://127.0.0.1:9"]
    done = run_edge("serve", "--port", "0", *endpoint, "--set", setting)
    assert done.returncode != 0 and expected in done.stderr and "Traceback" not in done.stderr
