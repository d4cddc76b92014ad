"""What goes over the wire, read by OpenTelemetry's own definitions."""

from __future__ import annotations

import orjson
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from edge.telemetry.clock import new_boot_id
from edge.telemetry.histogram import Histogram
from edge.telemetry.merging import LEVELS_NS, Outline, groups_at, merge, to_drop
from edge.telemetry.pacing import Backoff, Bucket, Patience, Window
from edge.telemetry.ranges import Ranges
from edge.telemetry.records import (
    Envelope,
    Record,
    Sample,
    event_body,
    gap_body,
    payload,
    read_payload,
)
from edge.telemetry.stamp import Stamp, retimed
from tests.telemetry.conftest import small_sample

_S = 1_000_000_000
ENVELOPE = Envelope("n1", 3, historical=True)


def metrics(seq: int, value: float = 1.0, interval_s: int = 15) -> Record:
    stamp = Stamp((1_800_000_000 + seq * interval_s) * _S, seq * interval_s * _S, "k1", True)
    return Record("b1", seq, "metrics", stamp, small_sample(value).packed(), interval_s * _S)


def test_metrics_are_a_valid_otlp_request() -> None:
    record = merge([metrics(n, float(n)) for n in (4, 5, 7)])
    message = json_format.Parse(payload(record, ENVELOPE), ExportMetricsServiceRequest())
    (resource,) = message.resource_metrics
    attributes = {a.key: a.value for a in resource.resource.attributes}
    assert attributes["edge.node"].string_value == "n1"
    assert attributes["edge.seq"].int_value == 7
    assert attributes["edge.hist"].bool_value is True
    assert attributes["edge.clock"].string_value == "synced"
    assert attributes["edge.covers"].string_value == "4-5"
    families = {m.name: m for m in resource.scope_metrics[0].metrics}
    total = families["edge_requests"].sum
    assert total.is_monotonic and total.aggregation_temporality == 2
    assert total.data_points[0].as_double == 7.0
    assert families["edge_slots.min"].gauge.data_points[0].as_double == 4.0
    assert families["edge_slots.max"].gauge.data_points[0].as_double == 7.0
    spread = families["gen_ai.server.time_to_first_token"]
    assert spread.unit == "s" and spread.exponential_histogram.aggregation_temporality == 1
    (point,) = spread.exponential_histogram.data_points
    assert point.count == 3 == sum(point.positive.bucket_counts)
    assert (point.min, point.max, point.sum) == (4.0, 7.0, 16.0)
    assert point.time_unix_nano - point.start_time_unix_nano == 60 * _S


def test_a_sink_reads_what_a_node_writes() -> None:
    record = merge([metrics(4), metrics(6)])
    read = read_payload(payload(record, ENVELOPE))
    assert (read.node, read.boot_id, read.seq, read.floor, read.kind) == ("n1", "b1", 6, 3, "metrics")
    assert read.covers == Ranges([(4, 4)]) and read.time_ns == record.stamp.wall_ns
    gap = Record("b2", 9, "gap", record.stamp, gap_body("b1", Ranges([(5, 8)]), "crash", open_ended=True))
    assert read_payload(payload(gap, ENVELOPE)).gap == ("b1", Ranges([(5, 8)]), True, "crash")


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"kind": "event"}', b'{"resourceMetrics": []}', b"\xff"])
def test_nonsense_is_refused_by_the_reader(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_payload(data)


def test_long_texts_and_objects_in_an_event_are_bounded() -> None:
    body = event_body("engine_down", {"reason": "x" * 10_000, "nested": {"a": 1}, "seconds": 1.5, "none": None})
    assert len(body["fields"]["reason"]) == 400
    assert body["fields"]["nested"] == "{'a': 1}" and body["fields"]["seconds"] == 1.5
    assert len(orjson.dumps(body)) < 600


def test_an_unsynced_stamp_is_set_right_only_for_a_known_start_of_the_machine() -> None:
    stamp = Stamp(5 * _S, 100 * _S, "k1", False)
    assert retimed(stamp, {"k1": 1_800_000_000 * _S}) == Stamp(1_800_000_100 * _S, 100 * _S, "k1", True)
    assert retimed(stamp, {"k2": 1}) is stamp
    assert len(new_boot_id()) == 16 and new_boot_id() != new_boot_id()


# --- merging ---------------------------------------------------------------------------------------------------------


def outline(seq: int, kind: str = "metrics", span_s: int = 15, boot: int = 1, **more: object) -> Outline:
    return Outline(boot, seq, kind, seq * 15 * _S, span_s * _S, 1000, **more)  # type: ignore[arg-type]


def test_the_oldest_neighbours_of_one_window_and_boot_are_merged() -> None:
    outlines = [outline(n) for n in range(1, 9)] + [outline(n, boot=2) for n in range(9, 13)]
    groups = groups_at(LEVELS_NS[0], outlines, 1 << 40)
    assert [[o.seq for o in g] for g in groups] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]
    assert [[o.seq for o in g] for g in groups_at(LEVELS_NS[0], outlines, 1)] == [[1, 2, 3, 4]]


def test_what_was_sent_and_events_are_left_as_they_are() -> None:
    outlines = [outline(1), outline(2, kept=True), outline(3, "event"), outline(4)]
    assert [[o.seq for o in g] for g in groups_at(LEVELS_NS[0], outlines, 1)] == [[1, 4]]
    assert groups_at(LEVELS_NS[0], [outline(1, span_s=60), outline(2, span_s=60)], 1) == []


def test_events_go_only_when_no_metrics_are_left() -> None:
    outlines = [outline(1, "event"), outline(2, "gap"), outline(3), outline(4)]
    assert [o.seq for o in to_drop(outlines, 1)] == [3]
    assert [o.seq for o in to_drop(outlines[:2], 1)] == [1]
    assert to_drop([outline(2, "gap")], 1) == []


@given(st.lists(st.integers(1, 60), min_size=2, max_size=12, unique=True).map(sorted))
def test_merging_step_by_step_is_merging_at_once(seqs: list[int]) -> None:
    records = [metrics(n, float(n)) for n in seqs]
    whole = merge(records)
    stepwise = records[0]
    for record in records[1:]:
        stepwise = merge([stepwise, record])
    assert stepwise == whole
    assert whole.covers | Ranges([(whole.seq, whole.seq)]) == Ranges((n, n) for n in seqs)
    histogram = next(iter(Sample.unpacked(whole.body).histograms.values()))
    assert isinstance(histogram, Histogram) and histogram.count == len(seqs)


@given(st.sets(st.integers(1, 60), max_size=40))
def test_ranges_are_the_set_they_were_made_of(numbers: set[int]) -> None:
    found = Ranges((n, n) for n in numbers)
    assert {n for n in range(70) if n in found} == numbers
    assert len(found) == len(numbers)
    assert Ranges.parse(str(found)) == found
    through = 0
    while through + 1 in numbers:
        through += 1
    assert found.through == through


# --- pacing ----------------------------------------------------------------------------------------------------------


def test_pauses_grow_to_their_bound_and_chance_spreads_them() -> None:
    backoff = Backoff(60.0)
    assert [backoff.next_s(1.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.next_s(0.0) == pytest.approx(0.2)
    backoff.succeeded()
    assert backoff.next_s(1.0) == 1.0


def test_a_bucket_lets_so_many_a_second_through() -> None:
    bucket = Bucket(10.0)
    assert sum(bucket.take(n / 100) for n in range(1000)) == pytest.approx(100, abs=2)


def test_patience_grows_without_progress() -> None:
    patience = Patience(10.0, 30.0)
    patience.sent(0.0, outstanding=0)
    assert [t for t in range(100) if patience.over(float(t))] == [10, 30, 60, 90]
    patience.progress(90.0)
    assert not patience.over(99.0) and patience.over(100.0)


def test_the_window_grows_while_the_sink_is_quick_and_halves_once_when_it_is_slow() -> None:
    window = Window(8, 20, 1.0)
    for _ in range(30):
        window.acknowledged(0.0, 0.5)
    assert window.size == 20
    for _ in range(10):
        window.acknowledged(1.0, 5.0)  # all of one burst
    assert window.size == 10
    window.acknowledged(6.0, 9.0)
    window.narrow(10.0)
    assert window.size == 8
