"""The child's life as its parent sees it: started, listened to, ended; and its draft, which never stays."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from edge.engine.child import THREAD_WAIT
from edge.errors import EngineFault, from_code
from edge.quantize.job import AnyJob, Done, Fault, Step, Written, decode_event, encode
from edge.quantize.report import Report

_LAST_WORDS_BYTES = 4096


@contextlib.contextmanager
def draft_beside(target: Path) -> Iterator[Path]:
    """A name beside the target for what is not whole yet; whatever happens, nothing stays there, nor in `scratch_of` it."""
    draft = target.absolute().with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield draft
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
        shutil.rmtree(scratch_of(draft), ignore_errors=True)


def scratch_of(draft: Path) -> Path:
    """Where a child puts working copies: on the disk that was looked at, and gone with the draft."""
    return draft.with_name(f"{draft.name}s")


def supervise(job: AnyJob, on_step: Callable[[str, float], None]) -> Report:
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


def _told(job: AnyJob, message: str, *, written: bool) -> str:
    return f"{job.target} is written and whole, but the report failed: {message}" if written else message


def _epitaph(status: int, stage: str, words: IO[bytes]) -> str:
    """How the child ended, while what, and the last that it wrote."""
    how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
    words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
    lines = [line for line in words.read().decode("utf-8", "replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "ASSERT" in line), lines[-1] if lines else "")
    hint = "; was memory short?" if status == -signal.SIGKILL else ""
    return f"the quantizer's process was {how} while {stage}{f': {said}' if said else ''}{hint}"
