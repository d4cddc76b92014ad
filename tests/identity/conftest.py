"""A real EST server that is not ours, a node's identity store, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bench.est_server import EstServer
from edge.identity.enroll import Enrolled, Wish, enroll
from edge.identity.files import Files
from edge.identity.identity import Identity
from edge.identity.renew import renew
from edge.identity.store import Store
from edge.identity.token import EnrollmentToken
from tests.telemetry.conftest import HandClock


@dataclass
class Box:
    """A machine that wants to become a node."""

    home: Path
    url: str
    clock: HandClock
    said: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    broker: str = ""
    """What is wrong with the broker when a certificate is tried there."""

    @property
    def store(self) -> Store:
        return Store(self.home, Files(self.home, self.effects.append))

    def enroll(self, token: str, **wish: Any) -> Enrolled:
        wanted = Wish(wish.pop("url", self.url), EnrollmentToken.parse(token), wish.pop("label", "Press 7"), **wish)
        return asyncio.run(enroll(wanted, self.store, self.clock, self.said.append))

    def renew(self) -> Identity:
        return asyncio.run(renew(self.store, self.clock, lambda _: self.broker))

    def identity(self) -> Identity:
        found = self.store.current()
        assert found is not None
        return found


@pytest.fixture
def est(tmp_path: Path) -> Iterator[EstServer]:
    server = EstServer(tmp_path / "est")
    yield server
    complaints = server.complaints
    server.stop()
    assert complaints == []


@pytest.fixture
def box(tmp_path: Path, est: EstServer) -> Box:
    return Box(tmp_path / "home", est.url, now_clock())


def now_clock(*, synced: bool = True, wall_s: float | None = None) -> HandClock:
    """At this machine's time, unless another is given."""
    import time

    return HandClock(time.time() if wall_s is None else wall_s, synced=synced)
