"""One loaded model with its reading: what a pass of texts, or of tensors, is made of and what comes of it."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import DoesNotFit, EngineFault, InvalidRequest, ModelUnusable
from edge.machine import resident_bytes
from edge.onnx.batcher import ROW_BUCKETS, Costs, length_bucket
from edge.onnx.messages import Infer, LoadTensors, Tensor, TensorFacts
from edge.onnx.session import Session, dtype_of, to_array, to_tensor
from edge.onnx.tasks import Encoded, Floats, Reader, filled, pooled, probabilities, relevance
from edge.registry.digest import fingerprint

_TOKENS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
_SHORT_TOKENS = 16
_TRIALS = 5
_SEVERAL = 8
_LEAST_SPARE_BYTES = 32 << 20
_BREATH_BYTES = 16 << 20
"""What the process's own parts may still take once a model is loaded."""


class Model:
    """Owner of one session and its tokenizer. Built and used by the loop's thread; `reader` by any."""

    def __init__(self, load: LoadTensors, on_stage: Callable[[str, float], None]) -> None:
        """Load, try and measure. Raises ModelUnusable, DoesNotFit."""
        self._load = load
        path = Path(load.path)
        on_stage("reading the weights", 0.0)
        self.session = Session(path, load.provider, load.threads)
        self.reader = Reader(load.reading) if load.reading is not None else None
        self._output = self._chosen_output()
        self._names = {spec.name for spec in self.session.inputs}
        self.costs: Costs | None = None
        self.width = 0
        self.most_rows, self.most_cells = 1, 0
        self._one_s = self._longest_s = 0.0
        if self.reader is not None:
            on_stage("measuring passes", 0.5)
            self._measure()
        self._bound_memory()
        self._digest = fingerprint(path)

    def texts(self, texts: Sequence[Encoded], rows: int, length: int) -> Floats:
        """Rows of the output that counts, one for each text. Raises EdgeError, MemoryError."""
        assert self.reader is not None and self._load.reading is not None
        tokens, mask, types = filled(texts, rows, length, self.reader.pad)
        given = {_TOKENS: tokens, _MASK: mask, _TYPES: types}
        feeds: dict[str, Any] = {
            spec.name: given[spec.name].astype(dtype_of(spec), copy=False)
            for spec in self.session.inputs
            if spec.name in given
        }
        (found,) = self.session.run(feeds, [self._output])
        if self._load.task == "embedding":
            values = pooled(found, mask, self._load.reading.pooling)[: len(texts)]
        else:
            values = self._scores(found.astype(np.float32, copy=False))[: len(texts)]
        if not np.isfinite(values).all():
            raise EngineFault("the model computed values that are no numbers for this text")
        return values

    def infer(self, work: Infer) -> list[Tensor]:
        """One pass with a client's tensors. Raises EdgeError, MemoryError."""
        feeds = {tensor.name: to_array(tensor) for tensor in work.inputs}
        specs = {spec.name: spec for spec in self.session.outputs}
        names = work.outputs or list(specs)
        found = self.session.run(feeds, names)
        return [to_tensor(specs[name], values) for name, values in zip(names, found, strict=True)]

    def facts(self) -> TensorFacts:
        """For the front."""
        load, reading, session = self._load, self._load.reading, self.session
        return TensorFacts(
            task=load.task,
            digest=self._digest,
            inputs=session.inputs,
            outputs=session.outputs,
            provider=session.provider,
            note=session.note,
            library=session.library,
            threads=load.threads,
            weights_bytes=Path(load.path).stat().st_size,
            max_tokens=reading.max_tokens if reading is not None else 0,
            width=self.width,
            dimensions=reading.dimensions if reading is not None else [],
            labels=reading.labels if reading is not None else [],
            most_rows=self.most_rows,
            one_s=self._one_s,
            one_tokens=_SHORT_TOKENS,
            longest_s=self._longest_s,
        )

    # --- what it takes ------------------------------------------------------------------------------------------------

    def _chosen_output(self) -> str:
        names = [spec.name for spec in self.session.outputs]
        reading = self._load.reading
        if reading is None:
            return names[0]
        known = {spec.name for spec in self.session.inputs}
        if _TOKENS not in known or (unknown := known - {_TOKENS, _MASK, _TYPES}):
            odd = next(iter(unknown if _TOKENS in known else known), "nothing")
            raise ModelUnusable(
                f"the model takes {odd!r}; text models take input_ids, attention_mask and token_type_ids. Give the file's path "
                "as `source` to serve its tensors by /v2"
            )
        if reading.output and reading.output not in names:
            raise ModelUnusable(f"the model has no output {reading.output!r}: it has {', '.join(names)}")
        return reading.output or names[0]

    def _scores(self, logits: Floats) -> Floats:
        assert self._load.reading is not None
        if self._load.task == "rerank":
            return relevance(logits)[:, None]
        return probabilities(logits, multi_label=self._load.reading.multi_label)

    def _measure(self) -> None:
        """Try the shortest, the longest and several; find how many at a time the memory allows."""
        assert self.reader is not None and self._load.reading is not None
        longest = length_bucket(self._load.reading.max_tokens, self._load.reading.max_tokens)
        short = min(_SHORT_TOKENS, longest)
        several = min(_SEVERAL, self._load.most_rows)
        self._one_s = self._trial(1, short, check=True)
        before = _resident()
        self._longest_s = self._trial(1, longest)
        grown = max(1 << 16, _resident() - before)
        if _resident() > self._load.limit_bytes:
            raise DoesNotFit(
                f"with one text of {longest:,} tokens the model takes {_resident() / 2**20:,.0f} MiB, and "
                f"{self._load.limit_bytes / 2**20:,.0f} MiB were planned; raise memory.budget_mib, or lower context_tokens in "
                "its manifest"
            )
        spare = max(0, self._load.limit_bytes - _resident() - _BREATH_BYTES)
        self.most_cells = longest * (1 + spare // grown)
        fits = [rows for rows in ROW_BUCKETS if rows <= self._load.most_rows and rows * short <= self.most_cells]
        self.most_rows = fits[-1]
        several = min(several, self.most_rows)
        several_s = self._trial(several, short)
        self.costs = Costs.measured(short, longest, several, self._one_s, several_s, self._longest_s)

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
        return best_s

    def _check_output(self, values: Any) -> None:
        """Raises ModelUnusable unless the output is what the manifest says."""
        if values.ndim != 2:
            raise ModelUnusable(
                f"the output {self._output!r} has {values.ndim} axes after pooling, not 2: `pooling` in the manifest does not "
                "fit this model"
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
        if self.session.provider != "CPUExecutionProvider":
            return  # a device's driver maps far more than it uses
        spare = max(_LEAST_SPARE_BYTES, self._load.limit_bytes - _resident())
        most = _data_bytes() + spare
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.RLIM_INFINITY))


def _resident() -> int:
    return resident_bytes(os.getpid())


def _data_bytes() -> int:
    """Private memory that this process may write to: what RLIMIT_DATA counts."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmData:"))
    return int(line.split()[1]) << 10
