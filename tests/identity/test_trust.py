"""Whom a node trusts: the pin, chains, and a CA that rolls over. Real certificates, no network."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from bench.est_authority import Authority, Signer, below, certify, new_root
from edge.control.x509 import Issuer, cross_sign, make_issuing, make_root, now_utc
from edge.errors import EnrollmentFailed, PinMismatch
from edge.identity.certificates import common_name, new_key, sha256, spki
from edge.identity.trust import Anchors, anchors_of, chain_of, issued_to, pinned, rolled_over

NODE = "press-7"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def issue(
    authority: Authority, key: ec.EllipticCurvePrivateKey, name: str = NODE, days: float = 30
) -> x509.Certificate:
    return authority.client(name, key.public_key(), fleet="trial", begins=None, days=days)


def trusted(authority: Authority) -> Anchors:
    return pinned(authority.listed, sha256(authority.root.certificate))


def test_the_pinned_root_and_what_it_has_signed_are_trusted(authority: Authority) -> None:
    stranger = new_root("stranger")
    found = [*authority.listed, stranger.certificate, below(stranger).certificate]
    anchors = pinned(found, sha256(authority.root.certificate))
    assert anchors.roots == (authority.root.certificate,)
    assert anchors.intermediates == (authority.issuing.certificate,)


def test_another_root_than_the_pinned_one_is_refused(authority: Authority) -> None:
    with pytest.raises(PinMismatch, match="is not the one that the token names"):
        pinned(authority.listed, sha256(new_root("trial root").certificate))


def test_a_pin_on_what_is_no_root_is_refused(authority: Authority) -> None:
    key = new_key()
    not_an_authority = certify("trial root", key.public_key(), None, key)
    for wrong in (authority.issuing.certificate, not_an_authority):
        with pytest.raises(PinMismatch, match="no root certificate"):
            pinned([*authority.listed, wrong], sha256(wrong))


def test_a_chain_leads_to_a_root_by_signatures_and_not_by_names(authority: Authority) -> None:
    leaf = issue(authority, new_key())
    assert chain_of(leaf, trusted(authority)) == (leaf, authority.issuing.certificate)
    namesake = Authority()  # the same names, other keys
    with pytest.raises(PinMismatch):
        chain_of(leaf, trusted(namesake))


def test_what_is_no_authority_signs_nothing(authority: Authority) -> None:
    """A node's own certificate must not be able to make others."""
    key, victim = new_key(), new_key()
    node = issue(authority, key)
    forged = certify("boss", victim.public_key(), Signer(node, key), usage=ExtendedKeyUsageOID.CLIENT_AUTH)
    with pytest.raises(PinMismatch):
        issued_to([forged, node], spki(victim), trusted(authority), now_s=None, node=None)


def test_only_a_sound_certificate_for_our_own_key_is_taken(authority: Authority) -> None:
    key = new_key()
    anchors, good = trusted(authority), issue(authority, key)
    now_s = good.not_valid_before_utc.timestamp() + 86_400  # behind the end of those below that have ended
    assert issued_to([good], spki(key), anchors, now_s=now_s, node=NODE)[0] == good
    for found, node, words in (
        ([issue(authority, new_key())], None, "not for this node's key"),
        ([good, issue(authority, key)], None, "not for this node's key"),
        ([good], "other", "for press-7, and this node is other"),
        ([issue(authority, key, "../up")], None, "named this node"),
        ([issue(authority, key, "Press")], None, "named this node"),
        ([issue(authority, key, days=0)], None, "ended on"),
        (
            [certify(NODE, key.public_key(), authority.issuing, usage=ExtendedKeyUsageOID.SERVER_AUTH)],
            None,
            "clientAuth",
        ),
        ([certify(NODE, key.public_key(), authority.issuing, authority=True)], None, "clientAuth"),
    ):
        with pytest.raises(EnrollmentFailed, match=words):
            issued_to(found, spki(key), anchors, now_s=now_s, node=node)


def test_without_a_clock_the_end_of_a_certificate_is_not_looked_at(authority: Authority) -> None:
    key = new_key()
    ended = issue(authority, key, days=0)
    assert issued_to([ended], spki(key), trusted(authority), now_s=None, node=None)[0] == ended


@pytest.mark.parametrize("name", ["trial root", "second root"])
def test_a_new_root_is_trusted_if_the_old_one_has_signed_it(name: str) -> None:
    authority = Authority()
    old, first = trusted(authority), authority.root.certificate
    authority.roll_over(name=name)
    anchors = rolled_over(old, authority.listed)
    assert set(anchors.roots) == {first, authority.root.certificate}
    leaf = issue(authority, new_key())
    assert chain_of(leaf, anchors)[1] == authority.issuing.certificate
    # As it is written down and read again: a cross certificate has subject and issuer alike, and is no root.
    assert set(anchors_of(list(anchors.all)).roots) == set(anchors.roots)


def test_an_old_root_that_is_listed_no_longer_is_trusted_no_longer() -> None:
    authority = Authority()
    old = trusted(authority)
    authority.roll_over(keep_old=False)
    assert rolled_over(old, authority.listed).roots == (authority.root.certificate,)


def test_a_new_root_that_nobody_signed_is_not_trusted() -> None:
    authority = Authority()
    old, first = trusted(authority), authority.root.certificate
    authority.roll_over(crossed=False)
    anchors = rolled_over(old, authority.listed)
    assert anchors.roots == (first,)
    assert authority.issuing.certificate not in anchors.all
    authority.others = []
    with pytest.raises(PinMismatch, match="another CA"):
        rolled_over(old, authority.listed)


def test_a_cross_certificate_for_another_key_of_that_name_proves_nothing() -> None:
    authority = Authority()
    old = trusted(authority)
    signer = authority.root
    authority.roll_over(crossed=False)
    lure = certify("trial root", new_key().public_key(), signer, authority=True)
    assert authority.root.certificate not in rolled_over(old, [*authority.listed, lure]).roots


def test_two_roll_overs_that_were_slept_through_are_followed() -> None:
    authority = Authority()
    old = trusted(authority)
    authority.roll_over(name="second")
    between = list(authority.others)
    second = authority.root.certificate
    authority.roll_over(name="third")
    found = [*authority.listed, *between, second]
    assert authority.root.certificate in rolled_over(old, found).roots


def test_during_a_roll_over_a_token_may_pin_either_root() -> None:
    authority = Authority()
    first = authority.root.certificate
    authority.roll_over()
    for pin in (first, authority.root.certificate):
        anchors = rolled_over(pinned(authority.listed, sha256(pin)), authority.listed)
        assert set(anchors.roots) == {first, authority.root.certificate}


def stolen(issuing: Signer | Issuer, *, path_length: int | None = 5) -> x509.Certificate:
    """What who has the issuing authority's key makes of it: a root of that name and key."""
    name = common_name(issuing.certificate)
    return certify(name, issuing.key.public_key(), None, issuing.key, authority=True, path_length=path_length)


def test_who_steals_the_issuing_key_does_not_become_the_root() -> None:
    now = now_utc()
    root = make_root("acme", 1, now)
    issuing = make_issuing("acme", 1, root, now)
    node = pinned([root.certificate, issuing.certificate], sha256(root.certificate))
    evil = stolen(issuing)
    with pytest.raises(PinMismatch, match="another CA"):
        rolled_over(node, [evil, issuing.certificate])
    still = rolled_over(node, [evil, issuing.certificate, root.certificate])
    assert still.roots == (root.certificate,)
    assert evil not in still.all, "TLS takes what signed itself for a root, and so does the next start"
    assert anchors_of(list(still.all)) == still
    own = make_root("thief", 1, now)
    crossed = cross_sign(own.certificate, Issuer(issuing.certificate, issuing.key), now)
    further = rolled_over(node, [evil, issuing.certificate, root.certificate, own.certificate, crossed])
    assert further.roots == (root.certificate,) and crossed not in further.all


def test_this_fleets_own_roll_over_stays_within_its_path_lengths() -> None:
    now = now_utc()
    first, second = make_root("acme", 1, now), make_root("acme", 2, now)
    issuing = make_issuing("acme", 2, second, now)
    crossed = cross_sign(second.certificate, first, now)
    found = [first.certificate, second.certificate, issuing.certificate, crossed]
    node = pinned([first.certificate], sha256(first.certificate))
    assert set(rolled_over(node, found).roots) == {first.certificate, second.certificate}
    # Without the new root itself the cross certificate leads to the old one.
    leaf = certify(NODE, new_key().public_key(), Signer(issuing.certificate, issuing.key))
    below_old = pinned([first.certificate, issuing.certificate, crossed], sha256(first.certificate))
    assert chain_of(leaf, below_old) == (leaf, issuing.certificate, crossed)


def test_a_chain_that_is_longer_than_an_authority_allows_is_none() -> None:
    root = new_root()
    key, further = new_key(), new_key()
    issuing = Signer(certify("issuing", key.public_key(), root, authority=True, path_length=0), key)
    more = Signer(certify("more", further.public_key(), issuing, authority=True), further)
    leaf = certify(NODE, new_key().public_key(), more)
    with pytest.raises(PinMismatch):
        chain_of(leaf, Anchors((root.certificate,), (issuing.certificate, more.certificate)))
    found = pinned([root.certificate, issuing.certificate, more.certificate], sha256(root.certificate))
    assert found.intermediates == (issuing.certificate,)


def test_where_no_path_lengths_are_set_what_signs_leaves_makes_no_root(authority: Authority) -> None:
    node = trusted(authority)
    leaf = issue(authority, new_key())
    evil = stolen(authority.issuing, path_length=None)
    with pytest.raises(PinMismatch, match="another CA"):
        rolled_over(node, [evil, authority.issuing.certificate], [leaf])
    assert evil not in rolled_over(node, [*authority.listed, evil], [leaf]).all
