"""The child's work on one file: look, measure importance, write, compare. One library, at most two models at a time."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge.engine.llama.context import ForwardFailed
from edge.engine.llama.importance import ImportanceMeter
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.engine.llama.quantizer import Outcome, quantize
from edge.engine.llama.reading import ReadingContext
from edge.errors import ConfigurationError, EngineFault
from edge.quantize.compare import Comparison
from edge.quantize.job import Job
from edge.quantize.kinds import KINDS, check
from edge.quantize.report import FellBack, File, Importance, Report, Seconds
from edge.quantize.text import CHUNK_TOKENS, chunks
from edge.registry.gguf import read_header

OnStep = Callable[[str, float], None]
Columns = dict[str, npt.NDArray[np.float32]]

_GROWTH = 1.01
"""libllama rounds the sizes that it foretells."""


class Work:
    """One job. `run` once."""

    def __init__(self, job: Job, on_step: OnStep, on_written: Callable[[], None]) -> None:
        self._job, self._on_step, self._on_written = job, on_step, on_written
        self._library = Library()
        self._seconds = Seconds()

    def run(self) -> Report:
        """All of it. Raises EdgeError; the target is there, whole, once `on_written` was called."""
        job = self._job
        plan = self._plan()
        with self._timed("importance"):
            importance, columns = self._importance() if job.importance else (None, None)
        with self._timed("quantize"):
            self._write(columns)
        self._on_written()
        divergence = accuracy = None
        if job.report:
            with self._timed("report"), closing(Comparison(job, self._library, self._on_step)) as comparison:
                divergence, accuracy = comparison.divergence(), comparison.accuracy()
        header = read_header(Path(job.target))
        tensor_bytes = sum(header.tensor_bytes.values())
        weights = header.parameters
        return Report(
            kind=job.kind,
            source=_file(job.source, job.source_bytes, plan.source_bytes / weights, plan.types_before),
            result=_file(job.target, header.file_bytes, tensor_bytes / weights, plan.types_after),
            fell_back=[FellBack(f.tensor, f.columns, f.wanted, f.got) for f in plan.fall_backs],
            importance=importance,
            divergence=divergence,
            accuracy=accuracy,
            seconds=self._seconds,
        )

    def _plan(self) -> Outcome:
        """What would come of it, and whether it may and can."""
        job = self._job
        self._on_step("looking at the source", 0.0)
        source, draft = Path(job.source), Path(job.draft)
        plan = quantize(
            self._library, source, draft, job.kind, threads=job.threads, requantize=job.allow_requantize, dry_run=True
        )
        check(
            KINDS[job.kind],
            source=job.source,
            experts=job.experts,
            types=set(plan.types_before.values()),
            allow_requantize=job.allow_requantize,
        )
        needed = int(plan.result_bytes * _GROWTH) + job.metadata_bytes
        free = shutil.disk_usage(draft.parent).free
        if needed > free:
            raise ConfigurationError(
                f"{draft.parent} has {free / 1e6:,.1f} MB left, the result needs {needed / 1e6:,.1f} MB; "
                "free some, or write elsewhere"
            )
        return plan

    def _importance(self) -> tuple[Importance, Columns]:
        """Run the source over the calibration text."""
        job, stage = self._job, "measuring importance"
        self._on_step(stage, 0.0)
        meter = ImportanceMeter()
        with closing(Model(self._library, Path(job.source), gpu_layers=0, mapped=True)) as model:
            words = model.vocabulary
            tokens = words.tokenize(job.calibration, add_special=False, parse_special=True)
            size = min(CHUNK_TOKENS, model.train_context_tokens or CHUNK_TOKENS)
            start = [words.bos] if words.adds_bos else []
            pieces = list(chunks(tokens, size=size, most_tokens=job.most_tokens, start=start))
            if not pieces:
                raise ConfigurationError("the text to calibrate with is too short; give a longer one, or --imatrix off")
            reader = ReadingContext(
                self._library, model, context_tokens=size, threads=job.threads, observer=meter.observe
            )
            with closing(reader):
                for number, piece in enumerate(pieces):
                    self._on_step(stage, number / len(pieces))
                    self._read(reader, piece, meter)
        columns = meter.columns()
        if not columns:
            raise EngineFault(
                "this model's graph shows none of its weights: no importance can be measured; use --imatrix off"
            )
        return Importance(job.calibration_name, sum(map(len, pieces)), len(columns)), columns

    def _read(self, reader: ReadingContext, piece: list[int], meter: ImportanceMeter) -> None:
        try:
            for _ in reader.read(piece):
                if meter.failure is not None:
                    raise meter.failure
        except ForwardFailed as error:
            raise meter.failure or EngineFault(f"the source cannot be computed: {error}") from None

    def _write(self, columns: Columns | None) -> None:
        """The file, under the draft's name until it is whole and on the disk."""
        job, draft = self._job, Path(self._job.draft)
        quantize(
            self._library,
            Path(job.source),
            draft,
            job.kind,
            threads=job.threads,
            importance=columns,
            requantize=job.allow_requantize,
            on_share=lambda share: self._on_step("writing", share),
        )
        read_header(draft)  # raises if it was cut short
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(job.target)

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        setattr(self._seconds, part, round(time.monotonic() - begun, 3))


def _file(path: str, size: int, bytes_per_weight: float, types: dict[str, str]) -> File:
    return File(path, size, round(8 * bytes_per_weight, 3), dict(Counter(types.values()).most_common()))
