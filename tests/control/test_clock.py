"""A server whose clock was wrong for a while, and an authority whose time is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench.fleet_side import Box, FleetSide
from edge.control.authority import add_issuing, create_authority, load_authority
from edge.control.credentials import renew_credentials
from edge.control.database import Database
from edge.control.enforcement import enforce, revocation_list
from edge.control.enrollment import Issued, Registrar, issuer_id
from edge.control.settings import load_settings
from edge.control.x509 import CRL_LIFE, make_crl, now_utc, read_request
from edge.errors import ConfigurationError
from tests.waiting import until


def lists(text: bytes) -> list[x509.CertificateRevocationList]:
    return [x509.load_pem_x509_crl(b"-----BEGIN" + part) for part in text.split(b"-----BEGIN")[1:]]


@pytest.mark.parametrize("ahead", [timedelta(days=3), timedelta(days=800)])
def test_a_list_that_was_written_while_the_clock_was_ahead_is_made_anew(own_fleet: FleetSide, ahead: timedelta) -> None:
    """It lets nobody in until its begin has come; and none that ends before it begins can be made."""
    home, authority = own_fleet.home, load_authority(own_fleet.home)
    then, path = now_utc() + ahead, home.gateway / "revoked.pem"
    crl = make_crl(authority.issuer, (), then, then + CRL_LIFE).public_bytes(Encoding.PEM)
    path.write_bytes(b"".join([crl, *authority.root_crls]))
    database = Database(home.database)
    for _ in range(2):
        enforce(home, load_settings(home), authority, database, set())
    database.close()
    assert all(found.last_update_utc <= now_utc() for found in lists(path.read_bytes()))
    assert path.read_bytes() == (home.broker / "revoked.pem").read_bytes()


def test_a_clock_that_is_not_set_yet_takes_nothing_from_a_list_that_holds(own_fleet: FleetSide) -> None:
    """A gateway elsewhere knows what time it is."""
    authority, now, early = load_authority(own_fleet.home), now_utc(), datetime(1970, 1, 2, tzinfo=UTC)
    before = revocation_list(authority, [], b"", now)
    assert revocation_list(authority, [], before, early) == before
    me = issuer_id(authority.issuer.certificate)
    (after, *_) = lists(revocation_list(authority, [(me, "abc", now.timestamp())], before, early))
    assert [entry.serial_number for entry in after] == [0xABC]
    assert after.last_update_utc <= now and after.next_update_utc is not None and after.next_update_utc > now


def test_a_certificate_that_was_made_while_the_clock_was_ahead_is_made_anew(own_fleet: FleetSide) -> None:
    home, settings = own_fleet.home, load_settings(own_fleet.home)
    authority = load_authority(home)
    (home.tls / "server.pem").unlink()
    assert renew_credentials(home, settings, authority, now_utc() + timedelta(days=30)).names == ("server",)
    assert renew_credentials(home, settings, authority, now_utc()).names == ("server",)
    assert renew_credentials(home, settings, authority, now_utc()).names == ()
    assert renew_credentials(home, settings, authority, datetime(1970, 1, 2, tzinfo=UTC)).names == ()
    (home.tls / "server.pem").unlink()
    with pytest.raises(ConfigurationError, match="set the clock"):
        renew_credentials(home, settings, authority, datetime(1970, 1, 2, tzinfo=UTC))


def test_a_node_is_not_given_again_what_was_made_while_the_clock_was_ahead(
    own_fleet: FleetSide, tmp_path: Path
) -> None:
    home, box, now = own_fleet.home, Box(tmp_path / "box", own_fleet), now_utc()
    registrar, database = Registrar(load_authority(home), load_settings(home)), Database(home.database)
    token, request = own_fleet.token(life_s=86_400 * 90), read_request(box.csr())
    given = []
    for at in (now + timedelta(days=30), now):
        with database.write() as session:
            outcome = registrar.enroll(session, token.id, token.secret, request, at)
        assert isinstance(outcome, Issued)
        given.append(outcome.certificate)
    database.close()
    assert given[1].not_valid_before_utc <= now and len({outcome.serial_number for outcome in given}) == 2


def test_an_authority_that_has_ended_says_what_to_do(own_fleet: FleetSide) -> None:
    home, settings, now = own_fleet.home, load_settings(own_fleet.home), now_utc()
    create_authority(home, settings.name, now - timedelta(days=6 * 365))
    with pytest.raises(ConfigurationError, match="edge fleet ca new-issuing"):
        renew_credentials(home, settings, load_authority(home), now)
    done = own_fleet.cli("serve")
    assert done.returncode == 78 and "edge fleet ca new-issuing" in done.stderr
    assert own_fleet.cli("ca", "new-issuing").returncode == 0
    own_fleet.start()


def test_an_old_authority_that_ends_before_it_is_retired_hinders_nobody(own_fleet: FleetSide, tmp_path: Path) -> None:
    home, settings, now = own_fleet.home, load_settings(own_fleet.home), now_utc()
    create_authority(home, settings.name, now - timedelta(days=6 * 365))
    add_issuing(home, settings.name, now)
    own_fleet.start_broker()
    own_fleet.start()
    box = Box(tmp_path / "box", own_fleet, "late")
    assert box.enroll(own_fleet.token()).status_code == 200
    with own_fleet.people() as people:
        until(lambda: people.post("/fleet/v1/nodes/late/revoke").json()["enforced"])
    assert any(len(list(found)) for found in lists((home.broker / "revoked.pem").read_bytes()))
