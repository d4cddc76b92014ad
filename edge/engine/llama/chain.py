"""A native sampler chain: one per answer, freed with it."""

from __future__ import annotations

import ctypes

import numpy as np
from llama_cpp import llama_cpp as ll

from edge.engine.llama.context import Context
from edge.messages import Sampling

TOP_K_WHEN_NONE_ASKED = 1024
"""A full sort of a 152,000-token vocabulary costs 2 to 23 ms a row; the tokens beyond the first 1,024 are cut off
instead."""

_PENALTY_WINDOW_TOKENS = 65_536

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Chain:
    """Penalties, logit bias, top-k, top-p, min-p, temperature and the draw, in libllama's order. Not thread-safe."""

    def __init__(self, vocabulary: int, sampling: Sampling, *, seed: int) -> None:
        self._handle = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        self.accepts = _has_penalties(sampling)
        for part in _parts(vocabulary, sampling, seed):
            ll.llama_sampler_chain_add(self._handle, part)

    def sample(self, context: Context, row: int) -> int:
        """Draw a token from a row's logits and accept it."""
        return int(ll.llama_sampler_sample(self._handle, context.handle, row))

    def pick(self, tokens: np.ndarray, logits: np.ndarray) -> int:
        """Draw from these candidates only (int[k], float32[k], k >= 1), without accepting."""
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
        """Tell the penalties about a token that `pick` drew."""
        if self.accepts:
            ll.llama_sampler_accept(self._handle, token)

    def close(self) -> None:
        """Free the native part."""
        if self._handle:
            ll.llama_sampler_free(self._handle)
            self._handle = None


def _has_penalties(sampling: Sampling) -> bool:
    return sampling.repeat_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _parts(vocabulary: int, sampling: Sampling, seed: int) -> list[int]:
    parts: list[int] = []
    if sampling.logit_bias:
        biases = (ll.llama_logit_bias * len(sampling.logit_bias))(
            *[ll.llama_logit_bias(token, bias) for token, bias in sampling.logit_bias.items()]
        )
        parts.append(ll.llama_sampler_init_logit_bias(vocabulary, len(biases), biases))
    if _has_penalties(sampling):
        # The whole answer counts, as in OpenAI's definition; the prompt does not.
        strengths = (sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty)
        parts.append(ll.llama_sampler_init_penalties(vocabulary, _PENALTY_WINDOW_TOKENS, *strengths))
    if sampling.temperature <= 0.0:
        return [*parts, ll.llama_sampler_init_greedy()]
    top_k = sampling.top_k or TOP_K_WHEN_NONE_ASKED
    if top_k < vocabulary:
        parts.append(ll.llama_sampler_init_top_k(top_k))
    if sampling.top_p < 1.0:
        parts.append(ll.llama_sampler_init_top_p(sampling.top_p, 1))
    if sampling.min_p > 0.0:
        parts.append(ll.llama_sampler_init_min_p(sampling.min_p, 1))
    parts.append(ll.llama_sampler_init_temp(sampling.temperature))
    parts.append(ll.llama_sampler_init_dist(seed))
    return parts
