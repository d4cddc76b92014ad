"""The shortlist beside a sort of everything: no token that a draw could fall on is missing."""

import numpy as np
import pytest

from edge.engine.llama.chain import Chain
from edge.engine.shortlist import Shortlist
from edge.messages import Sampling

NOTHING = np.empty(0, np.int64)
SIZES = (40, 1003, 32_000, 151_936)


def row_of(size: int, seed: int, *, rounded: bool = False) -> np.ndarray:
    """Random logits; rounded ones have many ties."""
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32) * 5
    return values.round() if rounded else values


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 40, 1024])
@pytest.mark.parametrize("share", [None, 0.99, 0.5, 0.01])
@pytest.mark.parametrize("rounded", [False, True])
def test_candidates_hold_the_best_of_the_allowed(size: int, count: int, share: float | None, rounded: bool) -> None:
    logits = row_of(size, count, rounded=rounded)
    if share is not None and share < 1:
        allowed = np.random.default_rng(7).random(size) < share
        allowed[-1] = True
        allowed[np.argsort(-logits)[: count // 2]] = False  # what is likely is forbidden, as at a brace or a comma
    else:
        allowed = None
    found = Shortlist(size).candidates(logits, count, NOTHING, allowed)
    pool = logits if allowed is None else logits[allowed]
    best = np.sort(pool)[::-1][:count]
    assert (np.sort(logits[found])[::-1][: len(best)] == best).all()
    assert (np.diff(found) > 0).all()
    assert allowed is None or allowed[found].all()


def test_few_candidates_come_of_a_large_vocabulary() -> None:
    assert len(Shortlist(151_936).candidates(row_of(151_936, 3), 1024, NOTHING, None)) < 1500


def test_touched_tokens_are_candidates_unless_they_are_forbidden() -> None:
    logits, allowed = row_of(151_936, 4), np.ones(151_936, np.bool_)
    worst = np.argsort(logits)[:3]
    allowed[worst[0]] = False
    found = set(Shortlist(151_936).candidates(logits, 40, worst, allowed).tolist())
    assert worst[0] not in found
    assert {int(worst[1]), int(worst[2])} <= found


@pytest.mark.parametrize("size", SIZES)
def test_top_and_total_are_those_of_the_whole_row(size: int) -> None:
    logits, shortlist = row_of(size, 5), Shortlist(size)
    assert shortlist.top(logits, 20).tolist() == np.argsort(-logits)[:20].tolist()
    wide = logits.astype(np.float64)
    assert shortlist.log_total(logits) == pytest.approx(float(np.log(np.exp(wide).sum())), abs=1e-4)


@pytest.mark.parametrize("share", [0.5, 0.01])
def test_largest_is_the_largest_of_the_allowed(share: float) -> None:
    logits = row_of(151_936, 6)
    allowed = np.random.default_rng(8).random(151_936) < share
    allowed[logits.argmax()] = False
    assert Shortlist(151_936).largest(logits, allowed) == np.where(allowed, logits, -np.inf).argmax()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(seed=1),
        Sampling(top_k=40, top_p=0.9, seed=2),
        Sampling(top_p=0.5, temperature=2.0, seed=3),
        Sampling(min_p=0.01, temperature=1.5, seed=4),
        Sampling(seed=5, repeat_penalty=1.3, presence_penalty=2.0, frequency_penalty=2.0),
        Sampling(seed=6, presence_penalty=-2.0, frequency_penalty=-2.0, temperature=2.0),
        Sampling(temperature=0.0, presence_penalty=2.0),
        Sampling(seed=7, logit_bias={9: 100.0, 11: -100.0, 151_000: 30.0}, top_k=3),
        Sampling(temperature=0.0, logit_bias={9: 5.0, 10: float("-inf")}, frequency_penalty=1.0),
    ],
    ids=repr,
)
def test_a_seed_draws_from_the_shortlist_what_it_draws_from_the_whole_vocabulary(sampling: Sampling) -> None:
    size, everything = 151_936, np.arange(151_936)
    logits, shortlist = row_of(size, 9), Shortlist(size)
    short, whole = Chain(size, sampling, seed=sampling.seed or 0), Chain(size, sampling, seed=sampling.seed or 0)
    for _ in range(100):
        tokens = shortlist.candidates(logits, short.wanted, short.touched, None)
        drawn = short.pick(tokens, logits[tokens])
        assert drawn == whole.pick(everything, logits)
        short.accept(drawn)
        whole.accept(drawn)
    short.close()
    whole.close()
