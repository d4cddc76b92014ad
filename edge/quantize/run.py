"""The parent's half: what can be refused is refused here, the rest is done by a child that may die without taking us along."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge.engine.child import THREAD_WAIT
from edge.errors import ConfigurationError, EngineFault, from_code
from edge.quantize.job import Done, Fault, Job, Step, Written, decode_event, encode
from edge.quantize.kinds import KINDS, Choice, check, uses_importance
from edge.quantize.report import Report
from edge.quantize.task import read_task
from edge.quantize.text import calibration_text, divided, evaluation_text, read_text, without
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.manifest import Manifest, read_manifest

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LAST_WORDS_BYTES = 4096
_OWN_TEXT = "the package's own text"


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asks for."""

    source: Path
    target: Path
    kind: str
    importance: Choice = "auto"
    text: Path | None = None
    calibration: Path | None = None
    manifest: Path | None = None
    most_tokens: int = 8192
    threads: int = 1
    force: bool = False
    allow_requantize: bool = False
    report: bool = True


def quantize(
    wish: Wish, manifests: Mapping[str, tuple[Manifest, Path]], on_step: Callable[[str, float], None]
) -> Report:
    """Write the file, and say what it cost. `manifests`: those that this node knows, by name.

    Raises EdgeError with the reason; then there is no half file, and what lay under the target's name before is untouched,
    unless the message says that the file was written and only the report failed.
    """
    with _draft(wish.target) as draft:
        return _supervise(_job(wish, manifests, draft), on_step)


def _job(wish: Wish, manifests: Mapping[str, tuple[Manifest, Path]], draft: Path) -> Job:
    """Everything checked that needs no libllama."""
    header = read_header(wish.source)
    parts = _parts(wish.source)
    _check_target(wish, parts)
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
        allow_requantize=wish.allow_requantize,
        report=wish.report,
        cases=cases,
    )


def _parts(source: Path) -> list[Path]:
    """All files of a model that was split; libllama finds them by the first one's name."""
    found = _PART.match(source.name)
    if found is None:
        return [source]
    count = int(found["count"])
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


def _check_target(wish: Wish, parts: list[Path]) -> None:
    target = wish.target
    if target.is_dir():
        raise ConfigurationError(
            f"{target} is a directory; name the file to write, such as {target / wish.source.name}"
        )
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no directory {target.parent}; make it first")
    if target.exists() and any(target.samefile(part) for part in parts):
        raise ConfigurationError(f"{target} is the source itself; write to another name")
    if target.exists() and not wish.force:
        raise ConfigurationError(f"{target} exists; pass --force to replace it, or write to another name")


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


@contextlib.contextmanager
def _draft(target: Path) -> Iterator[Path]:
    """A name beside the target for what is not whole yet; whatever happens, nothing stays there."""
    draft = target.absolute().with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _supervise(job: Job, on_step: Callable[[str, float], None]) -> Report:
    """Run the child to its end. Raises what it reports, or EngineFault with its last words if it dies."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as words, os.fdopen(reading, "rb") as events:
        try:
            child = subprocess.Popen(
                [sys.executable, "-m", "edge.quantize.worker", str(writing)],
                pass_fds=(writing,),
                stdin=subprocess.PIPE,
                stdout=words,
                stderr=words,
                env={**THREAD_WAIT, **os.environ},
            )
        finally:
            os.close(writing)
        written, stage = False, "starting"
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(encode(job))
            for line in events:
                if not line.endswith(b"\n"):  # it died in the middle of a word
                    break
                match decode_event(line):
                    case Step() as step:
                        stage = step.stage
                        on_step(step.stage, step.share)
                    case Written():
                        written = True
                    case Done(report):
                        return report
                    case Fault(code, message):
                        raise from_code(code, _told(job, message, written=written))
            raise EngineFault(_told(job, _epitaph(child.wait(), stage, words), written=written))
        finally:
            child.kill()
            child.wait()


def _told(job: Job, message: str, *, written: bool) -> str:
    return f"{job.target} is written and whole, but the report failed: {message}" if written else message


def _epitaph(status: int, stage: str, words: IO[bytes]) -> str:
    """How the child ended, while what, and the last that it wrote."""
    how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
    words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
    lines = [line for line in words.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "ASSERT" in line), lines[-1] if lines else "")
    hint = "; was memory short?" if status == -signal.SIGKILL else ""
    return f"the quantizer's process was {how} while {stage}{f': {said}' if said else ''}{hint}"
