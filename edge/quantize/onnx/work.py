"""The child's work on one ONNX model: look, calibrate where the format wants it, write, compare."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from edge.errors import ConfigurationError, EdgeError, EngineFault
from edge.quantize.job import OnnxJob
from edge.quantize.kinds import ONNX_KINDS
from edge.quantize.onnx import formats
from edge.quantize.onnx.compare import Comparison
from edge.quantize.onnx.graph import Weights, described, examine, load, parameters, require_tokens, vocabulary
from edge.quantize.onnx.reading import Random, Session, Texts, Tokenized
from edge.quantize.report import Report, Seconds
from edge.quantize.text import sentences

OnStep = Callable[[str, float], None]

_WORKING_COPIES = 2
"""Of the source, which onnxruntime writes on its way to INT8."""
_GROWTH_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class OnnxWork:
    """One job. `run` once."""

    def __init__(self, job: OnnxJob, on_step: OnStep, on_written: Callable[[], None]) -> None:
        self._job, self._on_step, self._on_written = job, on_step, on_written
        self._kind = ONNX_KINDS[job.kind]
        self._draft = Path(job.draft)
        self._scratch = Path(job.scratch)
        self._seconds = Seconds()
        logging.disable(logging.WARNING)  # the quantizers tell each node, and advice for calls that are not the user's

    def run(self) -> Report:
        """All of it. Raises EdgeError; the target is there, whole, once `on_written` was called."""
        job = self._job
        self._on_step("looking at the source", 0.0)
        model, size = load(Path(job.source), Path(job.target))
        weights = examine(model, job.source)
        if job.report or self._kind.calibrated:
            require_tokens(model, job.source)
        count, pieces = parameters(model), vocabulary(model)
        source = described(job.source, size, model, count)
        self._require_space(model, weights, size)
        texts = self._texts(job.evaluation, pieces) if job.report else None
        self._write(model, weights, pieces)
        del model  # its memory is wanted by the two sessions
        self._on_written()
        agreement = latency = None
        if texts is not None:
            with self._timed("report"):
                comparison = Comparison(job, texts, self._on_step)
                agreement, latency = comparison.agreement(), comparison.latency()
        written, size = load(Path(job.target))
        return Report(
            kind=job.kind,
            source=source,
            result=described(job.target, size, written, count),
            fell_back=[],
            importance=None,
            divergence=None,
            accuracy=None,
            seconds=self._seconds,
            agreement=agreement,
            latency=latency,
        )

    def _texts(self, text: str, pieces: int | None) -> Texts:
        found = sentences(text)
        tokenizer = self._job.tokenizer
        return Tokenized(Path(tokenizer), found, pieces) if tokenizer else Random(len(found), pieces)

    def _require_space(self, model: onnx.ModelProto, weights: Weights, size: int) -> None:
        rounded = sum(
            tensor.dims[0] * tensor.dims[1]
            for tensor in model.graph.initializer
            if tensor.name in weights.products | weights.tables
        )
        # A block has a scale of four bytes and a zero point of half a byte.
        bits = self._kind.bits + (36 / self._job.block if self._job.block else 0)
        needed = int(size - rounded * (4 - bits / 8)) + _GROWTH_BYTES
        if self._kind.name == "int8-onnx":
            needed += _WORKING_COPIES * size
        free = shutil.disk_usage(self._draft.parent).free
        if needed > free:
            raise ConfigurationError(
                f"{self._draft.parent} has {free / 1e6:,.1f} MB left, {needed / 1e6:,.1f} MB are needed on the way; "
                "free some, or write elsewhere"
            )

    def _write(self, model: onnx.ModelProto, weights: Weights, pieces: int | None) -> None:
        """The file, under the draft's name until it is whole and on the disk."""
        job, draft = self._job, self._draft
        try:
            if self._kind.name == "fp8-onnx":
                self._write_fp8(model, weights, pieces)
            else:
                self._on_step("writing", 0.0)
                with self._timed("quantize"):
                    if self._kind.name == "int8-onnx":
                        self._scratch.mkdir()
                        tempfile.tempdir = str(self._scratch)
                        formats.write_int8(model, draft)
                    else:
                        formats.write_int4(model, draft, job.block)
            Session(draft, job.threads)  # what onnxruntime does not load must not get the name
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(job.target)
        except EdgeError:
            raise
        except (OSError, DecodeError) as error:  # a working copy that was cut short is read as damaged
            raise self._failure(error) from None
        except Exception as error:  # the quantizers raise whatever comes their way
            raise EngineFault(
                f"onnxruntime's quantizer failed on {job.source}: {type(error).__name__}: {error}"
            ) from None

    def _write_fp8(self, model: onnx.ModelProto, weights: Weights, pieces: int | None) -> None:
        from edge.quantize.onnx import fp8

        with self._timed("calibration"):
            fp8.prepare(model)
            names = fp8.multiplied(model, weights)
            largest = self._largest(fp8.with_outputs(model, names), names, pieces)
        self._on_step("writing", 0.0)
        with self._timed("quantize"):
            fp8.write_fp8(model, self._draft, weights, largest)

    def _largest(self, model: bytes, names: Sequence[str], pieces: int | None) -> dict[str, float]:
        """Of each value, the greatest absolute one over the text to calibrate with."""
        session = Session(model, self._job.threads)
        texts = self._texts(self._job.calibration, pieces)
        found, tokens = dict.fromkeys(names, 0.0), 0
        for number in range(texts.count):
            self._on_step("calibrating", number / texts.count)
            row = texts.row(number)
            tokens += len(row.ids)
            if number and tokens > self._job.most_tokens:
                break
            for name, values in zip(names, session.run(session.feeds(row), names), strict=True):
                found[name] = max(found[name], float(np.abs(values).max()))
        return found

    def _failure(self, error: Exception) -> EdgeError:
        directory = self._draft.parent
        if isinstance(error, OSError) and error.errno not in _FULL:
            return ConfigurationError(f"cannot write into {directory}: {error.strerror or error}")
        free = shutil.disk_usage(directory).free
        return ConfigurationError(
            f"cannot write into {directory}, which has {free / 1e6:,.0f} MB left: the disk is full, or a quota reached"
        )

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        setattr(self._seconds, part, round(time.monotonic() - begun, 3))
