"""One vector for each of several texts: a context that keeps nothing between passes. One thread runs it.

Encoders (BERT and its kin) have no memory at all and attend over the whole pass; decoders get their cells back before each.
Either way a pass takes all its tokens at a time: the library pools over what one physical batch holds.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as ll

from edge.engine.llama.batch import Batch
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.errors import DoesNotFit

Vectors = npt.NDArray[np.float32]
PooledBy = Literal["none", "mean", "cls", "last", "rank"]

_BY_NUMBER: dict[int, PooledBy] = {
    ll.LLAMA_POOLING_TYPE_NONE: "none",
    ll.LLAMA_POOLING_TYPE_MEAN: "mean",
    ll.LLAMA_POOLING_TYPE_CLS: "cls",
    ll.LLAMA_POOLING_TYPE_LAST: "last",
    ll.LLAMA_POOLING_TYPE_RANK: "rank",
}
_NUMBERS = {name: number for number, name in _BY_NUMBER.items()}
MOST_TEXTS = 64
"""In one pass. The library takes 256; more than these make no pass quicker."""


class PassFailed(Exception):
    """The library computed nothing. `no_memory`: an allocation failed."""

    def __init__(self, status: int) -> None:
        super().__init__(f"libllama returned {status}")
        self.no_memory = status == -2


class Embedder:
    """Texts' vectors, or pairs' scores. Raises DoesNotFit when there is no memory for so many tokens."""

    def __init__(
        self,
        library: Library,
        model: Model,
        *,
        most_tokens: int,
        most_texts: int,
        threads: int,
        pooling: PooledBy | None = None,
    ) -> None:
        """`pooling` None: as the file says. `most_tokens`: of all texts of a pass together."""
        self.most_tokens, self.most_texts = most_tokens, min(most_texts, MOST_TEXTS)
        params = ll.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = params.n_outputs_max = most_tokens
        params.n_seq_max = self.most_texts
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.kv_unified = True  # else each text has cells for the longest one
        params.no_perf = True
        if pooling is not None:
            params.pooling_type = _NUMBERS[pooling]
        library.forget_log()
        self._handle = ll.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise DoesNotFit(
                f"no memory for passes of {most_tokens:,} tokens: {library.complaint or 'libllama gave no reason'}"
            )
        self.buffer_bytes = sum(library.buffer_bytes(kind) for kind in ("KV", "compute", "output"))
        self.pooling: PooledBy = _BY_NUMBER.get(ll.llama_pooling_type(self._handle), "none")
        ranks = self.pooling == "rank"
        self.width = int(ll.llama_model_n_cls_out(model.handle) if ranks else ll.llama_model_n_embd_out(model.handle))
        self._memory = ll.llama_get_memory(self._handle)
        self._batch = Batch(most_tokens)
        self._threads = threads

    def vectors(self, texts: Sequence[Sequence[int]]) -> Vectors:
        """float32[texts, width], as the model gives them: not brought to any length. Raises PassFailed."""
        total = sum(len(text) for text in texts)
        if not 0 < len(texts) <= self.most_texts or not 0 < total <= self.most_tokens or not all(texts):
            raise ValueError(
                f"{len(texts)} texts of {total} tokens; a pass takes {self.most_texts} of {self.most_tokens}"
            )
        tokens = [token for text in texts for token in text]
        places = [place for text in texts for place in range(len(text))]
        numbers = [number for number, text in enumerate(texts) for _ in text]
        batch = self._batch.fill(tokens, places, numbers, [True] * total)
        if self._memory:
            ll.llama_memory_clear(self._memory, False)
        run = ll.llama_decode if self._memory else ll.llama_encode
        if (status := run(self._handle, batch)) != 0:
            raise PassFailed(status)
        return np.stack([self._vector(number) for number in range(len(texts))])

    def use_threads(self, threads: int) -> None:
        """CPU threads of the passes that follow."""
        if threads != self._threads:
            self._threads = threads
            ll.llama_set_n_threads(self._handle, threads, threads)

    def _vector(self, number: int) -> Vectors:
        pointer = ll.llama_get_embeddings_seq(self._handle, number)
        if not pointer:
            raise PassFailed(-1)
        address = ctypes.cast(pointer, ctypes.c_void_p).value or 0
        return np.ctypeslib.as_array((ctypes.c_float * self.width).from_address(address)).copy()

    def close(self) -> None:
        """Free cells and buffers."""
        if self._handle:
            ll.llama_free(self._handle)
            self._handle = None
