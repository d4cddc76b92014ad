"""Exponential histograms: where values fall, what merging keeps."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.telemetry.histogram import MAX_BUCKETS, Histogram, merged

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300)


def of(numbers: list[float]) -> Histogram:
    found = Histogram()
    for number in numbers:
        found.observe(number)
    return found


@given(values)
def test_every_value_lies_in_its_bucket_and_buckets_are_few(numbers: list[float]) -> None:
    found = of(numbers)
    assert found.count == len(numbers) == sum(found.buckets.values())
    assert max(found.buckets) - min(found.buckets) < MAX_BUCKETS
    base = 2.0 ** (2.0**-found.scale)
    low, high = base ** min(found.buckets), base ** (max(found.buckets) + 1)
    assert low <= min(numbers) * (1 + 1e-9) and max(numbers) <= high * (1 + 1e-9)


@pytest.mark.parametrize("exponent", range(-20, 20))
def test_a_power_of_two_is_the_upper_bound_of_its_bucket(exponent: int) -> None:
    found = of([2.0**exponent])
    while found.scale > -2:
        (index,) = found.buckets
        assert (index + 1) * 2.0**-found.scale >= exponent > index * 2.0**-found.scale
        found._coarsen(1)


@given(values, values)
def test_merging_is_as_if_all_had_been_counted_in_one(first: list[float], second: list[float]) -> None:
    together, apart = of(first + second), merged([of(first), of(second)])
    assert apart.count == together.count
    assert (apart.least, apart.greatest) == (together.least, together.greatest)
    assert apart.total == pytest.approx(together.total)
    while together.scale > apart.scale:
        together._coarsen(1)
    while apart.scale > together.scale:
        apart._coarsen(1)
    assert apart.buckets == together.buckets


@given(values)
def test_what_is_packed_or_sent_comes_back_whole(numbers: list[float]) -> None:
    found = of([*numbers, 0.0])
    for again in (Histogram.unpacked(found.packed()), Histogram.from_otlp(found.otlp())):
        assert (again.scale, again.buckets, again.zeros, again.count) == (
            found.scale, found.buckets, found.zeros, found.count,
        )  # fmt: skip
        assert (again.least, again.greatest, again.total) == (found.least, found.greatest, found.total)


def test_quantiles_are_within_a_twentieth() -> None:
    draw = random.Random(1)
    numbers = sorted(draw.lognormvariate(-3, 1.5) for _ in range(20_000))
    found = of(numbers)
    for share in (0.5, 0.9, 0.99, 0.999):
        assert found.quantile(share) == pytest.approx(numbers[int(share * len(numbers)) - 1], rel=0.05)


def test_nothing_and_nonsense() -> None:
    found = of([math.nan, math.inf, -1.0])
    assert found.count == 0 and math.isnan(found.quantile(0.5))
    assert Histogram.unpacked(found.packed()).count == 0
    assert "min" not in found.otlp()
    assert of([0.0, 0.0]).quantile(0.5) == 0.0


_ANY = st.one_of(
    st.floats(1e-4, 10),
    st.floats(),
    st.sampled_from([0.0, -1.0, 0.25, 1.0, 2.0, math.nextafter(1, 2), math.nextafter(1, 0)]),
)


@given(st.lists(st.lists(_ANY, max_size=200), max_size=3))
def test_several_at_once_are_as_one_by_one(batches: list[list[float]]) -> None:
    one_by_one, at_once = Histogram(), Histogram()
    for batch in batches:
        for number in batch:
            one_by_one.observe(number)
        at_once.observe_all(batch)
    assert at_once.packed() == one_by_one.packed() and at_once.count == one_by_one.count
