"""What a node's reports say in a few figures."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from edge.control.figures import WINDOW_S, Counts, Window, read_counts
from edge.telemetry.histogram import Histogram
from edge.telemetry.records import Envelope, Record, Sample, payload
from edge.telemetry.stamp import Stamp

S = 1_000_000_000


def report(**more: Any) -> dict[str, Any]:
    """A real payload, as the uplink makes it."""
    gaps = Histogram()
    for _ in range(100):
        gaps.observe(0.01)
    sample = Sample(
        0,
        {
            ("edge_admission", (("decision", "admitted"), ("reason", ""))): 40.0,
            ("edge_admission", (("decision", "fleet"), ("reason", "slots"))): 10.0,
            ("edge_slo_violations", (("kind", "ttft"),)): 2.0,
            ("edge_slo_violations", (("kind", "itl"),)): 1.0,
        },
        {
            ("edge_model_ready", (("model", "b"),)): [1.0, 1.0, 1.0],
            ("edge_model_ready", (("model", "a"),)): [1.0, 1.0, 1.0],
            ("edge_model_ready", (("model", "away"),)): [0.0, 0.0, 0.0],
        },
        {("gen_ai.server.time_per_output_token", (("gen_ai.response.model", "a"),)): gaps},
    )
    record = Record("b1", 1, "metrics", Stamp(5 * S, 5 * S, "k", True), sample.packed(), S)
    return orjson.loads(payload(record, Envelope("n", 1, False)))  # type: ignore[no-any-return]


def test_a_real_payload_is_read() -> None:
    assert read_counts(report()) == Counts(40, 10, 50, 2, 1, 100, ("a", "b"))


def test_shares_are_over_what_came_in_the_window() -> None:
    window = Window()
    window.add("b1", 0.0, Counts(admitted=100, fleet=50, decided=200, late_first=90, models=("m",)))
    assert window.figures()["slo_attainment"] == pytest.approx(0.1), "of one report: all since the boot"
    window.add(
        "b1", 15.0, Counts(admitted=110, fleet=50, decided=220, late_first=91, gaps=1000, late_gaps=5, models=("m",))
    )
    found = window.figures()
    assert found["slo_attainment"] == pytest.approx(0.9) and found["fallback_rate"] == 0.0 and found["requests"] == 20


def test_the_worse_of_first_tokens_and_gaps_counts() -> None:
    window = Window()
    window.add("b1", 0.0, Counts())
    window.add("b1", 15.0, Counts(admitted=10, decided=10, gaps=100, late_gaps=20))
    assert window.figures()["slo_attainment"] == pytest.approx(0.8)


def test_another_boot_and_an_hour_begin_anew() -> None:
    window = Window()
    window.add("b1", 0.0, Counts(admitted=5, decided=5, late_first=5))
    window.add("b2", 10.0, Counts(admitted=1, decided=1))
    assert window.figures()["slo_attainment"] == 1.0
    window.add("b2", 11.0 + WINDOW_S, Counts(admitted=3, decided=4))
    window.add("b2", 20.0 + WINDOW_S, Counts(admitted=4, decided=6))
    assert window.figures()["requests"] == 2


def test_a_window_of_many_reports_says_the_same_and_stays_small() -> None:
    window, step_s, last = Window(), 5.0, 2000
    for number in range(last + 1):
        window.add(
            "b1", number * step_s, Counts(admitted=number, decided=2 * number, fleet=number, gaps=10, late_gaps=number)
        )
    assert len(window.reports) < 150
    found = window.figures()
    assert found["fallback_rate"] == pytest.approx(0.5) and found["slo_attainment"] == pytest.approx(0.9)
    assert found["requests"] == pytest.approx(2 * WINDOW_S / step_s, rel=0.05)


def test_nothing_judged_is_no_share() -> None:
    window = Window()
    assert window.figures() == {}
    window.add("b1", 0.0, Counts())
    assert "slo_attainment" not in window.figures() and "fallback_rate" not in window.figures()
