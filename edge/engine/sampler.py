"""Logits to token: greedy by argmax, anything else through the native chain, which is given only what it can draw.

A grammar's mask comes first: the chain cuts off and draws among the tokens that are allowed. So an answer is distributed
over them whatever else was likely, one token costs one random number, and penalties see only what was written.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.engine.llama.chain import Chain, has_penalties
from edge.engine.llama.context import Context
from edge.engine.llama.model import Vocabulary
from edge.engine.shortlist import Shortlist
from edge.messages import Sampling, TokenLogprob

if TYPE_CHECKING:
    from edge.engine.grammar import GrammarState


class BrokenLogits(Exception):
    """The model produced no finite number: damaged weights, or an overflow on the device."""


@dataclass(frozen=True, slots=True)
class Draw:
    """A sampled token, its log-probability if asked for."""

    token: int
    logprob: TokenLogprob | None


class TokenSampler:
    """Draws one answer's tokens. Owns the native chain and the grammar's state; `close` frees the chain.

    `shortlist` is shared by all samplers of a loop.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        sampling: Sampling,
        *,
        index: int,
        grammar: GrammarState | None,
        ignore_eos: bool,
        top_logprobs: int | None,
        shortlist: Shortlist,
    ) -> None:
        self._vocabulary = vocabulary
        self.grammar = grammar
        self._top_logprobs = top_logprobs
        self._shortlist = shortlist
        self._end = np.fromiter(sorted(vocabulary.end_tokens), np.int64) if ignore_eos else None
        plain = sampling.temperature <= 0.0 and not sampling.logit_bias and not has_penalties(sampling)
        if ignore_eos:
            banned = dict.fromkeys(vocabulary.end_tokens, float("-inf"))
            sampling = msgspec.structs.replace(sampling, logit_bias={**sampling.logit_bias, **banned})
        self._chain = None if plain else Chain(vocabulary.size, sampling, seed=_seed(sampling, index))

    def draw(self, context: Context, row: int) -> Draw:
        """Sample from a row of the last forward pass. Raises BrokenLogits, GrammarFailed."""
        logits = context.logits(row)
        grammar = self.grammar
        active = grammar if grammar is not None and grammar.active else None
        token = self._greedy(active, logits) if self._chain is None else self._drawn(self._chain, active, logits)
        if not np.isfinite(logits[token]):
            raise BrokenLogits
        if grammar is not None:
            grammar.accept(token)
        return Draw(token, self._logprob(logits, token))

    def close(self) -> None:
        """Free the native chain."""
        if self._chain is not None:
            self._chain.close()

    def _greedy(self, grammar: GrammarState | None, logits: np.ndarray) -> int:
        token = int(logits.argmax())
        if grammar is not None and not grammar.allows(token):  # else the best of all is the best of the allowed
            token = self._best(logits, grammar.mask())
        elif self._end is not None and token in self._vocabulary.end_tokens:
            allowed = np.ones(len(logits), np.bool_)
            allowed[self._end] = False
            token = self._best(logits, allowed)
        return token

    def _best(self, logits: np.ndarray, allowed: np.ndarray) -> int:
        token = self._shortlist.largest(logits, allowed)
        if not allowed[token]:  # the allowed are all impossible
            raise BrokenLogits
        return token

    def _drawn(self, chain: Chain, grammar: GrammarState | None, logits: np.ndarray) -> int:
        if not np.isfinite(logits.max()):  # not a number comes out as the maximum, and would confuse every comparison
            raise BrokenLogits
        allowed = grammar.mask() if grammar is not None else None
        tokens = self._shortlist.candidates(logits, chain.wanted, chain.touched, allowed)
        token = chain.pick(tokens, logits[tokens])
        chain.accept(token)
        return token

    def _logprob(self, logits: np.ndarray, token: int) -> TokenLogprob | None:
        if self._top_logprobs is None:
            return None
        total = self._shortlist.log_total(logits)
        best = self._shortlist.top(logits, self._top_logprobs) if self._top_logprobs else ()
        top = tuple((self._vocabulary.marked_piece(int(t)), float(logits[t]) - total) for t in best)
        return TokenLogprob(self._vocabulary.marked_piece(token), float(logits[token]) - total, top)


def _seed(sampling: Sampling, index: int) -> int:
    start = sampling.seed if sampling.seed is not None else secrets.randbits(32)
    return (start + index) % (1 << 32)
