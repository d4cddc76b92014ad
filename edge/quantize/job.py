"""What parent and child tell each other, one JSON object a line."""

from __future__ import annotations

import msgspec

from edge.quantize.report import Report


class Job(msgspec.Struct, frozen=True):
    """What the child is to do. Paths are absolute; empty texts mean the package's own."""

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
    allow_requantize: bool
    report: bool
    cases: str
    """File of the task's cases; empty if there is none."""


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
decode_job = msgspec.json.Decoder(Job).decode
