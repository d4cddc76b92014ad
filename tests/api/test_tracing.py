"""A request's trace on its way to the fleet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.datastructures import Headers

from edge.api.tracing import parent_of
from edge.errors import Overloaded
from edge.otlp.traces import Traces
from tests.api.conftest import Serve
from tests.api.fake_engine import FakeEngine
from tests.api.test_dispatch import configured
from tests.fleet.upstream import Upstream, running, wait_until

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def given_headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def test_a_valid_traceparent_is_taken_with_its_state() -> None:
    found = parent_of(given_headers(("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")))
    assert found is not None and found.header == PARENT and found.state == "a=1,b=2"


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    found = parent_of(given_headers(("traceparent", "01" + PARENT[2:] + "-more")))
    assert found is not None and found.header == PARENT


@pytest.mark.parametrize(
    "header",
    [
        "", PARENT.upper(), PARENT + "-more", "ff" + PARENT[2:], PARENT[:-3], f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
    ],
)  # fmt: skip
def test_an_invalid_one_is_none(header: str) -> None:
    assert parent_of(given_headers(("traceparent", header))) is None


def test_two_are_none_and_a_state_that_is_too_long_is_left_out() -> None:
    assert parent_of(given_headers(("traceparent", PARENT), ("traceparent", PARENT))) is None
    found = parent_of(given_headers(("traceparent", PARENT), ("tracestate", "a" * 513)))
    assert found is not None and found.state == ""


@given(st.text(st.characters(max_codepoint=255), max_size=80))
def test_nothing_that_is_sent_breaks_it(header: str) -> None:
    found = parent_of(given_headers(("traceparent", header)))
    assert found is None or found.header[3:35] in header


@pytest.fixture
def fleet() -> Iterator[Upstream]:
    with running(Upstream()) as found:
        yield found


@pytest.mark.parametrize("stream", [False, True])
def test_a_node_without_traces_hands_on_what_came(serve: Serve, fleet: Upstream, stream: bool) -> None:
    node = serve(FakeEngine(refusal=Overloaded("full", retry_after_s=1)), [configured(fleet)], mode="fleet")
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": stream}
    with node.http(headers={"traceparent": PARENT, "tracestate": "vendor=x"}) as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.headers["x-edge-route"] == "fleet" and "traceresponse" not in answer.headers
    head = fleet.requests[0][0].lower()
    assert f"traceparent: {PARENT}\r\n" in head and "tracestate: vendor=x\r\n" in head


def test_without_a_trace_the_fleet_gets_none(serve: Serve, fleet: Upstream) -> None:
    node = serve(FakeEngine(refusal=Overloaded("full", retry_after_s=1)), [configured(fleet)], mode="fleet")
    with node.http(headers={"traceparent": "nonsense"}) as client:
        client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert "traceparent" not in fleet.requests[0][0].lower()


def test_a_node_with_traces_puts_its_own_span_between(serve: Serve, fleet: Upstream) -> None:

    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    node = serve(FakeEngine(refusal=Overloaded("full", retry_after_s=1)), [configured(fleet)], mode="fleet")
    node.front.tracing = Traces(provider.get_tracer("test"))
    with node.http(headers={"traceparent": PARENT, "tracestate": "vendor=x"}) as client:
        answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert answer.status_code == 200
    wait_until(lambda: len(kept.get_finished_spans()) == 2)
    spans = {span.name: span for span in kept.get_finished_spans()}
    call, server = spans["chat fleet"], spans["POST /v1/chat/completions"]
    assert call.parent is not None and server.context is not None and call.context is not None
    assert call.parent.span_id == server.context.span_id
    sent = f"traceparent: 00-{PARENT[3:35]}-{call.context.span_id:016x}-01"
    assert sent in fleet.requests[0][0].lower() and "tracestate: vendor=x" in fleet.requests[0][0].lower()
    assert call.attributes is not None and call.attributes["server.address"] == "central"
    assert server.attributes is not None and server.attributes["edge.route"] == "fleet"
