"""Whom a node trusts. Pure: certificates in, a decision out; no clock, file or socket.

The root is pinned by the token. From then on a new root is trusted only if a trusted one has signed its key (NewWithOld of
RFC 4210, section 4.4), whoever delivers it. Path lengths count (RFC 5280, section 6.1.4): what may sign leaves only is no root.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge.errors import EnrollmentFailed, PinMismatch
from edge.identity.certificates import common_name, sha256, spki

_DEEPEST = 6
_NO_BOUND = math.inf
NODE_ID = re.compile(r"[a-z0-9][a-z0-9\-]{0,62}")


@dataclass(frozen=True, slots=True)
class Anchors:
    """The fleet's CA: roots that are trusted, and what they have signed to sign with."""

    roots: tuple[x509.Certificate, ...]
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def all(self) -> tuple[x509.Certificate, ...]:
        """Roots first."""
        return self.roots + self.intermediates

    @property
    def pins(self) -> tuple[str, ...]:
        """The roots' sha256."""
        return tuple(sha256(root) for root in self.roots)


def anchors_of(kept: Sequence[x509.Certificate]) -> Anchors:
    """Of what was written down as trusted. A cross-signed root has subject and issuer alike too: the signature tells."""
    roots = tuple(one for one in kept if _signed_by(one, one))
    if not roots:
        raise ValueError("no root certificate")
    return Anchors(roots, tuple(one for one in kept if one not in roots))


def pinned(found: Sequence[x509.Certificate], root_sha256: str) -> Anchors:
    """What a bare box may trust of that: the root that its token names, and what that root has signed. Raises PinMismatch."""
    root = next((one for one in found if sha256(one) == root_sha256), None)
    if root is None:
        raise PinMismatch(
            f"the CA of what answers is not the one that the token names (its root is {root_sha256[:16]}...): either the "
            "address is another fleet's, or somebody stands in between; nothing was sent to it"
        )
    if not (_is_authority(root) and _signed_by(root, root)):
        raise PinMismatch("what the token names is no root certificate; have a token made anew")
    return _with_intermediates((root,), found)


def rolled_over(
    trusted: Anchors, found: Sequence[x509.Certificate], leaves: Sequence[x509.Certificate] = ()
) -> Anchors:
    """The CA as it is now: roots that are still listed, and new ones whose key a trusted root has signed. Raises PinMismatch.

    A trusted root has signed the key of its issuing authority too. That one works online, and who steals its key must not become
    the root: a cross certificate must be one that may sign authorities. Since a CA may set no path lengths, what has signed one
    of `leaves` (certificates that are in use) is no root either.
    """
    known = list(trusted.roots)
    candidates = [one for one in found if one not in known and _is_authority(one) and _signed_by(one, one)]
    grew = True
    while grew:
        grew = False
        for candidate in [one for one in candidates if one not in known]:
            if any(_vouches(cross, candidate, known, leaves) for cross in found):
                known.append(candidate)
                grew = True
    listed = tuple(root for root in known if root in found)
    if not listed:
        raise PinMismatch(
            "the fleet has another CA than the one that this node trusts, and that one has not signed it; if that is meant, "
            "enroll anew: edge enroll --force"
        )
    return _with_intermediates(listed, found)


def chain_of(leaf: x509.Certificate, anchors: Anchors) -> tuple[x509.Certificate, ...]:
    """The leaf and what leads to a trusted root, without that. Dates are not looked at. Raises PinMismatch."""
    ways = _ways(anchors.roots, anchors.intermediates)
    chain = [leaf]
    above = next((one for one in ways if one != leaf and _signed_by(leaf, one)), None)
    while above is not None and len(chain) <= _DEEPEST:
        if above in anchors.roots:
            return tuple(chain)
        chain.append(above)
        above = ways[above].above
    raise PinMismatch("the certificate that the fleet gave was not signed by the fleet's CA")


def issued_to(
    found: Sequence[x509.Certificate], key_spki: bytes, anchors: Anchors, *, now_s: float | None, node: str | None
) -> tuple[x509.Certificate, ...]:
    """Our certificate and its chain, of an EST answer. `now_s` None: the clock cannot be believed; `node`: who we are already.

    Raises PinMismatch, EnrollmentFailed.
    """
    ours = [one for one in found if spki(one) == key_spki]
    if len(ours) != 1:
        raise EnrollmentFailed("the fleet answered with a certificate that is not for this node's key")
    leaf = ours[0]
    extra = _with_intermediates(anchors.roots, [*anchors.intermediates, *found])
    chain = chain_of(leaf, extra)
    name = common_name(leaf)
    if not NODE_ID.fullmatch(name):
        raise EnrollmentFailed(
            f"the fleet named this node {name[:64]!r}: a node's name has small letters, digits and hyphens, 63 at most"
        )
    if node is not None and name != node:
        raise EnrollmentFailed(f"the fleet answered with a certificate for {name}, and this node is {node}")
    if _is_authority(leaf) or not _for_clients(leaf):
        raise EnrollmentFailed("the fleet answered with a certificate that is not made for clients (clientAuth)")
    if now_s is not None and leaf.not_valid_after_utc.timestamp() <= now_s:
        raise EnrollmentFailed(
            f"the certificate that the fleet gave ended on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; is this node's "
            "clock right, and the fleet's?"
        )
    return chain


@dataclass(frozen=True, slots=True)
class _Way:
    """How an authority is led to from a root."""

    above: x509.Certificate | None
    room: float
    """How many authorities may come between it and a leaf."""


def _ways(roots: Iterable[x509.Certificate], authorities: Iterable[x509.Certificate]) -> dict[x509.Certificate, _Way]:
    """Of all that these roots vouch for within path lengths: the widest way, roots first."""
    ways = {root: _Way(None, _path_length(root)) for root in roots}
    left = [one for one in authorities if one not in ways and _is_authority(one)]
    signed = {one: [by for by in (*ways, *left) if by != one and _signed_by(one, by)] for one in left}
    grew = True
    while grew:
        grew = False
        for one in left:
            # A self-issued certificate does not count (RFC 5280, section 4.2.1.9).
            cost = 0 if one.subject == one.issuer else 1
            for by in signed[one]:
                if by not in ways or ways[by].room < cost:
                    continue
                room = min(ways[by].room - cost, _path_length(one))
                if one not in ways or room > ways[one].room:
                    ways[one], grew = _Way(by, room), True
    return ways


def _with_intermediates(roots: tuple[x509.Certificate, ...], found: Iterable[x509.Certificate]) -> Anchors:
    """With every authority among `found` that these roots vouch for. What signed itself is none: it would be read again
    as a root, and TLS would take it for one."""
    ways = _ways(roots, [one for one in found if not _signed_by(one, one)])
    return Anchors(roots, tuple(one for one in ways if one not in roots))


def _vouches(
    cross: x509.Certificate,
    root: x509.Certificate,
    known: Sequence[x509.Certificate],
    leaves: Sequence[x509.Certificate],
) -> bool:
    if not _same_authority(cross, root) or not _signed_by_one(cross, known):
        return False
    way = _ways(known, [cross]).get(cross)
    if way is None or way.room < 1:
        return False
    return not any(_signed_by(leaf, cross) for leaf in leaves)


def _path_length(authority: x509.Certificate) -> float:
    length = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return _NO_BOUND if length is None else length


def _same_authority(cross: x509.Certificate, root: x509.Certificate) -> bool:
    return cross != root and cross.subject == root.subject and spki(cross) == spki(root) and _is_authority(cross)


def _signed_by_one(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> bool:
    return any(_signed_by(certificate, one) for one in authorities)


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    if not _is_authority(authority):
        return False
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    extensions = certificate.extensions
    try:
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
    except x509.ExtensionNotFound:
        return False
    try:
        return extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True


def _for_clients(certificate: x509.Certificate) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return ExtendedKeyUsageOID.CLIENT_AUTH in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages
