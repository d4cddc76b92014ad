"""What parent and child tell each other, one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edge.quantize.report import Report


class Job(msgspec.Struct, frozen=True, tag="gguf"):
    """What the child is to do with a GGUF file. Paths are absolute; empty texts mean the package's own."""

    source: str
    source_bytes: int
    metadata_bytes: int
    """What the source holds beside its tensors."""
    experts: int
    draft: str
    """Where the file is written until it is whole."""
    target: str
    kind: str
    importance: bool
    calibration: str
    calibration_name: str
    evaluation: str
    evaluation_name: str
    most_tokens: int
    threads: int
    threads_free: bool
    """Fewer than `threads` may be taken, where more are slower."""
    allow_requantize: bool
    report: bool
    cases: str
    """File of the task's cases; empty if there is none."""


class OnnxJob(msgspec.Struct, frozen=True, tag="onnx"):
    """What the child is to do with an ONNX model. Paths are absolute."""

    source: str
    draft: str
    scratch: str
    """A directory for working copies, to be made; the parent removes it."""
    target: str
    kind: str
    block: int
    """Weights that share a scale; 0 where the format has no blocks."""
    tokenizer: str
    """Its file; empty: random tokens."""
    calibration: str
    """Text, where the format is calibrated."""
    calibration_name: str
    evaluation: str
    evaluation_name: str
    most_tokens: int
    threads: int
    report: bool


AnyJob = Job | OnnxJob


class Step(msgspec.Struct, frozen=True, tag="step"):
    """What is being done, and how much of it is done, 0..1."""

    stage: str
    share: float


class Written(msgspec.Struct, frozen=True, tag="written"):
    """The file lies, whole, under the name that was asked for."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """The end."""

    report: Report


class Fault(msgspec.Struct, frozen=True, tag="fault"):
    """The end, an error of `edge.errors`."""

    code: str
    message: str


Event = Step | Written | Done | Fault

encode = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(Event).decode
decode_job: Callable[[bytes], AnyJob] = msgspec.json.Decoder(AnyJob).decode
