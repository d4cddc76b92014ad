"""Before the authority ends whoever runs the fleet hears of it, in time and not all the time."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bench.fleet_side import FleetSide
from edge.control.authority import add_issuing, add_root, create_authority, load_authority
from edge.control.endings import Told, endings
from edge.control.settings import load_settings
from edge.control.x509 import now_utc
from tests.waiting import until


@pytest.mark.parametrize(
    ("left_days", "ahead"), [(400, None), (30.5, None), (29.5, 30), (7.5, 30), (6.5, 7), (0.5, 7), (-3, 7)]
)
def test_what_ends_is_told_of_at_two_distances(own_fleet: FleetSide, left_days: float, ahead: int | None) -> None:
    authority = load_authority(own_fleet.home)
    ends = authority.issuer.certificate.not_valid_after_utc
    found = endings(authority, ends - timedelta(days=left_days))
    assert [ending.ahead_days for ending in found] == ([] if ahead is None else [ahead])
    for ending in found:
        word = "ended" if left_days < 0 else "ends"
        assert ending.text.startswith(f"the issuing authority {word} on {ends:%Y-%m-%d}")
        assert "edge fleet ca new-issuing" in ending.text


def test_a_root_is_told_of_too_and_the_clock_of_a_box_without_one_is_none(own_fleet: FleetSide) -> None:
    authority = load_authority(own_fleet.home)
    at = authority.current_root.not_valid_after_utc - timedelta(days=3)
    assert [ending.what for ending in endings(authority, at)] == ["issuing authority", "root"]
    assert "new-root" in endings(authority, at)[1].text
    assert endings(authority, datetime.fromtimestamp(0, at.tzinfo)) == []


def test_each_distance_is_told_of_once_and_of_the_next_authority_anew(own_fleet: FleetSide) -> None:
    home, name, told = own_fleet.home, load_settings(own_fleet.home).name, Told()
    authority = load_authority(home)
    ends = authority.issuer.certificate.not_valid_after_utc

    def days(authority_days: float) -> list[int]:
        return [ending.ahead_days for ending in told.new(endings(authority, ends - timedelta(days=authority_days)))]

    assert [days(left) for left in (31, 29, 28, 8, 6, 5, -1)] == [[], [30], [], [], [7], [], []]
    add_issuing(home, name, ends - timedelta(days=1))
    authority = load_authority(home)
    assert days(1) == []
    ends = authority.issuer.certificate.not_valid_after_utc
    assert [days(left) for left in (31, 29, 6)] == [[], [30], [7]]


def test_the_log_and_the_page_of_a_server_tell_of_it_until_another_authority_signs(own_fleet: FleetSide) -> None:
    home, name, now = own_fleet.home, load_settings(own_fleet.home).name, now_utc()
    create_authority(home, name, now - timedelta(days=5 * 365 - 10))
    own_fleet.start()

    def problems() -> list[str]:
        with own_fleet.people() as people:
            assert people.get("/health").status_code == 200
            found: list[str] = people.get("/fleet/v1/overview").json()["problems"]
            return [problem for problem in found if "authority" in problem]

    (problem,) = problems()
    assert "edge fleet ca new-issuing" in problem
    until(lambda: own_fleet.log.read_text().count("the authority ends soon") == 1)
    assert own_fleet.cli("ca", "new-issuing").returncode == 0
    until(lambda: problems() == [])
    assert own_fleet.log.read_text().count("the authority ends soon") == 1


def test_an_authority_that_was_taken_over_from_may_end(own_fleet: FleetSide) -> None:
    home, name, now = own_fleet.home, load_settings(own_fleet.home).name, now_utc()
    create_authority(home, name, now - timedelta(days=5 * 365 - 3))
    add_root(home, name, now)
    add_issuing(home, name, now)
    assert endings(load_authority(home), now) == []
