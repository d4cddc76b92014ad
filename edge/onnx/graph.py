"""ONNX models by onnxruntime: texts through the inputs that exporters give them, and tensors as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge.errors import ModelUnusable
from edge.onnx.messages import Infer, LoadTensors, Tensor
from edge.onnx.model import Engine, Model
from edge.onnx.session import Session, dtype_of, to_array, to_tensor
from edge.onnx.tasks import Floats, filled, pooled, probabilities, relevance
from edge.onnx.texts import Encoded
from edge.onnx.tokenizer import FileReader

_LANES = 2
"""More did not get more done on two cores; a device has its own ways to be kept busy."""
_TOKENS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"


class GraphModel(Model):
    """Owner of one session and its tokenizer."""

    def __init__(self, load: LoadTensors, on_stage: Callable[[str, float], None]) -> None:
        """Load, try and measure. Raises ModelUnusable, DoesNotFit."""
        super().__init__(load)
        on_stage("reading the weights", 0.0)
        self._session = session = Session(Path(load.path), load.provider, load.threads)
        self.engine = Engine(session.provider, session.library, session.note, session.inputs, session.outputs)
        self.reader = FileReader(load.reading) if load.reading is not None else None
        self._output = self._chosen_output()
        self._try(on_stage)
        if session.provider == "CPUExecutionProvider":  # a device's driver maps far more than it uses
            self.lanes = min(_LANES, load.threads)
            self._bound_memory()

    def _try(self, on_stage: Callable[[str, float], None]) -> None:
        if self.reader is not None:
            on_stage("measuring passes", 0.5)
            self._measure()

    def _pass(self, texts: Sequence[Encoded], rows: int, length: int) -> Floats:
        assert self.reader is not None and self._load.reading is not None
        tokens, mask, types = filled(texts, rows, length, self.reader.pad)
        given = {_TOKENS: tokens, _MASK: mask, _TYPES: types}
        feeds: dict[str, Any] = {
            spec.name: given[spec.name].astype(dtype_of(spec), copy=False)
            for spec in self._session.inputs
            if spec.name in given
        }
        (found,) = self._session.run(feeds, [self._output])
        if self._load.task == "embedding":
            return pooled(found, mask, self._load.reading.pooling)[: len(texts)]
        return self._scores(found.astype(np.float32, copy=False))[: len(texts)]

    def _cells_within(self, longest: int, grown_bytes: int) -> int:
        return longest * (1 + self._spare_bytes() // grown_bytes)

    def infer(self, work: Infer) -> list[Tensor]:
        """One pass with a client's tensors."""
        feeds = {tensor.name: to_array(tensor) for tensor in work.inputs}
        specs = {spec.name: spec for spec in self._session.outputs}
        names = work.outputs or list(specs)
        found = self._session.run(feeds, names)
        return [to_tensor(specs[name], values) for name, values in zip(names, found, strict=True)]

    def stop_pass(self) -> None:
        """Between two of the graph's nodes."""
        self._session.stop()

    def _chosen_output(self) -> str:
        names = [spec.name for spec in self._session.outputs]
        reading = self._load.reading
        if reading is None:
            return names[0]
        known = {spec.name for spec in self._session.inputs}
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
