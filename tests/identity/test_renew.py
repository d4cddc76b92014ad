"""A certificate that is renewed in time, late, too late, by a CA that has changed, and not at all."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bench.est_authority import now
from bench.est_server import EstServer
from edge.errors import EnrollmentFailed, EnrollmentRefused, EnrollmentUnreachable, PinMismatch
from tests.identity.conftest import Box, now_clock


def test_a_renewal_keeps_the_name_and_changes_the_key(est: EstServer, box: Box) -> None:
    first = box.enroll(est.token()).identity
    renewed = box.renew()
    assert (renewed.node, renewed.generation, renewed.how) == (first.node, 2, "renewed")
    assert renewed.certificate.public_key() != first.certificate.public_key()
    assert not first.directory.exists()
    assert box.identity().certificate == renewed.certificate


def test_the_old_certificate_serves_until_the_broker_has_let_the_new_one_in(est: EstServer, box: Box) -> None:
    first = box.enroll(est.token()).identity
    box.broker = "the broker refused the connection"
    for _ in range(3):
        with pytest.raises(EnrollmentUnreachable, match="the old one serves"):
            box.renew()
        assert box.identity().certificate == first.certificate
    assert est.asked.count("simplereenroll") == 1, "the one that there is waits for its trial"
    box.broker = ""
    assert box.renew().generation == 2


def test_an_old_certificate_that_has_ended_is_not_waited_with(est: EstServer, box: Box) -> None:
    _enrolled_long_ago(est, box, days_ago=40)
    box.clock = now_clock()
    est.manner.begins, box.broker = None, "nobody answers"
    assert box.renew().generation == 2


@pytest.mark.parametrize("synced", [True, False])
def test_a_node_that_slept_past_the_end_is_renewed_within_the_grace_time(
    est: EstServer, box: Box, synced: bool
) -> None:
    _enrolled_long_ago(est, box)
    est.manner.begins = None
    box.clock = now_clock(synced=synced)
    assert box.identity().life.standing(now().timestamp()) == "expired"
    assert box.renew().node == "tok1-1"


def test_beyond_the_grace_time_it_has_to_enroll_anew(est: EstServer, box: Box) -> None:
    _enrolled_long_ago(est, box, days_ago=100)
    est.manner.begins = None
    with pytest.raises(EnrollmentRefused, match="ended too long ago") as refused:
        box.renew()
    assert refused.value.reason == "certificate_expired"
    assert box.store.request("renewing") is None
    assert box.enroll(est.token("tok2"), force=True).identity.node == "tok2-1"


def test_a_revoked_node_is_not_renewed_and_keeps_what_it_has(est: EstServer, box: Box) -> None:
    first = box.enroll(est.token()).identity
    est.nodes["tok1-1"].revoked = True
    with pytest.raises(EnrollmentRefused, match="revoked this node"):
        box.renew()
    assert box.identity().certificate == first.certificate


@pytest.mark.parametrize("lost", ["cacerts", "simplereenroll", "bootstrap"])
def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_key(est: EstServer, box: Box, lost: str) -> None:
    box.enroll(est.token())
    est.manner.lose = lost
    with pytest.raises(EnrollmentUnreachable):
        box.renew()
    assert box.identity().generation == 1
    box.renew()
    assert len(est.nodes["tok1-1"].keys) == 2


def test_another_name_at_a_renewal_is_refused(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    est.manner.issue = lambda _: "somebody-else"
    with pytest.raises(EnrollmentFailed, match="this node is tok1-1"):
        box.renew()


def test_a_bootstrap_that_is_missing_for_once_cuts_nobody_off(est: EstServer, box: Box) -> None:
    est.more = {"mqtt": {"url": "mqtts://broker.example"}}
    box.enroll(est.token())
    est.manner.bootstrap = False
    renewed = box.renew()
    assert renewed.bootstrap is not None and renewed.bootstrap.mqtt is not None


def test_a_renewal_brings_what_the_fleet_wants_by_now(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    est.more = {"mqtt": {"url": "mqtts://elsewhere.example"}}
    box.renew()
    assert "elsewhere.example" in (box.identity().directory / "settings.toml").read_text()


def test_who_is_not_enrolled_has_nothing_to_renew(box: Box) -> None:
    with pytest.raises(EnrollmentFailed, match="no identity"):
        box.renew()


def test_a_renewal_that_was_interrupted_for_too_long_begins_anew(est: EstServer, box: Box) -> None:
    """What it had got has ended meanwhile; the grace time of what is in force runs."""
    _enrolled_long_ago(est, box)
    est.manner.begins, est.manner.break_with = now() - timedelta(days=40), {"bootstrap": lambda _: None}
    with pytest.raises(EnrollmentUnreachable):
        box.renew()
    est.manner.begins, est.manner.break_with, box.clock = None, {}, now_clock()
    renewed = box.renew()
    assert (renewed.generation, renewed.life.standing(now().timestamp())) == (2, "good")


def test_a_refusal_of_the_certificate_in_the_making_forgets_it(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    est.manner.lose = "bootstrap"
    with pytest.raises(EnrollmentUnreachable):
        box.renew()
    est.nodes["tok1-1"].revoked = True
    with pytest.raises(EnrollmentRefused):
        box.renew()
    assert box.store.request("renewing") is None
    est.nodes["tok1-1"].revoked = False
    assert box.renew().generation == 2


# --- the CA changes ---------------------------------------------------------------------------------------------------


def test_a_ca_that_rolls_over_is_followed(est: EstServer, box: Box) -> None:
    first = est.authority.root.certificate
    box.enroll(est.token())
    est.authority.roll_over()
    est.trust_clients()
    assert set(box.renew().anchors.roots) == {first, est.authority.root.certificate}
    est.renew_server()  # by now the server's certificate comes from the new root
    assert box.renew().generation == 3
    est.authority.others = []
    est.renew_server()
    assert box.renew().anchors.roots == (est.authority.root.certificate,)


def test_a_node_that_slept_through_the_roll_over_finds_back(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    est.authority.roll_over()
    est.renew_server()
    assert est.authority.root.certificate in box.renew().anchors.roots


def test_another_ca_at_the_same_address_is_not_followed(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    est.authority.roll_over(crossed=False)
    est.renew_server()
    with pytest.raises(PinMismatch, match="has not signed"):
        box.renew()
    est.authority.others = []
    with pytest.raises(PinMismatch, match="another CA"):
        box.renew()
    assert est.asked.count("simplereenroll") == 0


def _enrolled_long_ago(est: EstServer, box: Box, days_ago: float = 50) -> None:
    """The server would refuse bootstrap with a certificate that has ended, so it has none for the moment."""
    est.manner.begins, est.manner.days = now() - timedelta(days=days_ago), 30
    box.clock = now_clock(wall_s=0.0, synced=False)
    est.manner.bootstrap = False
    box.enroll(est.token())
    est.manner.bootstrap = True
