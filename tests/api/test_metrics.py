"""What of requests is counted, under our names and under vLLM's; and what /edge/v1/load says of the last minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from edge.api.recent import Recent
from edge.api.timings import Tally, Timings
from edge.engine.counts import Counts
from edge.errors import EngineDown
from edge.messages import Outlook, Stats, Submit, Token
from edge.onnx.messages import TensorStats
from edge.otlp.metrics import Latencies as OtlpLatencies
from edge.residency import Spec
from edge.telemetry.collector import DURATION, ITL, TTFT
from edge.telemetry.collector import Latencies as UplinkLatencies
from tests.api.conftest import Node, Serve
from tests.api.fake_engine import ADMITTED, FakeEngine, Step, says, whole

STATS = Stats(
    running=3, waiting=2, slots=4, cells_used=250, cells=1000, cache_bytes=0, cache_hits=0, cache_evictions=0,
    cached_tokens=0, late_ttft_s=0.4, admits=False, admits_tokens=90, admits_streams=3, prefill_tokens=0, decode_tokens=0,
    steps=9, step_p50_s=0.01, step_p99_s=0.02, forward_age_s=0.1, resident_bytes=1 << 27,
)  # fmt: skip


def value(node: Node, name: str, **labels: str) -> float | None:
    with node.http() as client:
        page = client.get("/metrics").text
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def ask(node: Node, *, stream: bool, model: str = "fake") -> None:
    with node.http() as client:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "stream": stream}
        assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_vllms_gauges_are_the_engines_last_word(serve: Serve) -> None:
    node = serve(FakeEngine(stats=STATS))
    assert value(node, "vllm:num_requests_running", model_name="fake") == 3
    assert value(node, "vllm:num_requests_waiting", model_name="fake") == 2
    assert value(node, "vllm:kv_cache_usage_perc", model_name="fake") == 0.25


def test_without_an_engines_word_they_are_absent(serve: Serve) -> None:
    assert value(serve(FakeEngine()), "vllm:num_requests_running", model_name="fake") is None


def test_streamed_and_whole_answers_are_counted_under_vllms_names(serve: Serve) -> None:
    node = serve(FakeEngine(says("a", "b", "c")))
    ask(node, stream=True)
    ask(node, stream=False)
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert value(node, f"vllm:{name}_seconds_count", model_name="fake") == 2
    assert value(node, "vllm:inter_token_latency_seconds_count", model_name="fake") == 2, "of the streamed one"
    assert value(node, "vllm:inter_token_latency_seconds_bucket", model_name="fake", le="+Inf") == 2
    assert value(node, "vllm:prompt_tokens_total", model_name="fake") == 14
    assert value(node, "vllm:generation_tokens_total", model_name="fake") == 6
    assert value(node, "edge_itl_seconds_count") == 2 and value(node, "edge_answer_tokens_total") == 6


def test_further_models_have_their_own(serve: Serve) -> None:
    node = serve(specs=[Spec("other", "other")], further={"other": [FakeEngine(says("x", "y"))]})
    ask(node, stream=True, model="other")
    assert value(node, "vllm:inter_token_latency_seconds_count", model_name="other") == 1
    assert value(node, "vllm:generation_tokens_total", model_name="other") == 2
    assert value(node, "vllm:generation_tokens_total", model_name="fake") is None
    assert value(node, "edge_ttft_seconds_count") == 0


NUMBERS = TensorStats(
    waiting=0, passes=1, rows=1, pass_p50_s=0.01, pass_p99_s=0.01, wait_s=0, forward_age_s=0, resident_bytes=1
)


def test_totals_of_a_model_never_fall_when_its_engine_leaves_and_another_one_comes(serve: Serve) -> None:
    def engine(texts: int) -> FakeEngine:
        return FakeEngine(kind="tensors", stats=NUMBERS, counts=Counts(texts=texts, passes=texts))

    node = serve(specs=[Spec("other", "other")], further={"other": [engine(6), engine(1)]})
    seen = []
    with node.http() as client:
        for action in ("load", "unload", "load"):
            assert client.post(f"/edge/v1/models/other/{action}").status_code == 200
            seen.append(value(node, "edge_tensor_texts_total", model="other"))
            shown = value(node, "edge_tensor_pass_p50_seconds", model="other")
            assert shown == (None if action == "unload" else 0.01)
    assert seen == [6, 6, 7]


def test_totals_of_the_main_models_engine_are_those_of_all_its_children(serve: Serve) -> None:
    counts = Counts(cache_hits=9, cached_tokens=700, restarts=2, reductions=1)
    node = serve(FakeEngine(stats=STATS, counts=counts))
    assert value(node, "edge_prefix_cache_hits_total") == 9
    assert value(node, "edge_prefix_cache_tokens_total") == 700
    assert value(node, "edge_engine_restarts_total") == 2 and value(node, "edge_engine_reductions_total") == 1


def test_an_answer_that_broke_off_has_no_end(serve: Serve) -> None:
    def breaks(work: Submit) -> Iterator[Step]:
        yield from whole(Token(0, 0, "a", 1))[:-1]
        yield EngineDown("gone")

    node = serve(FakeEngine(lambda work: list(breaks(work))))
    ask(node, stream=True)
    assert value(node, "vllm:e2e_request_latency_seconds_count", model_name="fake") is None
    assert value(node, "vllm:time_to_first_token_seconds_count", model_name="fake") == 1


def test_predictions_are_held_against_what_came_of_admitted_requests_only(serve: Serve) -> None:
    late = Outlook(admitted=False, reason="slots", ttft_s=0.01, cached_tokens=0)
    for outlook, count in ((ADMITTED, 1), (late, 0)):
        node = serve(FakeEngine(lambda work, o=outlook: whole(Token(0, 0, "a", 1, finish="stop"), outlook=o)))  # type: ignore[misc]
        ask(node, stream=False)
        assert value(node, "edge_prediction_error_ratio_count") == count


def test_the_last_minutes_are_of_what_was_promised(serve: Serve) -> None:
    node = serve(FakeEngine(says("a", "b", "c")))
    with node.http() as client:
        assert client.get("/edge/v1/load").json()["times"] == {"window_s": 300.0}
        ask(node, stream=True)
        times = client.get("/edge/v1/load").json()["times"]
    assert times["ttft"]["count"] == 1 and times["itl"]["count"] == 2
    assert 0 < times["itl"]["p50_ms"] <= times["itl"]["p99_ms"] == times["itl"]["max_ms"]


@pytest.mark.parametrize(("count", "p50", "p99"), [(1, 1, 1), (2, 1, 2), (100, 50, 99), (1000, 500, 990)])
def test_quantiles_are_exact(count: int, p50: float, p99: float) -> None:
    recent = Recent()
    recent.add_all([number / 1000 for number in range(count, 0, -1)], [time.monotonic()] * count)
    found = recent.summary()
    assert found is not None
    assert (found["count"], found["p50_ms"], found["p99_ms"], found["max_ms"]) == (count, p50, p99, count)


def test_no_more_is_kept_than_is_looked_at() -> None:
    recent = Recent()
    for number in range(5000):
        recent.add_all([0.001 if number >= 904 else 0.002], [time.monotonic()])
    found = recent.summary()
    assert found is not None and found["count"] == 4096 and found["over_s"] < 300 and found["max_ms"] == 1


def test_what_is_old_is_forgotten_in_whatever_order_it_was_counted() -> None:
    recent, now_s = Recent(), time.monotonic()
    recent.add_all([0.002, 0.003], [now_s - 2, now_s - 1])
    recent.add_all([0.009, 0.004, 0.001], [now_s - 301, now_s - 1.5, now_s])
    found = recent.summary()
    assert found is not None and (found["count"], found["p50_ms"], found["max_ms"]) == (4, 2, 4)


@given(st.lists(st.floats(0.0, 40.0), min_size=1, max_size=200))
def test_times_counted_in_batches_are_as_if_prometheus_client_had_counted_each(seconds: list[float]) -> None:
    bounds = (0.002, 0.05, 1, 30)
    timings = Timings("x_seconds", "Text.", bounds)
    theirs = Histogram("x_seconds", "Text.", buckets=bounds, registry=CollectorRegistry())
    tally = Tally(lambda seconds, _: timings.of("").count(seconds))
    for value in seconds:
        tally.note(value, 0.0)
        theirs.observe(value)
    tally.settle()
    (ours,), (known,) = timings.collect(), theirs.collect()
    assert (ours.name, ours.documentation, ours.type) == (known.name, known.documentation, known.type)
    begun = "x_seconds_created"
    assert [(s.name, s.labels, s.value) for s in ours.samples if s.name != begun] == [
        (s.name, s.labels, pytest.approx(s.value)) for s in known.samples if s.name != begun
    ]
    assert ours.samples[-1].name == known.samples[-1].name == begun


def test_more_than_a_batch_of_gaps_is_counted_to_the_last(serve: Serve) -> None:
    words = [f"w{n}" for n in range(150)]
    node = serve(FakeEngine(says(*words)))
    ask(node, stream=True)
    assert value(node, "edge_itl_seconds_count") == 149
    with node.http() as client:
        assert client.get("/edge/v1/load").json()["times"]["itl"]["count"] == 149


def test_listeners_have_all_that_was_noted_before_they_read(serve: Serve) -> None:
    node, sent, uplink = serve(FakeEngine(says("a", "b", "c"))), OtlpLatencies(), UplinkLatencies()
    node.front.metrics.listen(sent)
    node.front.metrics.listen(uplink)
    ask(node, stream=True)
    found = uplink.take()
    assert {name: h.count for (name, _), h in found.items()} == {TTFT: 1, ITL: 2, DURATION: 1}
    packed = {kind: sum(counts) for (kind, _, _), (*_, counts) in sent.snapshot().items()}
    assert packed == {"ttft": 1, "itl": 2, "whole": 1}
    assert uplink.take() == {}, "an interval has what came in it"


def test_the_promise_is_told_as_passes_go_now_and_not_as_they_did_at_load(serve: Serve) -> None:
    node = serve(FakeEngine(stats=STATS))
    with node.http() as client:
        promise = client.get("/edge/v1/load").json()["promise"]
    assert (promise["new_prompt_tokens"], promise["answers"]) == (90, 3)
