"""What the front and a tensor child say to each other. Framed as `edge.messages` has it; every request gets exactly one reply,
its answer or `Failed`. Tensors are bytes, little-endian and row by row."""

from __future__ import annotations

from typing import Literal

import msgspec

from edge.messages import Abort, Failed, LoadFailed, Message, Progress, Quit

Task = Literal["embedding", "rerank", "classification", "detection", "tensors"]
"""`tensors`: any model; it is asked by the Open Inference Protocol only, as all other ONNX models may be too."""
Runtime = Literal["onnxruntime", "libllama"]
Pooling = Literal["mean", "cls", "last", "none", "file"]
"""`none`: the model does it itself. `file`: as a GGUF file says."""
Kind = Literal["", "query", "document"]
"""What a text is, for models that were trained with a prompt for each."""
Provider = Literal["auto", "tensorrt", "cuda", "cpu"]
Text = str | list[int]
"""A text, or its tokens, taken as they are."""
_AROUND_TENSOR_BYTES = 1 << 10
_NUMBER_BYTES = 9
"""The most that a number takes in a frame."""


class Reading(msgspec.Struct, frozen=True):
    """How texts become what a model takes, and what becomes of its output. `max_tokens` with special tokens."""

    tokenizer: str
    """A file; empty where the model's own has it."""
    max_tokens: int
    least_tokens: int = 0
    """So few will do where there is no memory for more; 0: all of them are wanted."""
    pooling: Pooling = "mean"
    normalise: bool = True
    output: str = ""
    """Name of the output that counts; empty: the first."""
    query_prompt: str = ""
    document_prompt: str = ""
    dimensions: list[int] = []
    """Lengths to which a vector may be cut, for models that were trained so."""
    labels: list[str] = []
    multi_label: bool = False
    """Each label for itself; else one of them."""


Layout = Literal["detr", "yolo"]
"""`detr`: class scores [1, things, classes] and boxes [1, things, 4], from 0 to 1 of the picture's sides. `yolo`: one output
[1, 4 + classes, things] or the same turned, boxes in the input's pixels, several of one thing."""


class Looking(msgspec.Struct, frozen=True):
    """How pictures become what a detector takes, and what becomes of its outputs."""

    labels: list[str]
    layout: Layout
    height: int
    width: int
    fit: Literal["stretch", "letterbox"]
    """To that size: each side by itself, or both alike with grey beside the picture."""
    mean: list[float]
    std: list[float]
    """Of each colour, from 0 to 1."""
    scores: Literal["sigmoid", "softmax", "probabilities"]
    """What the classes' numbers are. `softmax`: the last class is that nothing is there."""
    boxes: Literal["cxcywh", "xyxy"]
    threshold: float
    overlap: float
    """Two boxes of one label that cover so much of each other are one thing; 1: they stay two."""
    scores_output: str
    boxes_output: str
    """Names of the outputs; empty: found by their shapes."""
    most_pixels: int
    """Of a picture as it comes."""


# --- front to child ---------------------------------------------------------------------------------------------------


class LoadTensors(Message, frozen=True):
    """The first message: which model to load, and how."""

    path: str
    task: Task
    reading: Reading | None
    """None where no text is read."""
    provider: Provider
    threads: int
    most_rows: int
    """Texts in one pass, at most."""
    slo_s: float
    limit_bytes: int
    """Memory that the process may take."""
    heartbeat_s: float
    background: bool
    runtime: Runtime = "onnxruntime"
    fixed_threads: bool = True
    """Else fewer than `threads` are used where those do better (libllama)."""
    weights_bytes: int = 0
    """Of all its files; 0: it has but one."""
    pass_limit_s: float = 60.0
    """A pass with a client's tensors, or over a picture, is ended after so long."""
    looking: Looking | None = None
    """None where no pictures are looked at."""


class Embed(Message, frozen=True):
    """Vectors of texts. `dimensions` None: as long as the model makes them."""

    request_id: int
    texts: list[Text]
    kind: Kind = ""
    dimensions: int | None = None


class Rerank(Message, frozen=True):
    """How well each document answers a query."""

    request_id: int
    query: str
    documents: list[str]


class Classify(Message, frozen=True):
    """What each text is."""

    request_id: int
    texts: list[Text]


class Detect(Message, frozen=True):
    """What is in a picture, given as its file. `threshold` None: the manifest's."""

    request_id: int
    picture: bytes
    threshold: float | None
    most: int


class Tensor(msgspec.Struct, frozen=True):
    """One tensor by name; `datatype` as the Open Inference Protocol calls it."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes


class Infer(Message, frozen=True):
    """One pass with these inputs, checked by the front. `outputs` empty: all."""

    request_id: int
    inputs: list[Tensor]
    outputs: list[str]


# --- child to front ---------------------------------------------------------------------------------------------------


class TensorSpec(msgspec.Struct, frozen=True):
    """One input or output. Axes of any length are -1 in `shape`; `axes` has their names, so that equal ones are known."""

    name: str
    datatype: str
    shape: list[int]
    axes: list[str]


class TensorFacts(msgspec.Struct, frozen=True):
    """What was loaded. Sizes in bytes."""

    task: Task
    digest: str
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    provider: str
    """What runs it."""
    note: str
    """Why nothing faster does; empty if it was asked for."""
    library: str
    threads: int
    weights_bytes: int
    max_tokens: int
    width: int
    """Numbers of a vector, or labels; 0 for tensors."""
    dimensions: list[int]
    labels: list[str]
    most_rows: int
    one_s: float
    """Measured: a pass with one text of `one_tokens`."""
    one_tokens: int
    longest_s: float
    """The same with the longest text."""


class TensorsLoaded(Message, frozen=True):
    """The model answers: a real pass has succeeded."""

    facts: TensorFacts
    seconds: float


class Embedded(Message, frozen=True):
    """float32 of `width` for each text."""

    request_id: int
    vectors: bytes
    width: int
    tokens: int

    @property
    def bulk_bytes(self) -> int:
        return len(self.vectors)


class Scored(Message, frozen=True):
    """A number from 0 to 1 for each document, or for each label of each text."""

    request_id: int
    scores: list[list[float]]
    tokens: int

    @property
    def bulk_bytes(self) -> int:
        return _NUMBER_BYTES * sum(len(row) + 1 for row in self.scores)


class Thing(msgspec.Struct, frozen=True):
    """One thing in a picture; `box` is left, top, right, bottom, in pixels."""

    label: int
    score: float
    box: tuple[float, float, float, float]


class Found(Message, frozen=True):
    """All things in a picture of that many pixels, the surest first."""

    request_id: int
    width: int
    height: int
    things: list[Thing]


class Inferred(Message, frozen=True):
    """What a pass gave."""

    request_id: int
    outputs: list[Tensor]

    @property
    def bulk_bytes(self) -> int:
        return sum(
            len(tensor.data) + _AROUND_TENSOR_BYTES + _NUMBER_BYTES * len(tensor.shape) for tensor in self.outputs
        )


class TensorStats(Message, frozen=True):
    """Sent by the loop itself about once a second."""

    waiting: int
    """Texts and tensor requests that wait for a pass."""
    passes: int
    rows: int
    """Texts that were read, of all passes."""
    pass_p50_s: float
    pass_p99_s: float
    wait_s: float
    """Until a text that came now would be answered, as foreseen."""
    forward_age_s: float
    resident_bytes: int


Asked = Embed | Rerank | Classify | Detect | Infer
Answer = Embedded | Scored | Found | Inferred
ToTensorChild = LoadTensors | Asked | Abort | Quit
FromTensorChild = Progress | TensorsLoaded | LoadFailed | Answer | Failed | TensorStats

_to_child = msgspec.msgpack.Decoder(list[ToTensorChild])
_from_child = msgspec.msgpack.Decoder(list[FromTensorChild])


def to_tensor_child(payload: bytes) -> list[ToTensorChild]:
    """Decode a frame sent by the front. Raises msgspec.DecodeError."""
    return _to_child.decode(payload)


def from_tensor_child(payload: bytes) -> list[FromTensorChild]:
    """Decode a frame sent by a tensor child. Raises msgspec.DecodeError."""
    return _from_child.decode(payload)
