"""The child's main: one job from standard input, events on the pipe whose number it is given."""

from __future__ import annotations

import os
import signal
import sys

from edge.errors import EdgeError
from edge.machine import die_with_parent
from edge.quantize.job import AnyJob, Done, Event, Fault, Job, Step, Written, decode_job, encode
from edge.quantize.report import Report

_TELLING_SHARE = 0.01


class _Teller:
    """Writes events; of steps only those that say something new."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._last = Step("", 0.0)

    def say(self, event: Event) -> None:
        data = encode(event) + b"\n"
        while data:
            data = data[os.write(self._pipe, data) :]

    def step(self, stage: str, share: float) -> None:
        if stage != self._last.stage or share - self._last.share >= _TELLING_SHARE:
            self._last = Step(stage, share)
            self.say(self._last)


def _work(job: AnyJob, teller: _Teller) -> Report:
    """By the one native library that the job is for: the other may not be installed."""
    if isinstance(job, Job):
        from edge.quantize.work import Work

        return Work(job, teller.step, lambda: teller.say(Written())).run()
    from edge.quantize.onnx.work import OnnxWork

    return OnnxWork(job, teller.step, lambda: teller.say(Written())).run()


def main(arguments: list[str]) -> int:
    """Entry point. Ctrl-C is the parent's to handle; the kernel ends this process with it."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    teller = _Teller(int(arguments[0]))
    job = decode_job(sys.stdin.buffer.read())
    try:
        teller.say(Done(_work(job, teller)))
    except EdgeError as error:
        teller.say(Fault(error.code or "", error.message))
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))
