"""Detectors: a picture in, things with labels and boxes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge.errors import EngineFault, InvalidRequest, ModelUnusable
from edge.onnx.batcher import Costs
from edge.onnx.boxes import require_shapes, things_in
from edge.onnx.graph import GraphModel
from edge.onnx.messages import Detect, Found, LoadTensors, TensorSpec
from edge.onnx.picture import Floats, placed, require_pillow
from edge.onnx.session import dtype_of

_MASK = "pixel_mask"
"""Some exporters' second input: which pixels are the picture's."""
_TRIALS = 3
_FLOATS = ("FP32", "FP16")


class Detector(GraphModel):
    """Owner of one session over pictures."""

    def __init__(self, load: LoadTensors, on_stage: Callable[[str, float], None]) -> None:
        """Load, try and measure. Raises ModelUnusable, DoesNotFit."""
        require_pillow()
        assert load.looking is not None
        self._looking = load.looking
        super().__init__(load, on_stage)

    def detect(self, work: Detect) -> Found:
        """What is in a picture."""
        picture = placed(work.picture, self._looking)
        outputs = self._look(picture.pixels)
        threshold = self._looking.threshold if work.threshold is None else work.threshold
        things = things_in(self._looking, outputs, picture, threshold=threshold, most=work.most)
        return Found(work.request_id, picture.width, picture.height, things)

    def _try(self, on_stage: Callable[[str, float], None]) -> None:
        """A few passes over nothing but grey."""
        self._pixels, self._mask = self._inputs()
        on_stage("measuring passes", 0.5)
        grey = np.zeros((3, self._looking.height, self._looking.width), np.float32)
        best_s = float("inf")
        for _ in range(_TRIALS):
            begun_s = time.monotonic()
            try:
                outputs = self._look(grey)
            except (EngineFault, InvalidRequest) as error:
                raise ModelUnusable(
                    f"a picture of {self._looking.width} x {self._looking.height} cannot be looked at: {error.message}"
                ) from None
            best_s = min(best_s, time.monotonic() - begun_s)
        require_shapes(self._looking, outputs, self._wanted)
        self._require_within_plan("with one picture", "or use a smaller model")
        self.costs = Costs(best_s, 0.0, 0.0)
        self._one_s = self._longest_s = best_s
        self.width = len(self._looking.labels)

    def _look(self, pixels: Floats) -> list[npt.NDArray[Any]]:
        """One pass over a picture. Raises EdgeError, MemoryError."""
        feeds: dict[str, Any] = {self._pixels.name: pixels[None].astype(dtype_of(self._pixels), copy=False)}
        if self._mask is not None:
            sides = (1, self._looking.height, self._looking.width)
            shape = [side if side > 0 else own for side, own in zip(self._mask.shape, sides, strict=True)]
            feeds[_MASK] = np.ones(shape, dtype_of(self._mask))
        return self._session.run(feeds, self._wanted)

    def _inputs(self) -> tuple[TensorSpec, TensorSpec | None]:
        """The input for pixels, and the mask if there is one. Raises ModelUnusable."""
        inputs = {spec.name: spec for spec in self._session.inputs}
        mask = inputs.pop(_MASK, None)
        if len(inputs) != 1 or (mask is not None and len(mask.shape) != 3):
            raise ModelUnusable(f"the model takes {', '.join(inputs)}; a detector takes one picture")
        (pixels,) = inputs.values()
        wanted = [1, 3, self._looking.height, self._looking.width]
        fits = len(pixels.shape) == 4 and all(own in (-1, side) for own, side in zip(pixels.shape, wanted, strict=True))
        if not fits or pixels.datatype not in _FLOATS:
            raise ModelUnusable(
                f"the model's {pixels.name!r} is {pixels.datatype} {pixels.shape} (-1: any); with the manifest's `size` it must "
                f"take FP32 or FP16 {wanted}: one picture, three colours, height, width"
            )
        return pixels, mask

    def _chosen_output(self) -> str:
        looking, names = self._looking, [spec.name for spec in self._session.outputs]
        if looking.layout == "yolo":
            self._wanted = [looking.scores_output or names[0]]
        else:
            self._wanted = [looking.scores_output or "logits", looking.boxes_output or "pred_boxes"]
        for key, name in zip(("scores_output", "boxes_output"), self._wanted, strict=False):
            if name not in names:
                raise ModelUnusable(
                    f"the model has no output {name!r}: it has {', '.join(names)}; name the right one as `{key}` in [detector]"
                )
        if len(set(self._wanted)) != len(self._wanted):
            raise ModelUnusable("`scores_output` and `boxes_output` in [detector] are the same")
        return self._wanted[0]
