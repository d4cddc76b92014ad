"""The parent's half for GGUF files: what can be refused without libllama is refused here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConfigurationError
from edge.quantize.job import Job
from edge.quantize.kinds import KINDS, check, uses_importance
from edge.quantize.task import read_task
from edge.quantize.text import calibration_text, divided, evaluation_text, read_text, without
from edge.quantize.wish import Wish, check_target
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.manifest import Manifest, read_manifest

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_OWN_TEXT = "the package's own text"


def gguf_job(wish: Wish, manifests: Mapping[str, tuple[Manifest, Path]], draft: Path) -> Job:
    """Everything checked that needs no libllama. Raises EdgeError."""
    for flag, value in (("--tokenizer", wish.tokenizer), ("--block", wish.block)):
        if value is not None:
            raise ConfigurationError(f"{flag} is for ONNX models; {wish.kind} is a format of GGUF files: leave it out")
    header = read_header(wish.source)
    parts = _parts(wish.source)
    check_target(wish, parts)
    kind = KINDS[wish.kind]
    check(
        kind,
        source=str(wish.source),
        experts=header.experts,
        types=header.tensor_bytes,
        allow_requantize=wish.allow_requantize,
    )
    importance = uses_importance(kind, wish.importance)
    cases = _cases(wish, manifests, header) if wish.report else ""
    calibration, evaluation = _texts(wish, importance=importance, has_task=bool(cases))
    return Job(
        source=str(wish.source.absolute()),
        source_bytes=sum(part.stat().st_size for part in parts),
        metadata_bytes=header.file_bytes - sum(header.tensor_bytes.values()),
        experts=header.experts,
        draft=str(draft),
        target=str(wish.target.absolute()),
        kind=wish.kind,
        importance=importance,
        calibration=calibration.content,
        calibration_name=calibration.name,
        evaluation=evaluation.content,
        evaluation_name=evaluation.name,
        most_tokens=wish.most_tokens,
        threads=wish.threads,
        threads_free=wish.threads_free,
        allow_requantize=wish.allow_requantize,
        report=wish.report,
        cases=cases,
    )


def _parts(source: Path) -> list[Path]:
    """All files of a model that was split; libllama finds them by the first one's name."""
    found = _PART.match(source.name)
    if found is None:
        return [source]
    count = max(1, int(found["count"]))
    paths = [source.with_name(f"{found['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if int(found["number"]) != 1:
        raise ConfigurationError(
            f"{source} is part {int(found['number'])} of {count}; name the first part, {paths[0].name}"
        )
    if missing := [path.name for path in paths if not path.exists()]:
        raise ConfigurationError(
            f"{source} is the first of {count} parts, and {missing[0]} is not beside it; get all parts"
        )
    return paths


def _cases(wish: Wish, manifests: Mapping[str, tuple[Manifest, Path]], header: GgufHeader) -> str:
    """The task's file: of the manifest that is named, else of the one that describes this model; empty if there is none."""
    if wish.manifest is not None:
        manifest, where = read_manifest(wish.manifest), wish.manifest
        if manifest.evaluation is None:
            raise ConfigurationError(f'{where} names no task: add `evaluation = "cases.json"`, or leave --manifest out')
    elif header.name in manifests:
        manifest, where = manifests[header.name]
    else:
        return ""
    if manifest.evaluation is None:
        return ""
    path = (where.parent / manifest.evaluation).absolute()
    read_task(path)  # a mistake in it is better said before the work than after
    return str(path)


@dataclass(frozen=True, slots=True)
class _Text:
    """A text and what the report calls it."""

    name: str
    content: str


def _texts(wish: Wish, *, importance: bool, has_task: bool) -> tuple[_Text, _Text]:
    """To calibrate with and to measure on, no telling line in both. An empty one to measure on: the task's own dialogues."""
    calibration = _Text(_OWN_TEXT, calibration_text())
    if wish.calibration is not None:
        calibration = _Text(wish.calibration.name, read_text(wish.calibration, "--calibration"))
    if wish.text is None:
        return calibration, _Text("", "") if has_task else _Text(_OWN_TEXT, evaluation_text())
    own = _Text(wish.text.name, read_text(wish.text, "--text"))
    if not importance or (wish.calibration is None and not wish.report):
        return own, own
    if wish.calibration is None:
        return _halves(own)
    left = without(own.content, calibration.content)
    if not left.strip():
        raise ConfigurationError(
            f"most of {wish.text} is also in {wish.calibration}: what was calibrated with cannot judge; give another --text"
        )
    return calibration, _Text(own.name, left)


def _halves(own: _Text) -> tuple[_Text, _Text]:
    first, second = divided(own.content)
    left = without(second, first)
    if not left.strip():
        raise ConfigurationError(
            f"{own.name} is too short to be divided, or repeats itself: one half is calibrated with, the other measured on; "
            "give some pages, or a second file with --calibration"
        )
    return _Text(f"half of {own.name}", first), _Text(f"the other half of {own.name}", left)
