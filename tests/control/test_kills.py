"""A server that is killed in the middle of an enrollment, re-key or revocation: one identity for each key, and decisions hold.

Here at the steps that matter most; `make prove-enroll` does it at every step.
"""

from __future__ import annotations

import base64
import contextlib
import sqlite3
from pathlib import Path

import httpx
import pytest

from bench.dying_server import deaths, died, start_dying
from bench.fleet_side import Box, FleetSide
from edge.identity.token import EnrollmentToken
from tests.waiting import until


def rows(fleet: FleetSide, query: str) -> list[tuple[object, ...]]:
    with sqlite3.connect(fleet.home.database) as db:
        return db.execute(query).fetchall()


def test_an_enrollment_makes_one_node_whenever_the_server_is_killed(own_fleet: FleetSide, tmp_path: Path) -> None:
    boxes: list[tuple[Box, EnrollmentToken]] = []
    steps = ("INSERT INTO nodes", "INSERT INTO certificates", "commit", "connection given back", "os.rename .acl")
    for number, step in enumerate(steps):
        box, token = Box(tmp_path / f"b{number}", own_fleet, f"b{number}"), own_fleet.token()
        boxes.append((box, token))
        start_dying(own_fleet, step)
        with contextlib.suppress(httpx.HTTPError):
            box.enroll(token)
        assert died(own_fleet, 60), f"there is no step {step!r} any more"
    assert len(deaths(own_fleet)) == len(steps)
    own_fleet.start()
    for box, token in boxes:
        assert box.enroll(token).status_code == 200
        assert box.bootstrap().json()["node"] == box.label == box.name
    assert len(rows(own_fleet, "SELECT id FROM nodes")) == len(boxes)
    per_key = rows(own_fleet, "SELECT key_sha256, COUNT(DISTINCT node_id) FROM certificates GROUP BY 1")
    assert [count for _, count in per_key] == [1] * len(boxes)
    acl = (own_fleet.home.broker / "acl").read_text()
    assert all(f"user {box.name}\n" in acl for box, _ in boxes)


def test_a_rekey_keeps_the_node_whenever_the_server_is_killed(own_fleet: FleetSide, tmp_path: Path) -> None:
    box = Box(tmp_path / "box", own_fleet, "rekeys")
    own_fleet.start()
    assert box.enroll(own_fleet.token()).status_code == 200
    own_fleet.kill()
    fresh = Box(tmp_path / "fresh", own_fleet, "rekeys")
    for step in ("UPDATE nodes", "commit", "connection given back"):
        start_dying(own_fleet, step)
        with box.client() as client, contextlib.suppress(httpx.HTTPError):
            client.post("/.well-known/est/simplereenroll", content=base64.b64encode(fresh.csr()))
        assert died(own_fleet, 60)
    own_fleet.start()
    with (
        box.client() as client
    ):  # it holds on to the old key until it has an answer, and asks again for the same new one
        answer = client.post("/.well-known/est/simplereenroll", content=base64.b64encode(fresh.csr()))
    assert answer.status_code == 200
    box.key = fresh.key
    box.keep(answer)
    assert box.name == "rekeys" and box.renew().status_code == 200
    assert rows(own_fleet, "SELECT id FROM nodes") == [("rekeys",)]


@pytest.mark.parametrize(
    "step", ["commit", "connection given back", "os.rename ..untold", "os.rename .acl", "os.remove .untold"]
)
def test_a_revocation_holds_or_was_not_made_whenever_the_server_is_killed(
    own_fleet: FleetSide, tmp_path: Path, step: str
) -> None:
    own_fleet.start()
    Box(tmp_path / "box", own_fleet, "out").enroll(own_fleet.token())
    own_fleet.kill()
    start_dying(own_fleet, step)
    with own_fleet.people() as people, contextlib.suppress(httpx.HTTPError):
        people.post("/fleet/v1/nodes/out/revoke")
    assert died(own_fleet, 60)
    revoked = rows(own_fleet, "SELECT state FROM nodes") == [("revoked",)]
    assert revoked or step == "commit"
    own_fleet.start()
    acl = own_fleet.home.broker / "acl"
    until(lambda: ("user out\n" in acl.read_text()) is not revoked and not (own_fleet.home.broker / ".untold").exists())
