"""The arithmetic of goodput, and the page and tables made from a report."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edge.bench.outcome import Outcome, Slo, cdf, percentile
from edge.bench.page import page
from edge.bench.report import Noise, Part, Report, TargetFacts, judge, latency, result
from edge.bench.view import show

SLO = Slo(50.0, 50.0)
_VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


def ok(ttft_ms: float = 10.0, gaps_ms: tuple[float, ...] = (20.0, 30.0), **more: object) -> Outcome:
    fields = {"due_s": 1.0, "late_s": 0.0, "ended_s": 2.0, "status": "ok", "tokens": 3, "tokens_counted": True}
    return Outcome(**{**fields, "ttft_ms": ttft_ms, "gaps_ms": gaps_ms, **more})  # type: ignore[arg-type]


def refused() -> Outcome:
    return Outcome(1.0, 0.0, 1.1, "refused", detail="HTTP 429")


@given(values=_VALUES, share=st.floats(0.001, 1))
def test_a_percentile_is_the_least_value_that_covers_its_share(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= math.floor(len(values) * share)
    assert sum(value < found for value in values) < len(values) * share + 1e-6


@given(values=_VALUES)
def test_a_distribution_rises_to_one_and_ends_at_the_largest(values: list[float]) -> None:
    points = cdf(values)
    assert points == sorted(points)
    assert points[-1] == (max(values), 1.0)
    assert all(sum(v <= value for v in values) / len(values) >= share - 1e-9 for value, share in points)


def test_percentiles_by_hand() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 100), 0.99) == 99  # fewer than 100: the largest
    assert latency([]).p99_ms is None


@pytest.mark.parametrize(
    ("outcome", "good"),
    [
        (ok(), True),
        (ok(50.0, (50.0,)), True),
        (ok(50.1), False),
        (ok(10.0, (10.0,) * 98 + (51.0,)), False),  # 99 gaps: the largest counts
        (ok(10.0, (10.0,) * 99 + (51.0,)), True),  # 100 gaps: one may be over
        (ok(10.0, (10.0,) * 98 + (51.0, 51.0)), False),
        (ok(10.0, ()), True),  # a single token has no gap
        (ok(status="timeout"), False),
        (ok(status="error"), False),
        (refused(), False),
    ],
)
def test_good_is_within_both_bounds(outcome: Outcome, good: bool) -> None:
    assert outcome.good(SLO) is good


def test_goodput_counts_good_requests_over_the_time_in_which_they_were_sent() -> None:
    parts = [
        Part([ok(), ok(99.0), refused(), ok(edge_class="slo")], 10.0, True),
        Part([ok(), ok(edge_class="slo", edge_route="local", ttft_ms=60.0)], 10.0, True),
    ]
    found = result("a", "rate", 0.5, "0.5/s", parts, SLO)
    assert (found.offered_rps, found.goodput_rps) == (0.3, 0.15)
    assert found.goodput_rps_by_round == [0.2, 0.1]
    assert (found.all.requests, found.all.good, found.all.good_share) == (6, 3, 0.5)
    assert found.statuses == {"ok": 5, "refused": 1}
    assert found.admitted is not None
    assert (found.admitted.requests, found.admitted.good) == (2, 1)
    assert (found.edge_class, found.edge_route) == ({"slo": 2}, {"local": 1})
    assert (found.tokens, found.busy_s, found.tokens_per_s) == (15, 4.0, 3.75)


def test_without_a_window_the_last_answer_ends_the_time() -> None:
    found = result("a", "concurrency", 2, "2 at once", [Part([ok(), ok(ended_s=4.0)], None, True)], SLO)
    assert (found.window_s, found.goodput_rps) == (4.0, 0.5)


def test_no_requests_are_no_crash() -> None:
    found = result("a", "rate", 0.1, "0.1/s", [Part([], 1.0, True)], SLO)
    assert (found.offered_rps, found.all.good_share, found.admitted) == (0.0, None, None)


def test_latencies_of_unfinished_requests_count_and_those_of_refused_ones_do_not() -> None:
    found = judge([ok(10.0, (5.0,)), ok(70.0, (500.0,), status="timeout"), refused()], SLO)
    assert (found.ttft.count, found.ttft.max_ms, found.itl.max_ms) == (2, 70.0, 500.0)


def a_report(name: str = "one") -> Report:
    names = (name, "two")
    outcomes = [ok(20.0 + n, (0.0, 1.0 * n, 60.0), edge_class="slo") for n in range(5)]
    outcomes += [refused(), Outcome(1, 0, 2, "error", detail="<b>broke</b>")]
    return Report(
        started="2026-01-01T00:00:00Z",
        seconds=12.0,
        interrupted=None,
        machine={"cpu": "some", "cores": 2},
        noise=Noise(before_ms=0.1, after_ms=2.0),
        slo={"ttft_ms": 50.0, "itl_ms": 50.0},
        workload={"kind": "rate", "seed": 5},
        targets=[
            TargetFacts(name=n, url="http://127.0.0.1:1/v1", model="m", api="chat", dropped_fields=[]) for n in names
        ],
        results=[
            result(n, "rate", rate, f"{rate:g}/s", [Part(outcomes, 10.0, True)], SLO)
            for rate in (0.5, 40.0)
            for n in names
        ],
    )


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    text = page(a_report())
    tags = Tags(text).tags
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in tags}
    assert not any(attributes.keys() & {"src", "href", "xlink:href", "onload", "style"} for _, attributes in tags)
    assert not re.search(r"url\(|@import", text)
    # measured addresses are shown as text; nothing else names a host
    assert set(re.findall(r"https?://[^\s<,]+", text)) == {"http://127.0.0.1:1/v1"}


def test_the_page_holds_every_level_and_server() -> None:
    text = page(a_report())
    figures = [attributes["aria-label"] for tag, attributes in Tags(text).tags if attributes.get("role") == "img"]
    assert len(figures) == 4 + 2 * 2  # against load, and two distributions at each of two levels
    assert text.count(">SLO 50 ms<") == 2 + 4
    assert "ideal: every request in time" in text
    for part in ("0.5/s", "40/s", "one", "two", "Admitted requests"):
        assert part in text


def test_the_page_escapes_what_servers_and_people_wrote() -> None:
    text = page(a_report(name="<script>alert(1)</script>"))
    assert "<script" not in text and "<b>" not in text
    assert "&lt;b&gt;broke&lt;/b&gt;" in text


def test_a_page_without_any_result_can_be_made() -> None:
    empty = a_report().model_copy(update={"results": [], "interrupted": "interrupted by Ctrl-C"})
    assert "Not complete: interrupted by Ctrl-C." in page(empty)


@pytest.mark.parametrize("slo_ms", [0.001, 50.0, 1e9])
def test_any_slo_can_be_drawn(slo_ms: float) -> None:
    report = a_report().model_copy(update={"slo": {"ttft_ms": slo_ms, "itl_ms": slo_ms}})
    nothing = [result("one", "rate", 1, "1/s", [Part([refused()], 1.0, True)], SLO)]
    for one in (report, report.model_copy(update={"results": nothing})):
        assert "</html>" in page(one)


def test_one_level_at_which_nothing_succeeded_can_be_shown() -> None:
    bad = [result("one", "concurrency", 1, "1 at once", [Part([refused()], None, True)], SLO)]
    text = page(a_report().model_copy(update={"results": bad}))
    assert "nan" not in text


def test_the_table_fits_100_columns() -> None:
    out = io.StringIO()
    report = a_report(name="a-long-name-of-a-server")
    busy = [r.model_copy(update={"load": "1024 at once", "goodput_rps": 1234.5}) for r in report.results[:2]]
    show(report.model_copy(update={"results": [*report.results, *busy]}), Console(file=out, width=100))
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 100
    (row,) = [line for line in text.splitlines() if line.startswith("40/s") and " two " in line][:1]
    assert row.split()[2:5] == ["0.70", "0.00", "0%"]
    assert "1024 at once" in text and "1234.50" in text
    assert "1 times: <b>broke</b>" in text


def test_json_comes_back_as_the_same_report() -> None:
    report = a_report()
    assert Report.model_validate_json(report.model_dump_json()) == report
