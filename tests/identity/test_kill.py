"""kill -9 before each effect: the same command again ends well, as the same node, with the same key.

`make prove-enroll-node` does more of it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.enroll_sweep import Sweep
from bench.enroll_victim import Victim
from bench.est_server import EstServer

_MUST_BE_AMONG = {
    "enroll": {"place key.pem", "ask simpleenroll", "heard simpleenroll", "ask bootstrap", "point current"},
    "renew": {"place key.pem", "ask simplereenroll", "heard simplereenroll", "point current", "remove 000001"},
    "reset": {"place resetting", "remove current", "remove 000001", "remove resetting"},
}


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    with Victim() as found:
        yield found


@pytest.fixture
def place() -> Iterator[Path]:
    """In memory where that can be: SIGKILL is no power cut, and fsync takes most of the time. Its name is one that nobody sweeps
    up who tidies after others."""
    memory = Path("/dev/shm")
    found = Path(tempfile.mkdtemp(prefix="edge-kill-", dir=memory if memory.is_dir() else None))
    yield found
    shutil.rmtree(found)


@pytest.mark.parametrize("what", ["enroll", "renew", "reset"])
def test_a_kill_before_any_effect_is_recovered_from(est: EstServer, victim: Victim, place: Path, what: str) -> None:
    cases = list(Sweep(est, victim, place).each(what))
    assert [case for case in cases if case.wrong] == []
    assert {case.effects[0] for case in cases if case.effects} >= _MUST_BE_AMONG[what]
