"""One loaded model: what a pass of texts, or of tensors, is made of and what comes of it, and what it takes. What computes is for
the heirs to say: `edge.onnx.graph` by onnxruntime, `edge.onnx.llama` by libllama."""

from __future__ import annotations

import os
import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import DoesNotFit, EngineFault, InvalidRequest, ModelUnusable
from edge.machine import resident_bytes
from edge.onnx.batcher import ROW_BUCKETS, Costs, length_bucket
from edge.onnx.messages import Detect, Found, Infer, LoadTensors, Tensor, TensorFacts, TensorSpec
from edge.onnx.tasks import Floats
from edge.onnx.texts import Encoded, TextReader
from edge.registry.digest import fingerprint

_SHORT_TOKENS = 16
_TRIALS = 5
_LONG_TRIAL_S = 1.0
"""A pass that takes so long is timed well enough by one."""
_SEVERAL = 8
_LEAST_SPARE_BYTES = 32 << 20
_BREATH_BYTES = 16 << 20
"""What the process's own parts may still take once a model is loaded."""


@dataclass(slots=True)
class Engine:
    """Who computes, and what it takes and gives, for people and for `/v2`."""

    provider: str
    library: str
    note: str = ""
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)


class Model(ABC):
    """Owner of one model. Built and used by the loop's thread; `reader` by any, and `texts` by as many as there are `lanes`."""

    engine: Engine
    reader: TextReader | None
    lanes: int
    """Passes over texts that may run at the same time."""

    def __init__(self, load: LoadTensors) -> None:
        self._load = load
        self.costs: Costs | None = None
        self.width = 0
        self.most_rows, self.most_cells = 1, 0
        self.lanes = 1
        self._one_s = self._longest_s = 0.0
        self._digest = fingerprint(Path(load.path))

    # --- what heirs say -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _pass(self, texts: Sequence[Encoded], rows: int, length: int) -> Floats:
        """One pass over texts, filled up to `rows` of `length` where that is needed: a row of numbers for each text. Raises
        EdgeError, MemoryError."""

    @abstractmethod
    def _cells_within(self, longest: int, grown_bytes: int) -> int:
        """Texts times length that one pass may have. `grown_bytes`: what the first text of length `longest` took."""

    @abstractmethod
    def stop_pass(self) -> None:
        """End the pass that another thread runs, as soon as may be."""

    def infer(self, work: Infer) -> list[Tensor]:
        """One pass with a client's tensors. Raises EdgeError, MemoryError."""
        raise InvalidRequest("the model takes texts, and no tensors")

    def detect(self, work: Detect) -> Found:
        """What is in a picture. Raises EdgeError, MemoryError."""
        raise InvalidRequest("the model looks at no pictures")

    # --- use ----------------------------------------------------------------------------------------------------------

    @property
    def max_tokens(self) -> int:
        """Of a text; 0 where none is read."""
        return self.reader.max_tokens if self.reader is not None else 0

    def texts(self, texts: Sequence[Encoded], rows: int, length: int) -> Floats:
        """Rows of the output that counts, one for each text. Raises EdgeError, MemoryError."""
        values = self._pass(texts, rows, length)
        if not np.isfinite(values).all():
            raise EngineFault("the model computed values that are no numbers for this text")
        return values

    def beat(self) -> None:
        """A short pass to see that the model still answers. Raises as `texts`."""
        assert self.reader is not None
        length = min(_SHORT_TOKENS, self.max_tokens)
        self.texts([Encoded(self.reader.filler(length), [0] * length)], 1, length)

    def facts(self) -> TensorFacts:
        """For the front."""
        load, reading, engine = self._load, self._load.reading, self.engine
        return TensorFacts(
            task=load.task,
            digest=self._digest,
            inputs=engine.inputs,
            outputs=engine.outputs,
            provider=engine.provider,
            note=engine.note,
            library=engine.library,
            threads=load.threads,
            weights_bytes=load.weights_bytes or Path(load.path).stat().st_size,
            max_tokens=self.max_tokens,
            width=self.width,
            dimensions=reading.dimensions if reading is not None else [],
            labels=self._labels(),
            most_rows=self.most_rows,
            one_s=self._one_s,
            one_tokens=_SHORT_TOKENS,
            longest_s=self._longest_s,
        )

    def _labels(self) -> list[str]:
        if self._load.looking is not None:
            return self._load.looking.labels
        return self._load.reading.labels if self._load.reading is not None else []

    # --- what it takes ------------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Try the shortest, the longest and several; find how many at a time the memory allows. Raises ModelUnusable,
        DoesNotFit."""
        longest = length_bucket(self.max_tokens, self.max_tokens)
        short = min(_SHORT_TOKENS, longest)
        self._one_s = self._trial(1, short, check=True)
        before = resident()
        self._longest_s = self._trial(1, longest)
        grown = max(1 << 16, resident() - before)
        self._require_within_plan(f"with one text of {longest:,} tokens", "or lower context_tokens in its manifest")
        self.most_cells = self._cells_within(longest, grown)
        fits = [rows for rows in ROW_BUCKETS if rows <= self._load.most_rows and rows * short <= self.most_cells]
        self.most_rows = fits[-1]
        several = min(_SEVERAL, self.most_rows)
        several_s = self._trial(several, short)
        self.costs = Costs.measured(short, longest, several, self._one_s, several_s, self._longest_s)

    def _require_within_plan(self, when: str, cure: str, further_bytes: int = 0) -> None:
        """Raises DoesNotFit unless the process, and what it is about to take, is within what was planned."""
        taken, limit = resident() + further_bytes, self._load.limit_bytes
        if taken > limit:
            raise DoesNotFit(
                f"{when} the model takes {taken / 2**20:,.0f} MiB, and {limit / 2**20:,.0f} MiB were planned; raise "
                f"memory.budget_mib, {cure}"
            )

    def _spare_bytes(self) -> int:
        """What passes may still take."""
        return max(0, self._load.limit_bytes - resident() - _BREATH_BYTES)

    def _trial(self, rows: int, length: int, *, check: bool = False) -> float:
        """The quicker of a few passes; the first has the library's memory laid out."""
        assert self.reader is not None
        text = Encoded(self.reader.filler(length), [0] * length)
        best_s = float("inf")
        for _ in range(_TRIALS):
            begun_s = time.monotonic()
            try:
                values = self.texts([text] * rows, rows, length)
            except (EngineFault, InvalidRequest) as error:
                raise ModelUnusable(f"a text of {length:,} tokens cannot be read: {error.message}") from None
            best_s = min(best_s, time.monotonic() - begun_s)
            if check:
                self._check_output(values)
            if best_s > _LONG_TRIAL_S:
                break
        return best_s

    def _check_output(self, values: Any) -> None:
        """Raises ModelUnusable unless the output is what the manifest says."""
        if values.ndim != 2:
            raise ModelUnusable(
                f"the output that counts has {values.ndim} axes after pooling, not 2: `pooling` in the manifest does not fit "
                "this model"
            )
        assert self._load.reading is not None
        self.width = int(values.shape[1])
        labels, dimensions = self._load.reading.labels, self._load.reading.dimensions
        if self._load.task == "classification" and len(labels) != self.width:
            raise ModelUnusable(f"the model tells {self.width} labels apart, and its manifest names {len(labels)}")
        if dimensions and max(dimensions) > self.width:
            raise ModelUnusable(f"the model's vectors have {self.width} numbers, and its manifest names more")

    def _bound_memory(self) -> None:
        """From now on an allocation beyond the plan fails, in place of taking what is others'."""
        spare = max(_LEAST_SPARE_BYTES, self._load.limit_bytes - resident())
        most = _data_bytes() + spare
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def resident() -> int:
    """Bytes that this process has in memory."""
    return resident_bytes(os.getpid())


def _data_bytes() -> int:
    """Private memory that this process may write to: what RLIMIT_DATA counts."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) << 10
