"""A native sampler chain: one per answer, freed with it."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as ll

from edge.messages import Sampling

MOST_TOP_K = 1024
"""A full sort of a 152,000-token vocabulary costs 2 to 23 ms a row, which all other streams would wait for; the tokens beyond
the first 1,024 are cut off instead, whatever top_k was asked for."""

_COLDEST = 1e-6
"""Divided by less, logits become infinite, and any token is drawn."""

_PENALTY_WINDOW_TOKENS = 65_536

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Chain:
    """Penalties, logit bias, top-k, top-p, min-p, temperature and the draw, in libllama's order. Not thread-safe.

    It need not see the whole vocabulary: `wanted` best tokens and those in `touched` decide every draw.
    """

    def __init__(self, vocabulary: int, sampling: Sampling, *, seed: int) -> None:
        self._handle = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        self._penalises = has_penalties(sampling)
        self._keeps = 1 if sampling.temperature <= 0.0 else _top_k(sampling)
        self._touched = np.fromiter(sampling.logit_bias, np.int64)
        self._touched_count = len(self._touched)
        self._known = set(sampling.logit_bias)
        for part in _parts(vocabulary, sampling, seed):
            ll.llama_sampler_chain_add(self._handle, part)

    @property
    def touched(self) -> npt.NDArray[np.int64]:
        """Tokens whose logits the chain changes before it sorts: int64[n], a view."""
        return self._touched[: self._touched_count]

    @property
    def wanted(self) -> int:
        """How many of the best untouched logits can matter: a token that stays among the first k after the changes was
        among the first k + n before, n tokens being touched."""
        return self._keeps + self._touched_count

    def pick(self, tokens: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> int:
        """Draw from these candidates (int64[k], float32[k], k >= 1), without accepting."""
        candidates = np.empty(len(tokens), _CANDIDATE)
        candidates["id"] = tokens
        candidates["logit"] = logits
        candidates["p"] = 0.0
        array = ll.llama_token_data_array(
            data=ctypes.cast(candidates.ctypes.data, ll.llama_token_data_p), size=len(tokens), selected=-1, sorted=False
        )
        ll.llama_sampler_apply(self._handle, ctypes.byref(array))
        return int(array.data[array.selected].id)

    def accept(self, token: int) -> None:
        """Tell the penalties about a token that the answer got."""
        if not self._penalises:
            return
        ll.llama_sampler_accept(self._handle, token)
        if token in self._known:
            return
        self._known.add(token)
        if self._touched_count == len(self._touched):
            self._touched = np.concatenate([self._touched, np.empty(max(64, self._touched_count), np.int64)])
        self._touched[self._touched_count] = token
        self._touched_count += 1

    def close(self) -> None:
        """Free the native part."""
        if self._handle:
            ll.llama_sampler_free(self._handle)
            self._handle = None


def has_penalties(sampling: Sampling) -> bool:
    """Whether what was written changes what comes."""
    return sampling.repeat_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _top_k(sampling: Sampling) -> int:
    return min(sampling.top_k or MOST_TOP_K, MOST_TOP_K)


def _parts(vocabulary: int, sampling: Sampling, seed: int) -> list[int]:
    parts: list[int] = []
    if sampling.logit_bias:
        biases = (ll.llama_logit_bias * len(sampling.logit_bias))(
            *[ll.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias.items()]
        )
        parts.append(ll.llama_sampler_init_logit_bias(vocabulary, len(biases), biases))
    if has_penalties(sampling):
        # The whole answer counts, as in OpenAI's definition; the prompt does not.
        strengths = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        parts.append(ll.llama_sampler_init_penalties(vocabulary, _PENALTY_WINDOW_TOKENS, *strengths))
    if sampling.temperature <= 0.0:
        return [*parts, ll.llama_sampler_init_greedy()]
    if (top_k := _top_k(sampling)) < vocabulary:
        parts.append(ll.llama_sampler_init_top_k(top_k))
    if sampling.top_p < 1.0:
        parts.append(ll.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        parts.append(ll.llama_sampler_init_min_p(sampling.min_p, 1))
    parts.append(ll.llama_sampler_init_temp(max(sampling.temperature, _COLDEST)))
    parts.append(ll.llama_sampler_init_dist(seed))
    return parts
