"""Logits to token: greedy by argmax, anything else through the native chain, grammars by checking the drawn token
first."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.engine.llama.chain import Chain
from edge.engine.llama.context import Context
from edge.engine.llama.model import Vocabulary
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
    """Draws one answer's tokens. Owns the native chain and the grammar's state; `close` frees the chain."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        sampling: Sampling,
        *,
        index: int,
        grammar: GrammarState | None,
        ignore_eos: bool,
        top_logprobs: int | None,
    ) -> None:
        self._vocabulary = vocabulary
        self.grammar = grammar
        self._top_logprobs = top_logprobs
        self._everything = np.arange(vocabulary.size) if grammar is not None else np.empty(0, np.int64)
        self._end = np.fromiter(sorted(vocabulary.end_tokens), np.int64) if ignore_eos else None
        if self._end is not None:
            banned = dict.fromkeys(vocabulary.end_tokens, float("-inf"))
            sampling = _with_bias(sampling, banned)
        plain = sampling.temperature <= 0.0 and not _reshapes(sampling, ignore_eos)
        self._chain = None if plain else Chain(vocabulary.size, sampling, seed=_seed(sampling, index))

    def draw(self, context: Context, row: int) -> Draw:
        """Sample from a row of the last forward pass. Raises BrokenLogits."""
        logits = context.logits(row)
        grammar = self.grammar
        if grammar is None or not grammar.active:
            token = self._free(context, row, logits)
            if self._chain is None and not np.isfinite(logits[token]):
                raise BrokenLogits
        else:
            token = self._constrained(grammar, logits)
        if grammar is not None:
            grammar.accept(token)
        return Draw(token, self._logprob(logits, token))

    def close(self) -> None:
        """Free the native chain."""
        if self._chain is not None:
            self._chain.close()

    def _free(self, context: Context, row: int, logits: np.ndarray) -> int:
        if self._chain is not None:
            return self._chain.sample(context, row)
        token = int(logits.argmax())
        if self._end is not None and token in self._vocabulary.end_tokens:
            allowed = logits.copy()
            allowed[self._end] = -np.inf
            token = int(allowed.argmax())
        return token

    def _constrained(self, grammar: GrammarState, logits: np.ndarray) -> int:
        """Draw freely, keep the token if the grammar allows it, else draw among those allowed.

        The result is distributed as if the mask had been applied first: a rejected draw leaves exactly the
        renormalised rest.
        """
        token = self._pick(self._everything, logits)
        if not grammar.allows(token):
            allowed = np.flatnonzero(grammar.mask())
            token = self._pick(allowed, logits[allowed])
        if not np.isfinite(logits[token]):
            raise BrokenLogits
        if self._chain is not None:
            self._chain.accept(token)
        return token

    def _pick(self, tokens: np.ndarray, logits: np.ndarray) -> int:
        if self._chain is not None:
            return self._chain.pick(tokens, logits)
        return int(tokens[int(logits.argmax())])

    def _logprob(self, logits: np.ndarray, token: int) -> TokenLogprob | None:
        if self._top_logprobs is None:
            return None
        shifted = logits - logits.max()
        normaliser = float(np.log(np.exp(shifted).sum()))
        top: tuple[tuple[bytes, float], ...] = ()
        if count := min(self._top_logprobs, len(logits)):
            best = np.argpartition(shifted, -count)[-count:]
            best = best[np.argsort(shifted[best])[::-1]]
            top = tuple((self._vocabulary.marked_piece(int(t)), float(shifted[t]) - normaliser) for t in best)
        return TokenLogprob(self._vocabulary.marked_piece(token), float(shifted[token]) - normaliser, top)


def _seed(sampling: Sampling, index: int) -> int:
    start = sampling.seed if sampling.seed is not None else secrets.randbits(32)
    return (start + index) % (1 << 32)


def _reshapes(sampling: Sampling, ignore_eos: bool) -> bool:
    """Whether a greedy request needs more than argmax."""
    biased = len(sampling.logit_bias) > 0 and not ignore_eos
    penalised = sampling.repeat_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    return biased or penalised


def _with_bias(sampling: Sampling, extra: dict[int, float]) -> Sampling:
    return Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repeat_penalty=sampling.repeat_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias={**sampling.logit_bias, **extra},
        seed=sampling.seed,
    )
