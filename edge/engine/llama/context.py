"""KV cells and forward passes of one model.

Sequence ids are slot numbers 0..slots-1; in the unified layout ids above them hold saved prefixes, which costs a graph
nothing. All calls come from one thread, the engine loop's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as ll

from edge.engine.llama.batch import Batch
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.errors import DoesNotFit
from edge.messages import KvType

_KV_TYPES = {"f16": ll.GGML_TYPE_F16, "q8_0": ll.GGML_TYPE_Q8_0, "q4_0": ll.GGML_TYPE_Q4_0}
_FLASH = {
    "auto": ll.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": ll.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": ll.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}


Logits = npt.NDArray[np.float32]

_logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(
    ctypes.cast(ll.llama_get_logits_ith, ctypes.c_void_p).value or 0
)
"""llama_get_logits_ith, giving the address as a number."""


_SEQUENCE_IDS = 256
"""What libllama's memory operations accept in the unified layout."""


class Saved:
    """Cells of a slot, kept outside the slots: a copy in host memory, or a hidden sequence that shares them."""

    __slots__ = ("holder", "size_bytes", "state")

    def __init__(self, size_bytes: int, *, state: npt.NDArray[np.uint8] | None = None, holder: int = -1) -> None:
        self.size_bytes = size_bytes
        self.state = state
        self.holder = holder


class CellsExhausted(Exception):
    """No free KV cells for this batch; the memory is as it was before."""


class ForwardFailed(Exception):
    """The forward pass failed. `fatal`: the context cannot be trusted any more, the process should end. `no_memory`: an
    allocation failed."""

    def __init__(self, status: int) -> None:
        super().__init__(f"llama_decode returned {status}")
        self.fatal = status not in (-1, 2)
        self.no_memory = status == -2


@dataclass(frozen=True, slots=True)
class ContextShape:
    """How a context is laid out. `chunk_tokens` is the longest batch of one forward pass."""

    slots: int
    context_tokens: int
    chunk_tokens: int
    threads: int
    unified: bool
    kv_type: KvType
    flash_attention: Literal["auto", "on", "off"]
    outputs: int = 0
    """Rows of one pass that may keep their logits; 0: one for each slot."""


class Context:
    """Slots with their cells, and `forward`. Raises DoesNotFit when the memory does not suffice.

    `observer` is shown the graph's nodes while they are computed: (address, ask) -> whether it is wanted, or to go on.
    """

    def __init__(
        self,
        library: Library,
        model: Model,
        shape: ContextShape,
        observer: Callable[[int, bool], bool] | None = None,
    ) -> None:
        self.shape = shape
        self.rows_limit = max(shape.chunk_tokens, shape.slots)
        params = ll.llama_context_default_params()
        params.n_ctx = shape.context_tokens * shape.slots
        params.n_batch = params.n_ubatch = self.rows_limit
        params.n_seq_max = shape.slots
        params.n_outputs_max = self._outputs = shape.outputs or shape.slots
        params.n_threads = params.n_threads_batch = self._threads = shape.threads
        params.kv_unified = shape.unified
        params.flash_attn_type = _FLASH[shape.flash_attention]
        params.type_k = params.type_v = _KV_TYPES[shape.kv_type]
        params.no_perf = True
        if observer is not None:
            seen = observer
            self._observer = ll.ggml_backend_sched_eval_callback(lambda node, ask, _: seen(node, ask))
            params.cb_eval = self._observer
        library.forget_log()
        self._handle = ll.llama_init_from_model(model.handle, params)
        if not self._handle:
            wish = f"{shape.slots} slots of {shape.context_tokens} tokens"
            raise DoesNotFit(
                f"no memory for {wish}: {library.complaint or 'libllama gave no reason'}; "
                "lower engine.slots or engine.context_tokens"
            )
        self.kv_bytes = library.buffer_bytes("KV")
        self.compute_bytes = library.buffer_bytes("compute") + library.buffer_bytes("output")
        self._memory = ll.llama_get_memory(self._handle)
        self._vocabulary = model.vocabulary.size
        self._batch = Batch(self.rows_limit)
        self._views: dict[int, Logits] = {}
        self._free_holders = list(range(shape.slots, _SEQUENCE_IDS)) if shape.unified else []

    @property
    def handle(self) -> int:
        """libllama's pointer."""
        return self._handle  # type: ignore[no-any-return]

    def forward(
        self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int], outputs: Sequence[bool]
    ) -> None:
        """Run the model over rows (token, position, slot); logits are kept for rows with `outputs` true.

        All four have the same length, 1..rows_limit; at most one output per slot, unless the shape grants more. Raises
        CellsExhausted, ForwardFailed.
        """
        rows = len(tokens)
        if not 0 < rows <= self.rows_limit:
            raise ValueError(f"{rows} rows; the context takes 1 to {self.rows_limit}")
        if sum(outputs) > self._outputs:
            raise ValueError(f"{sum(outputs)} outputs; the context keeps {self._outputs}")
        status = ll.llama_decode(self._handle, self._batch.fill(tokens, positions, slots, outputs))
        if status == 1:
            raise CellsExhausted
        if status != 0:
            raise ForwardFailed(status)

    def use_threads(self, threads: int) -> None:
        """CPU threads of the passes that follow."""
        if threads != self._threads:
            self._threads = threads
            ll.llama_set_n_threads(self._handle, threads, threads)

    def logits(self, row: int) -> Logits:
        """Logits of a row of the last forward pass: float32[vocabulary], a view that the next pass overwrites."""
        address = _logits_address(self._handle, row)
        if not address:
            raise ValueError(f"row {row} kept no logits")
        view = self._views.get(address)  # the library's buffer stays where it is; making a view costs 40 us
        if view is None:
            view = np.ctypeslib.as_array((ctypes.c_float * self._vocabulary).from_address(address))
            self._views[address] = view
        return view

    def forget(self, slot: int, from_position: int = 0) -> bool:
        """Free a slot's cells from a position on. False when the model's memory cannot do that (only for positions >
        0)."""
        return bool(ll.llama_memory_seq_rm(self._memory, slot, from_position, -1))

    def copy(self, source: int, target: int) -> None:
        """Make `target`'s memory equal to `source`'s, all of it; the target's own is dropped first."""
        self.forget(target)
        ll.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def save(self, slot: int, tokens: int) -> Saved | None:
        """Keep a slot's first `tokens` cells: in the unified layout shared at no cost, else all of the slot's as a copy in
        host memory. None if nothing more can be kept."""
        if self.shape.unified:
            if not self._free_holders:
                return None
            holder = self._free_holders.pop()
            ll.llama_memory_seq_cp(self._memory, slot, holder, 0, tokens)
            return Saved(tokens * self.cell_bytes, holder=holder)
        size = self.saved_bytes(slot)
        try:
            state = np.empty(size, np.uint8)
        except MemoryError:
            return None
        written = ll.llama_state_seq_get_data(self._handle, _bytes(state), size, slot)
        return Saved(size, state=state) if written == size else None

    def saved_bytes(self, slot: int) -> int:
        """Size of a copy of all of a slot's cells in host memory."""
        return int(ll.llama_state_seq_get_size(self._handle, slot))

    def restore(self, saved: Saved, slot: int) -> bool:
        """Fill an empty slot with what was saved. False, and the slot is empty, if libllama refuses it."""
        if saved.state is None:
            ll.llama_memory_seq_cp(self._memory, saved.holder, slot, 0, -1)
            return True
        read = ll.llama_state_seq_set_data(self._handle, _bytes(saved.state), saved.size_bytes, slot)
        if read != saved.size_bytes:
            self.forget(slot)
            return False
        return True

    def release(self, saved: Saved) -> None:
        """What was saved is not wanted any more."""
        if saved.holder >= 0:
            self.forget(saved.holder)
            self._free_holders.append(saved.holder)
            saved.holder = -1
        saved.state = None

    @property
    def cell_bytes(self) -> int:
        """Size of one token's cells."""
        return self.kv_bytes // (self.shape.slots * self.shape.context_tokens)

    def length(self, slot: int) -> int:
        """Tokens that a slot holds, by the library's own account."""
        return int(ll.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def close(self) -> None:
        """Free cells and buffers."""
        if self._handle:
            ll.llama_free(self._handle)
            self._handle = None


def _bytes(array: npt.NDArray[np.uint8]) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
