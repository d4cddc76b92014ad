"""One authority takes over from another while nodes go on, and the offline root is away."""

from __future__ import annotations

import base64
import shutil
import ssl
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import pkcs7

from bench.fleet_side import Box, FleetSide
from edge.telemetry.mqtt import Connection, ConnectionFailed, Handlers
from tests.waiting import until


def cacerts(fleet: FleetSide, root: str) -> list[x509.Certificate]:
    context = ssl.create_default_context(cafile=fleet.home.ca / root)
    answer = httpx.get(f"{fleet.url}/.well-known/est/cacerts", verify=context, timeout=60, trust_env=False)
    return pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.content))


def reaches(fleet: FleetSide, root: str) -> bool:
    """Whether somebody who trusts only that root gets through to the server."""
    try:
        return bool(cacerts(fleet, root))
    except httpx.HTTPError:
        return False


def issuer(box: Box) -> str:
    assert box.certificate is not None
    return box.certificate.issuer.rfc4514_string()


def speaks(box: Box) -> bool:
    try:
        connection = Connection(box.address(), Handlers())
        connection.open()
        connection.close()
    except ConnectionFailed:
        return False
    return True


def pins(certificates: list[x509.Certificate]) -> set[str]:
    return {c.fingerprint(hashes.SHA256()).hex() for c in certificates}


def test_a_root_takes_over_end_to_end(own_fleet: FleetSide, tmp_path: Path) -> None:
    fleet, away = own_fleet, tmp_path / "safe"
    away.mkdir()
    shutil.move(fleet.home.ca / "root-1.key", away / "root-1.key")
    fleet.start_broker()
    fleet.start()
    old, late = Box(tmp_path / "old", fleet, "old"), Box(tmp_path / "late", fleet, "late")
    early_token = fleet.token()
    assert old.enroll(fleet.token()).status_code == late.enroll(fleet.token()).status_code == 200

    refused = fleet.cli("ca", "new-root")
    assert refused.returncode == 78 and "--root-key" in refused.stderr
    assert fleet.cli("ca", "new-root", "--root-key", str(away / "root-1.key")).returncode == 0
    shutil.move(fleet.home.ca / "root-2.key", away / "root-2.key")
    until(lambda: len(cacerts(fleet, "root-1.pem")) == 5)
    published = cacerts(fleet, "root-1.pem")
    names = sorted((c.subject.rfc4514_string(), c.issuer.rfc4514_string()) for c in published)
    assert names == [
        ("CN=plant issuing 1", "CN=plant root 1"),
        ("CN=plant root 1", "CN=plant root 1"), ("CN=plant root 1", "CN=plant root 2"),
        ("CN=plant root 2", "CN=plant root 1"), ("CN=plant root 2", "CN=plant root 2"),
    ]  # fmt: skip
    assert old.renew().status_code == 200 and issuer(old) == "CN=plant issuing 1"

    assert fleet.cli("ca", "new-issuing", "--root-key", str(away / "root-2.key")).returncode == 0
    until(lambda: reaches(fleet, "root-2.pem"))
    assert reaches(fleet, "root-1.pem"), (
        "who knows only the old root goes on, over the new one's certificate by the old"
    )
    fresh = Box(tmp_path / "fresh", fleet, "fresh")
    assert fresh.enroll(early_token).status_code == 200, "a token that pins the old root is good while that root is"
    assert issuer(fresh) == "CN=plant issuing 3"
    made = fleet.cli("token", "create").stdout.strip()
    new_root = x509.load_pem_x509_certificate((fleet.home.ca / "root-2.pem").read_bytes())
    assert {made.removeprefix("E10").partition("::")[0]} == pins([new_root])
    assert old.renew().status_code == 200 and issuer(old) == "CN=plant issuing 3"
    for box in (old, late, fresh):
        until(lambda box=box: speaks(box))

    refused = fleet.cli("ca", "retire")
    assert refused.returncode == 1 and "late" in refused.stderr and "old" not in refused.stderr.partition("(")[2]
    shown = fleet.cli("ca", "show").stdout
    assert "issuing 1" in shown and "1 active nodes" in shown
    assert late.renew().status_code == 200
    assert fleet.cli("ca", "retire").returncode == 0
    until(lambda: len(cacerts(fleet, "root-2.pem")) == 2)
    fleet.stop_broker()
    fleet.start_broker()
    for box in (old, late, fresh):
        box.trusted = fleet.home.ca / "root-2.pem"  # as /cacerts has told it meanwhile
        assert box.bootstrap().status_code == 200
        assert speaks(box)
    fleet.stop()
    fleet.start()
    assert not reaches(fleet, "root-1.pem") and reaches(fleet, "root-2.pem")


def test_a_retired_authoritys_certificates_count_no_longer(own_fleet: FleetSide, tmp_path: Path) -> None:
    fleet = own_fleet
    fleet.start()
    box = Box(tmp_path / "box", fleet, "stays-behind")
    box.enroll(fleet.token())
    assert fleet.cli("ca", "new-issuing").returncode == 0
    assert fleet.cli("ca", "retire", "--force").returncode == 0
    until(lambda: box.bootstrap().status_code == 403)
    assert box.renew().headers["edge-reason"] == "node_unknown"


def test_a_take_over_that_was_cut_off_has_not_happened(own_fleet: FleetSide, tmp_path: Path) -> None:
    """All files of a new root but the one that counts: as after a kill in the middle."""
    fleet = own_fleet
    state = (fleet.home.ca / "state.json").read_bytes()
    assert fleet.cli("ca", "new-root").returncode == 0
    (fleet.home.ca / "state.json").write_bytes(state)
    fleet.start()
    assert len(cacerts(fleet, "root-1.pem")) == 2
    assert fleet.cli("ca", "new-root").returncode == 0
    until(lambda: len(cacerts(fleet, "root-1.pem")) == 5)


@pytest.mark.parametrize("gone", ["ca/issuing-1.key", "ca/issuing-1.pem", "ca/state.json", "fleet.db"])
def test_a_directory_with_a_part_missing_is_refused_by_name(own_fleet: FleetSide, gone: str) -> None:
    (own_fleet.home.root / gone).unlink()
    done = own_fleet.cli("token", "create")
    assert done.returncode == 78 and gone.rpartition("/")[2] in done.stderr and "Traceback" not in done.stderr
