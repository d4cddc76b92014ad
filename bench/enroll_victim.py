"""Enrolls, renews and resets in processes that end by SIGKILL before their Nth effect. Fed with jobs, one JSON object a line.

One process with everything imported forks for each job, so that a job takes milliseconds. The product has no switch for this:
`edge.identity.files` tells whoever constructs it of each effect.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from edge.errors import EdgeError
from edge.identity.enroll import Wish, enroll
from edge.identity.files import Files
from edge.identity.renew import renew
from edge.identity.store import Store
from edge.identity.token import EnrollmentToken
from edge.telemetry.clock import SystemClock


@dataclass(frozen=True)
class Job:
    """What to do in `home`. `at`: the effect before which the process ends, counted from 1; 0: never."""

    what: Literal["enroll", "force", "renew", "reset"]
    home: str
    url: str = ""
    token: str = ""
    at: int = 0


@dataclass(frozen=True)
class Outcome:
    """How it ended. `effects`: their names, the one that was not done any more included."""

    killed: bool
    error: str
    effects: list[str]


class Victim:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.enroll_victim"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Victim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def do(self, job: Job) -> Outcome:
        """Have it done, as far as it goes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(job)) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


def _serve() -> None:
    for line in sys.stdin:
        job = Job(**json.loads(line))
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            os._exit(_run(job, write))
        os.close(write)
        with os.fdopen(read) as pipe:
            said = pipe.read().splitlines()
        _, status = os.waitpid(child, 0)
        errors = [text.removeprefix("error: ") for text in said if text.startswith("error: ")]
        outcome = Outcome(os.WIFSIGNALED(status), "".join(errors), [t for t in said if not t.startswith("error: ")])
        print(json.dumps(asdict(outcome)), flush=True)


def _run(job: Job, pipe: int) -> int:
    os.umask(0)  # whatever is not asked to be private would be everybody's
    count = 0

    def before(effect: str) -> None:
        nonlocal count
        count += 1
        os.write(pipe, f"{effect}\n".encode())
        if count == job.at:
            os.kill(os.getpid(), signal.SIGKILL)

    home = Path(job.home)
    store, clock = Store(home, Files(home, before)), SystemClock()
    try:
        _do(job, store, clock)
    except EdgeError as error:
        os.write(pipe, f"error: {type(error).__name__}: {error.message}\n".encode())
        return 1
    except Exception as error:  # this process must not live on as the one that forks
        os.write(pipe, f"error: {type(error).__name__}: {' '.join(str(error).split())}\n".encode())
        return 1
    return 0


def _do(job: Job, store: Store, clock: SystemClock) -> Any:
    if job.what in ("enroll", "force"):
        wish = Wish(job.url, EnrollmentToken.parse(job.token), "victim", force=job.what == "force")
        return asyncio.run(enroll(wish, store, clock, lambda _: None))
    if job.what == "renew":
        return asyncio.run(renew(store, clock, lambda _: ""))
    with store.locked():
        return store.reset()


if __name__ == "__main__":
    _serve()
