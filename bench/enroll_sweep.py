"""kill -9 before each effect of enrolling, enrolling anew, renewing and resetting, and what must be so afterwards."""

from __future__ import annotations

import random
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.enroll_victim import Job, Victim
from bench.est_server import EstServer
from edge.identity.store import Store

_MOST = 200


@dataclass(frozen=True)
class Case:
    """One that was tried: killed before `effects`, and what was wrong afterwards (empty: nothing)."""

    what: str
    effects: tuple[str, ...]
    wrong: str


class Sweep:
    """Tries cases at one server, each in a home of its own."""

    def __init__(self, est: EstServer, victim: Victim, place: Path) -> None:
        self._est, self._victim, self._place = est, victim, place
        self._count = 0

    def each(self, what: str) -> Iterator[Case]:
        """Killed before the first effect, the second, and so on, until there is none left."""
        for at in range(1, _MOST):
            case = self.one(what, (at,))
            if not case.effects and not case.wrong:
                return
            yield case
        raise AssertionError(f"{what} has more than {_MOST} effects")

    def threes(self, what: str, effects: int, count: int, seed: int) -> Iterator[Case]:
        """Killed, begun again, killed again, and once more, at random places."""
        source = random.Random(seed)
        for _ in range(count):
            yield self.one(what, tuple(source.randint(1, effects) for _ in range(3)))

    def one(self, what: str, kills: tuple[int, ...]) -> Case:
        """One home: killed at these, and then let through."""
        self._count += 1
        home = self._place / f"home-{self._count}"
        token_id = f"tok{self._count}"
        first, second = self._est.token(token_id), self._est.token(f"{token_id}x")
        if what != "enroll":
            self._require(Job("enroll", str(home), self._est.url, first))
        token = second if what == "force" else first
        job = {"what": what, "home": str(home), "url": self._est.url, "token": token}
        killed = []
        for at in kills:
            outcome = self._victim.do(Job(**job, at=at))  # type: ignore[arg-type]
            if wrong := _readable(home):
                return Case(what, (outcome.effects[-1],), wrong)
            if outcome.killed:
                killed.append(outcome.effects[-1])
            elif outcome.error:
                return Case(what, tuple(killed), f"not killed, and failed: {outcome.error}")
        last = self._victim.do(Job(**job))  # type: ignore[arg-type]
        wrong = last.error or _readable(home) or self._afterwards(what, home, token_id)
        shutil.rmtree(home)
        return Case(what, tuple(killed), wrong)

    def _require(self, job: Job) -> None:
        outcome = self._victim.do(job)
        assert not outcome.error and not outcome.killed, outcome

    def _afterwards(self, what: str, home: Path, token_id: str) -> str:
        """What is not as it must be once it was let through."""
        identity = Store(home).current()
        left = [path.name for path in (home / "identity").iterdir()]
        if what == "reset":
            return (
                ""
                if identity is None and not {"generations", "current", "resetting"} & set(left) - {"generations"}
                else str(left)
            )
        if identity is None:
            return "there is no identity"
        own = f"{token_id}x" if what == "force" else token_id
        nodes = [name for name in self._est.nodes if name.rpartition("-")[0] == own]
        if nodes != [identity.node]:
            return f"the fleet knows {nodes}, the node is {identity.node}"
        keys = len(self._est.nodes[identity.node].keys)
        # One key for each generation, none beside them: what was killed went on with the key that it had begun with. A renewal
        # that was in force already when it was killed is followed by another one when it is asked for again.
        if keys != (identity.generation if what == "renew" else 1):
            return f"{keys} keys were used for {what}, generation {identity.generation}"
        if unfinished := [name for name in left if name in ("enrolling", "renewing") or name.startswith(".")]:
            return f"left behind: {unfinished}"
        if len(list((home / "identity" / "generations").iterdir())) != 1:
            return "old generations are left behind"
        return ""


def _readable(home: Path) -> str:
    """What others could read at this moment."""
    for path in (home / "identity").rglob("*"):
        if not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & 0o077 and path.name != "lock":
            return f"{path} has mode {stat.S_IMODE(path.lstat().st_mode):04o}"
    return ""
