"""The parent's half for ONNX models: what can be refused without loading one is refused here."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from edge.errors import ConfigurationError, ModelUnusable
from edge.quantize.job import OnnxJob
from edge.quantize.kinds import ONNX_KINDS, OnnxKind
from edge.quantize.supervise import scratch_of
from edge.quantize.text import calibration_text, evaluation_text, read_text, sentences
from edge.quantize.wish import Wish, check_target

_OWN_TEXT = "the package's own text"
_RUNTIME = ("onnxruntime", "tokenizers")
_LEAST_SENTENCES = 8


def onnx_job(wish: Wish, draft: Path) -> OnnxJob:
    """Everything checked that needs no onnxruntime. Raises EdgeError."""
    kind = ONNX_KINDS[wish.kind]
    if not wish.source.is_file():
        found = f"{wish.source} is a directory; name the .onnx file in it"
        raise ModelUnusable(found if wish.source.is_dir() else f"there is no file {wish.source}; check the path")
    _check_options(wish, kind)
    check_target(wish, [wish.source])
    require_packages(kind, lambda name: find_spec(name) is not None)
    calibration, evaluation = _texts(wish, kind)
    return OnnxJob(
        source=str(wish.source.absolute()),
        draft=str(draft),
        scratch=str(scratch_of(draft)),
        target=str(wish.target.absolute()),
        kind=kind.name,
        block=wish.block or (kind.blocks[0] if kind.blocks else 0),
        tokenizer=_tokenizer(wish),
        calibration=calibration,
        calibration_name=wish.calibration.name if wish.calibration else _OWN_TEXT,
        evaluation=evaluation,
        evaluation_name=wish.text.name if wish.text else _OWN_TEXT,
        most_tokens=wish.most_tokens,
        threads=wish.threads,
        report=wish.report,
    )


def require_packages(kind: OnnxKind, has: Callable[[str], bool]) -> None:
    """Raise ConfigurationError that names the extras to install, if writing a format lacks packages."""
    missing = [name for name in ("onnx", *kind.packages, *_RUNTIME) if not has(name)]
    if not missing:
        return
    runtime = [name for name in missing if name in _RUNTIME]
    extras = [*(["onnx"] if runtime else []), *(["quantize"] if len(missing) > len(runtime) else [])]
    raise ConfigurationError(
        f"{kind.name} cannot be written: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
        f"pip install 'edge-node[{','.join(extras)}]'"
    )


def _check_options(wish: Wish, kind: OnnxKind) -> None:
    """Nothing that is asked for may be passed over in silence."""
    if wish.importance == "on":
        raise ConfigurationError(f"{kind.name} has no importance matrix; leave --imatrix out")
    if wish.manifest is not None:
        raise ConfigurationError("tasks with cases are for models that answer; leave --manifest out for an ONNX model")
    if wish.allow_requantize:
        raise ConfigurationError("a quantized ONNX model has nothing left to round; leave --allow-requantize out")
    if wish.calibration is not None and not kind.calibrated:
        raise ConfigurationError(f"{kind.name} is not calibrated; leave --calibration out")
    if wish.block is not None and wish.block not in kind.blocks:
        allowed = f"blocks of {' or '.join(map(str, kind.blocks))}" if kind.blocks else "no blocks"
        raise ConfigurationError(f"{kind.name} has {allowed}; change --block or leave it out")


def _tokenizer(wish: Wish) -> str:
    """The one that was named, else the one beside the model; empty if there is none."""
    if wish.tokenizer is None:
        beside = wish.source.with_name("tokenizer.json")
        return str(beside.absolute()) if beside.is_file() else ""
    if not wish.tokenizer.is_file():
        raise ConfigurationError(f"there is no file {wish.tokenizer}; check --tokenizer")
    return str(wish.tokenizer.absolute())


def _texts(wish: Wish, kind: OnnxKind) -> tuple[str, str]:
    """To calibrate with, where that is done, and to measure on."""
    calibration = ""
    if kind.calibrated:
        calibration = read_text(wish.calibration, "--calibration") if wish.calibration else calibration_text()
    evaluation = read_text(wish.text, "--text") if wish.text else evaluation_text()
    for path, text, flag in ((wish.calibration, calibration, "--calibration"), (wish.text, evaluation, "--text")):
        if path is not None and (found := len(sentences(text))) < _LEAST_SENTENCES:
            raise ConfigurationError(
                f"{path} has {found} different sentences of some length, at least {_LEAST_SENTENCES} are needed; give "
                f"a longer {flag}"
            )
    return calibration, evaluation
