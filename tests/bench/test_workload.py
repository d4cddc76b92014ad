"""Arrivals and prompts from a seed."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.bench.workload import MIXES, Load, Mix, closed_jobs, open_jobs, poisson_arrivals

RATE = Load("rate", 50.0)


def test_the_same_seed_gives_the_same_jobs_and_another_does_not() -> None:
    once = open_jobs(Mix(), 7, 0, RATE, 2.0)
    assert once == open_jobs(Mix(), 7, 0, RATE, 2.0)
    assert [job.at_s for job in once] != [job.at_s for job in open_jobs(Mix(), 8, 0, RATE, 2.0)]


@given(seed=st.integers(0, 10_000), rate=st.floats(0.1, 200))
def test_arrivals_rise_within_the_duration(seed: int, rate: float) -> None:
    arrivals = list(poisson_arrivals(random.Random(seed), rate, 3.0))
    assert arrivals == sorted(arrivals)
    assert all(0 < at_s < 3.0 for at_s in arrivals)


def test_arrivals_are_poisson() -> None:
    """Gaps of a Poisson process: mean 1/rate, and a standard deviation as large."""
    arrivals = list(poisson_arrivals(random.Random(1), 20.0, 1000.0))
    gaps = [b - a for a, b in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.05, rel=0.05)
    assert deviation == pytest.approx(0.05, rel=0.05)


def test_no_prompt_comes_twice_in_a_run() -> None:
    prompts = [
        job.messages[-1]["content"]
        for round_number, load in itertools.product(range(2), (RATE, Load("rate", 80.0)))
        for job in open_jobs(Mix(), 3, round_number, load, 1.0)
    ]
    prompts += [
        job.messages[-1]["content"] for job in itertools.islice(closed_jobs(Mix(), 3, 0, Load("concurrency", 2)), 50)
    ]
    assert len(set(prompts)) == len(prompts) > 200


def test_the_default_mix_shares_150_words_and_has_every_fifth_prompt_long() -> None:
    jobs = list(itertools.islice(closed_jobs(MIXES["mixed"], 3, 0, RATE), 10))
    assert len({job.messages[0]["content"] for job in jobs}) == 1
    assert jobs[0].messages[0]["role"] == "system"
    assert [len(job.messages[0]["content"].split()) for job in jobs] == [150] * 10
    assert [len(job.messages[1]["content"].split()) for job in jobs] == [20, 20, 20, 20, 300] * 2
    assert [job.long for job in jobs] == [False, False, False, False, True] * 2


def test_the_prefix_is_shared_between_levels_and_a_bare_prompt_begins_with_it() -> None:
    one = next(closed_jobs(Mix(), 3, 0, RATE))
    other = next(closed_jobs(Mix(), 3, 1, Load("concurrency", 4)))
    shared = one.messages[0]["content"]
    assert other.messages[0]["content"] == shared
    assert one.prompt.startswith(shared) and other.prompt.startswith(shared)


def test_a_plain_mix_has_no_system_message() -> None:
    jobs = list(itertools.islice(closed_jobs(MIXES["plain"], 3, 0, RATE), 10))
    assert all(len(job.messages) == 1 and not job.long for job in jobs)
