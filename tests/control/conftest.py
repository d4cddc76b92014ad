"""A real fleet server and a real broker, and boxes that enroll."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.fleet_side import Box, FleetSide
from tests.waiting import until

NewBox = Callable[..., Box]


def let_in(box: Box) -> None:
    """Fetch its bootstrap, and wait until the broker knows it: for that the server has its client wait for some seconds only."""
    assert box.bootstrap().status_code == 200
    place = box.fleet.home.broker
    until(lambda: f"user {box.name}\n" in (place / "acl").read_text() and not (place / ".untold").exists())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FleetSide]:
    """One for all tests of a module; each takes boxes of its own."""
    found = FleetSide(tmp_path_factory.mktemp("fleet") / "plant")
    found.start_broker()
    found.start()
    with found.people() as people:  # its sink too: what nodes say before it listens is heard by nobody
        until(lambda: people.get("/health").json()["status"] == "ok")
    yield found
    found.end()


@pytest.fixture
def own_fleet(tmp_path: Path) -> Iterator[FleetSide]:
    """One that a test may kill and change; neither server nor broker runs yet."""
    found = FleetSide(tmp_path / "plant")
    yield found
    found.end()


@pytest.fixture
def new_box(fleet: FleetSide, tmp_path: Path) -> NewBox:
    """A box at the module's fleet."""
    numbers = itertools.count(1)

    def make(label: str = "box", at: FleetSide | None = None) -> Box:
        return Box(tmp_path / f"box-{next(numbers)}", at or fleet, label)

    return make
