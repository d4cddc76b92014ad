"""Draws from real logits over 151,936 tokens, under grammars and without: exact, repeatable, and blind to what was not
written."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.make_gguf import SHAPES, write_model
from edge.dialects.tools import response_grammar
from edge.engine.grammar import GrammarCompiler, GrammarState
from edge.engine.llama.chain import Chain
from edge.engine.llama.context import Context, ContextShape
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.engine.sampler import BrokenLogits, TokenSampler
from edge.engine.shortlist import Shortlist
from edge.messages import Sampling

FEW = ({"type": "array", "items": {"type": "integer"}}, "[1")
THIRD = ({"type": "string", "pattern": "^[^etao]*$"}, '"b')
MOST = ({"type": "string"}, '"b')
ROW = 0
SAMPLINGS = [
    Sampling(seed=11, temperature=2.0),
    Sampling(seed=12, top_k=40, top_p=0.8),
    Sampling(seed=13, min_p=0.05, temperature=4.0),
    Sampling(seed=14, presence_penalty=2.0, frequency_penalty=1.0, temperature=3.0),
]


@dataclass
class Bed:
    """A model with a large vocabulary, a forward pass behind it, and what samplers share."""

    model: Model
    context: Context
    shortlist: Shortlist
    compiler: GrammarCompiler

    def forward(self) -> np.ndarray:
        """Fresh logits, flat enough that a draw can fall on many tokens."""
        self.context.forget(0)
        self.context.forward([700], [0], [0], [True])
        logits = self.context.logits(ROW)
        logits *= 0.1
        return logits

    def at(self, schema: dict[str, Any], text: str) -> GrammarState:
        """A grammar behind the beginning of an answer."""
        state = self.compiler.compile(response_grammar(schema))
        for token in self.model.vocabulary.tokenize(text, add_special=False, parse_special=False):
            assert state.allows(token)
            state.accept(token)
        return state

    def sampler(self, sampling: Sampling, grammar: GrammarState | None = None, **changes: Any) -> TokenSampler:
        """As the intake makes it."""
        options = {"index": 0, "ignore_eos": False, "top_logprobs": None, **changes}
        return TokenSampler(self.model.vocabulary, sampling, grammar=grammar, shortlist=self.shortlist, **options)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    path = Path(tmp_path_factory.mktemp("gguf")) / "tiny152k.gguf"
    write_model(path, SHAPES["tiny152k"], kind="f16")
    library = Library()
    model = Model(library, path, gpu_layers=0)
    context = Context(library, model, ContextShape(1, 64, 64, 1, False, "f16", "off"))
    bed = Bed(model, context, Shortlist(model.vocabulary.size), GrammarCompiler(model.vocabulary))
    bed.forward()
    yield bed
    context.close()
    model.close()


def draws(bed: Bed, sampler: TokenSampler, count: int) -> list[int]:
    return [sampler.draw(bed.context, ROW).token for _ in range(count)]


@pytest.mark.parametrize("place", [FEW, THIRD, MOST], ids=["few", "third", "most"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
def test_a_constrained_answer_is_drawn_as_if_the_vocabulary_held_the_allowed_tokens_only(
    bed: Bed, place: Any, sampling: Sampling
) -> None:
    sampler = bed.sampler(sampling, bed.at(*place))
    reference, logits = bed.at(*place), bed.context.logits(ROW)
    chain = Chain(bed.model.vocabulary.size, sampling, seed=sampling.seed or 0)
    for _ in range(40):
        allowed = np.flatnonzero(reference.mask())
        expected = chain.pick(allowed, logits[allowed])
        chain.accept(expected)  # the reference's penalties know of nothing but the answer
        reference.accept(expected)
        assert sampler.draw(bed.context, ROW).token == expected
        if expected in bed.model.vocabulary.end_tokens or reference.finished:
            break
    chain.close()


@pytest.mark.parametrize(("place", "top_k"), [(FEW, 40), (THIRD, 8)], ids=["few", "third"])
def test_constrained_draws_have_the_probabilities_of_the_mask_first(bed: Bed, place: Any, top_k: int) -> None:
    sampling, start, rounds = Sampling(seed=5, temperature=4.0, top_k=top_k, top_p=0.8), bed.at(*place), 6000
    logits, allowed = bed.context.logits(ROW).astype(np.float64), np.flatnonzero(start.mask())
    best = allowed[np.argsort(-logits[allowed])][:top_k]
    cut = np.exp(logits[best] - logits[best[0]])  # libllama applies the temperature after top_p
    cut = np.cumsum(cut / cut.sum())
    best = best[: int(np.searchsorted(cut, 0.8)) + 1]
    expected = np.exp((logits[best] - logits[best[0]]) / 4.0)
    expected /= expected.sum()
    sampler, counts = bed.sampler(sampling), dict.fromkeys(best.tolist(), 0)
    for _ in range(rounds):
        sampler.grammar = start.clone()
        counts[sampler.draw(bed.context, ROW).token] += 1  # a KeyError: drawn though it was cut off
    seen = np.array(list(counts.values()))
    deviation = (seen - rounds * expected) / np.sqrt(rounds * expected * (1 - expected) + 1e-9)
    assert len(best) > 1
    assert np.abs(deviation).max() < 4


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=repr)
@pytest.mark.parametrize("place", [None, FEW, MOST], ids=["free", "few", "most"])
def test_a_seed_repeats_its_answer_and_another_does_not(bed: Bed, sampling: Sampling, place: Any) -> None:
    def answer(index: int) -> list[int]:
        return draws(bed, bed.sampler(sampling, bed.at(*place) if place else None, index=index), 12)

    assert answer(0) == answer(0)
    assert len({tuple(answer(index)) for index in range(8)}) > 1


@pytest.mark.parametrize("place", [FEW, THIRD, MOST], ids=["few", "third", "most"])
def test_greedy_takes_the_most_likely_allowed_token(bed: Bed, place: Any) -> None:
    start, logits = bed.at(*place), bed.context.logits(ROW)
    expected = int(np.where(start.mask(), logits, -np.inf).argmax())
    assert draws(bed, bed.sampler(Sampling(temperature=0.0), start), 1) == [expected]


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45])
def test_the_coldest_draws_are_greedy(bed: Bed, temperature: float) -> None:
    best = int(bed.context.logits(ROW).argmax())
    assert draws(bed, bed.sampler(Sampling(temperature=temperature, seed=3)), 4) == [best] * 4


def test_a_draw_leaves_the_row_as_it_was(bed: Bed) -> None:
    before = bed.context.logits(ROW).copy()
    for place in (FEW, THIRD, MOST):
        for sampling in (*SAMPLINGS, Sampling(temperature=0.0)):
            draws(bed, bed.sampler(sampling, bed.at(*place), top_logprobs=5), 1)
    assert (bed.context.logits(ROW) == before).all()


def test_logprobs_are_those_of_the_unmasked_row(bed: Bed) -> None:
    logits = bed.context.logits(ROW).astype(np.float64)
    logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    drawn = bed.sampler(SAMPLINGS[0], bed.at(*FEW), top_logprobs=20).draw(bed.context, ROW)
    assert drawn.logprob is not None
    assert drawn.logprob.logprob == pytest.approx(logprobs[drawn.token], abs=1e-3)
    best = np.argsort(-logprobs)[:20]
    assert [piece for piece, _ in drawn.logprob.top] == [bed.model.vocabulary.marked_piece(int(t)) for t in best]
    assert [value for _, value in drawn.logprob.top] == pytest.approx(logprobs[best].tolist(), abs=1e-3)


def test_a_bias_holds_in_a_greedy_answer_that_must_not_end(bed: Bed) -> None:
    sampler = bed.sampler(Sampling(temperature=0.0, logit_bias={900: 1000.0}), ignore_eos=True)
    assert draws(bed, sampler, 2) == [900, 900]


def test_an_answer_that_must_not_end_does_not_though_the_end_is_likely(bed: Bed) -> None:
    logits = bed.forward()
    logits[list(bed.model.vocabulary.end_tokens)] = 1000.0
    for sampling in (*SAMPLINGS, Sampling(temperature=0.0)):
        drawn = draws(bed, bed.sampler(sampling, ignore_eos=True), 20)
        assert not bed.model.vocabulary.end_tokens & set(drawn)
    bed.forward()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [None, FEW, MOST], ids=["free", "few", "most"])
@pytest.mark.parametrize("sampling", [SAMPLINGS[0], SAMPLINGS[1]], ids=repr)
def test_a_row_with_what_is_no_number_is_reported(bed: Bed, broken: float, place: Any, sampling: Sampling) -> None:
    logits = bed.forward()
    logits[5000] = broken
    with pytest.raises(BrokenLogits):
        draws(bed, bed.sampler(sampling, bed.at(*place) if place else None), 1)
    bed.forward()


def test_a_forced_text_is_written_whatever_the_logits_say(bed: Bed) -> None:
    value = {"fixed": [1, 2, "x"]}
    sampler, text = bed.sampler(Sampling(seed=3), bed.at({"const": value}, "")), b""
    while sampler.grammar is not None and not sampler.grammar.finished:
        text += bed.model.vocabulary.piece(sampler.draw(bed.context, ROW).token)
    assert json.loads(text) == value
