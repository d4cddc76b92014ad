"""The JSON API for people: who may, what it does, how it pages."""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from bench.fleet_side import Box, FleetSide
from edge.control.database import Database, Node
from tests.control.conftest import NewBox
from tests.waiting import until

ROUTES = [
    ("GET", "/fleet/v1/overview"), ("GET", "/fleet/v1/nodes"), ("GET", "/fleet/v1/nodes/n1"),
    ("POST", "/fleet/v1/nodes/n1/approve"), ("POST", "/fleet/v1/nodes/n1/revoke"), ("GET", "/fleet/v1/tokens"),
    ("POST", "/fleet/v1/tokens"), ("DELETE", "/fleet/v1/tokens/abcd"), ("GET", "/fleet/v1/audit"), ("GET", "/fleet/v1/session"),
    ("DELETE", "/fleet/v1/session"),
]  # fmt: skip


def sign_in(fleet: FleetSide, client: httpx.Client) -> str:
    """The CSRF token."""
    answer = client.post("/fleet/v1/session", json={"key": fleet.admin_key})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["csrf"])


def test_every_call_needs_a_key_or_a_session(fleet: FleetSide) -> None:
    with fleet.people(key=False) as client:
        described = client.get("/openapi.json").json()["paths"]
        known = {(method.upper(), path) for path, methods in described.items() for method in methods}
        assert {(m, p.replace("n1", "{node_id}").replace("abcd", "{token_id}")) for m, p in ROUTES} == known - {
            ("GET", "/health"), ("POST", "/fleet/v1/session"),
        }, "a route was added: say here whether it needs a key"  # fmt: skip
        for headers in ({}, {"authorization": "Bearer edge-wrong"}, {"cookie": "edge-fleet=wrong"}):
            for method, path in ROUTES:
                answer = client.request(method, path, headers=headers, json={} if method == "POST" else None)
                assert answer.status_code == 401, (method, path, answer.text)


def test_the_cookie_is_for_this_server_only_and_scripts_do_not_see_it(fleet: FleetSide) -> None:
    with fleet.people(key=False) as client:
        sign_in(fleet, client)
        answer = client.post("/fleet/v1/session", json={"key": fleet.admin_key})
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie


def test_over_tls_the_cookie_is_for_tls_only(own_fleet: FleetSide) -> None:
    own_fleet.set('admin.tls_cert = "tls/server.pem"\nadmin.tls_key = "tls/server.key"')
    own_fleet.people_url = own_fleet.people_url.replace("http://", "https://")
    own_fleet.people_trust = context = ssl.create_default_context(cafile=own_fleet.home.ca / "root-1.pem")
    own_fleet.start()
    with httpx.Client(base_url=own_fleet.people_url, verify=context, timeout=60, trust_env=False) as client:
        answer = client.post("/fleet/v1/session", json={"key": own_fleet.admin_key})
        assert (
            answer.headers["set-cookie"].startswith("__Host-edge-fleet=") and "Secure" in answer.headers["set-cookie"]
        )
        assert client.get("/fleet/v1/session").status_code == 200


def test_a_session_changes_nothing_without_its_csrf_token(fleet: FleetSide) -> None:
    with fleet.people(key=False) as client:
        csrf = sign_in(fleet, client)
        for headers in ({}, {"x-csrf-token": "0" * 64}):
            for method, path in [route for route in ROUTES if route[0] != "GET"]:
                answer = client.request(method, path, headers=headers, json={} if method == "POST" else None)
                assert answer.status_code == 403, (method, path)
        made = client.post("/fleet/v1/tokens", json={}, headers={"x-csrf-token": csrf})
        assert made.status_code == 201 and made.json()["token"].startswith(f"E10{fleet.pin}::")
        assert client.delete("/fleet/v1/session", headers={"x-csrf-token": csrf}).status_code == 204
        assert client.get("/fleet/v1/session").status_code == 401


def test_another_site_cannot_sign_in_here(fleet: FleetSide) -> None:
    with fleet.people(key=False) as client:
        headers = {"sec-fetch-site": "cross-site"}
        assert client.post("/fleet/v1/session", json={"key": fleet.admin_key}, headers=headers).status_code == 403


def test_a_revoked_key_ends_the_sessions_that_it_opened(fleet: FleetSide) -> None:
    made = fleet.cli("admin-key", "create", "guest")
    with fleet.people(key=False) as client:
        client.post("/fleet/v1/session", json={"key": made.stdout.strip()})
        assert client.get("/fleet/v1/overview").status_code == 200
        assert fleet.cli("admin-key", "revoke", "guest").returncode == 0
        assert client.get("/fleet/v1/overview").status_code == 401


def test_a_part_that_does_not_do_its_work_is_told(own_fleet: FleetSide, tmp_path: Path) -> None:
    own_fleet.start()

    def told() -> tuple[str, list[str]]:
        with own_fleet.people() as people:
            return people.get("/health").json()["status"], people.get("/fleet/v1/overview").json()["problems"]

    status, (problem,) = told()
    assert status == "degraded" and "no connection to the broker" in problem
    own_fleet.start_broker()
    until(lambda: told() == ("ok", []))
    own_fleet.stop_broker()
    (own_fleet.home.broker / "mosquitto.pid").write_text("1\n")
    assert (
        Box(tmp_path / "box", own_fleet).enroll(own_fleet.token()).status_code == 200
    )  # so there is something to be told
    until(lambda: any("no running mosquitto" in problem for problem in told()[1]))


def test_what_was_done_is_in_the_log_with_who_did_it(fleet: FleetSide, new_box: NewBox) -> None:
    box = new_box("logged")
    with fleet.people() as client:
        made = client.post("/fleet/v1/tokens", json={"approval": True, "group": "g"}).json()
        box.enroll(fleet.token(approval=True))
        client.post("/fleet/v1/nodes/logged/approve")
        client.post("/fleet/v1/nodes/logged/revoke")
        client.delete(f"/fleet/v1/tokens/{made['id']}")
        about_node = client.get("/fleet/v1/audit", params={"subject": "logged"}).json()["items"]
        about_token = client.get("/fleet/v1/audit", params={"subject": made["id"]}).json()["items"]
        assert client.post("/fleet/v1/nodes/logged/approve").status_code == 409
    assert [(e["action"], e["actor"]) for e in about_node][:2] == [
        ("node_revoked", "admin:first"), ("node_approved", "admin:first"),
    ]  # fmt: skip
    assert [e["action"] for e in about_token] == ["token_revoked", "token_created"]
    everything = fleet.cli("audit", "--json", "--limit", "1000").stdout
    assert made["token"].rpartition(":")[2] not in everything, "no secret is written down"


def test_a_secret_is_nowhere_in_the_directory(fleet: FleetSide, new_box: NewBox) -> None:
    token = fleet.token()
    new_box("secretive").enroll(token)
    for path in fleet.home.root.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # the server goes on, and has drafts of files
            data = path.read_bytes()
            assert token.secret.encode() not in data and fleet.admin_key.encode() not in data, path


def test_keys_are_readable_by_their_owner_alone(fleet: FleetSide) -> None:
    private = [
        p for p in fleet.home.root.rglob("*") if p.suffix in (".key", ".db") or p.name in ("admin-keys.json", "acl")
    ]
    assert len(private) >= 8
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or path.name == "telemetry.db", path


def test_5000_nodes_come_a_page_at_a_time(own_fleet: FleetSide) -> None:
    database = Database(own_fleet.home.database)
    with database.write() as session:
        for number in range(5000):
            session.add(
                Node(
                    id=f"n{number:05}", label=f"Box {number}", group="g" if number % 2 else "h", state="active",
                    key_sha256=f"{number:064}", token_id=None, created_s=1.0, approved_s=1.0, approved_by="t",
                    revoked_s=None, revoked_by=None, not_after_s=2e9,
                )
            )  # fmt: skip
    database.close()
    own_fleet.start()
    with own_fleet.people() as client:
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = client.get("/fleet/v1/nodes", params={"limit": 500, **({"after": after} if after else {})}).json()
            seen += [item["id"] for item in page["items"]]
            after = page["next"]
        assert seen == [f"n{number:05}" for number in range(5000)]
        assert client.get("/fleet/v1/nodes", params={"q": "Box 499"}).json()["items"][0]["id"] == "n00499"
        assert len(client.get("/fleet/v1/nodes", params={"group": "g", "limit": 10}).json()["items"]) == 10
        assert client.get("/fleet/v1/overview").json()["nodes"] == {"pending": 0, "active": 5000, "revoked": 0}
        assert client.get("/fleet/v1/nodes", params={"q": "%"}).json()["items"] == [], "a wildcard is a letter here"
    listed = own_fleet.cli("nodes", "--json")
    assert listed.returncode == 0 and listed.stdout.count('"id"') == 5000
    acl = (own_fleet.home.broker / "acl").read_text()
    assert acl.count("user n0") == 5000


@pytest.mark.parametrize("listener", ["nodes", "people"])
def test_schemathesis_finds_no_5xx(fleet: FleetSide, new_box: NewBox, tmp_path: Path, listener: str) -> None:
    """Generated requests over both descriptions: whatever comes, no server error and no undocumented status."""
    url = fleet.url if listener == "nodes" else fleet.people_url
    token = fleet.token(uses=1000)
    box = new_box("schemathesis")
    box.enroll(token)
    basic = base64.b64encode(f"{token.id}:{token.secret}".encode()).decode()
    header = f"Authorization: Basic {basic}" if listener == "nodes" else f"Authorization: Bearer {fleet.admin_key}"
    run = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json",
            "--checks=not_a_server_error,status_code_conformance,content_type_conformance",
            "--max-examples=15", "--seed=1", "--generation-deterministic", "--request-timeout=120", f"--header={header}",
            "--suppress-health-check=too_slow",  # which is about the machine
            f"--tls-verify={fleet.home.ca / 'root-1.pem'}",
            f"--request-cert={box.cert_file}", f"--request-cert-key={box.key_file}",
        ],
        capture_output=True, text=True, timeout=1200, cwd=tmp_path, check=False,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.control.schemathesis_hooks", "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]


def test_a_box_that_was_revoked_is_gone_for_good(fleet: FleetSide, new_box: NewBox) -> None:
    box, token = new_box("gone"), fleet.token(uses=5)
    box.enroll(token)
    assert fleet.cli("revoke", "gone").returncode == 0
    assert box.enroll(token).headers["edge-reason"] == "node_revoked"
    assert box.enroll(fleet.token()).headers["edge-reason"] == "node_revoked", "its key is what is shut out"
    assert fleet.cli("approve", "gone").returncode == 1
    fresh = Box(box.directory / "fresh", fleet, "gone")
    assert fresh.enroll(token).status_code == 200 and fresh.name.startswith("gone-")
