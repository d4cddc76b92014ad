"""From a token to an identity. Each step may be the last one before a power cut: the same command goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from edge.errors import EnrollmentFailed, EnrollmentPending, EnrollmentRefused, EnrollmentUnreachable
from edge.identity.certificates import common_name
from edge.identity.contact import FINAL, Contact
from edge.identity.est import FleetClient
from edge.identity.identity import Identity, IdentityDamaged, Request
from edge.identity.store import Making, Store
from edge.identity.token import EnrollmentToken
from edge.telemetry.clock import Clock

_MAKING: Making = "enrolling"
_RETRY_S = 10.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `url` as `edge.identity.est.origin` gives it."""

    url: str
    token: EnrollmentToken
    label: str
    force: bool = False
    """Enroll anew although there is an identity: with a new key."""
    wait: bool = False
    """Until somebody has approved."""


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What came of it."""

    identity: Identity
    already: bool


async def enroll(wish: Wish, store: Store, clock: Clock, say: Callable[[str], None]) -> Enrolled:
    """Get an identity, or find that there is one. Raises EnrollmentFailed and its kinds, ConfigurationError, DiskFull."""
    with store.locked():
        if (there := _already(wish, store)) is not None:
            return Enrolled(there, already=True)
        before = store.request(_MAKING)
        # One key for one wish: whatever answer was lost, it can be asked for again. Another fleet gets another key.
        same_fleet = before is not None and before.root_sha256 == wish.token.root_sha256
        resumed = same_fleet and before is not None and before.token_id == wish.token.id
        store.begin(_MAKING, Request(wish.url, wish.token.root_sha256, wish.token.id, wish.label), keep_key=same_fleet)
        contact = Contact(FleetClient(wish.url, store.files.before), store, clock)
        await contact.meet(wish.token.root_sha256)
        say("the fleet's CA is the one that the token names")
        try:
            return Enrolled(await _with(contact, wish, store, resumed, say), already=False)
        except EnrollmentRefused as refused:
            if refused.reason in FINAL:
                store.forget(_MAKING)
            raise


async def _with(contact: Contact, wish: Wish, store: Store, resumed: bool, say: Callable[[str], None]) -> Identity:
    chain = store.certificate(_MAKING, contact.anchors) if resumed else ()
    if not chain or contact.is_over(chain[0]):
        chain = await _approved(contact, wish, say)
        store.keep_certificate(_MAKING, chain, contact.anchors)
    place = store.directory / _MAKING
    node = common_name(chain[0])
    say(f"the fleet calls this node {node}")
    bootstrap = await contact.bootstrap(place, node)
    store.complete(_MAKING, "enrolled", wish.url, wish.token.id, bootstrap)
    contact.remember()
    identity = store.put_in_force(_MAKING)
    store.drop_others()
    return identity


async def _approved(contact: Contact, wish: Wish, say: Callable[[str], None]) -> tuple[x509.Certificate, ...]:
    """Ask once, or until somebody has approved: then a link that fails meanwhile is no reason to give up."""
    waiting = False
    while True:
        pause_s = _RETRY_S
        try:
            return await contact.enroll(wish.token, wish.label)
        except EnrollmentPending as pending:
            if not wish.wait:
                raise
            if not waiting:
                say("the fleet has noted this node; waiting until somebody approves it (edge fleet approve)")
            waiting, pause_s = True, pending.retry_after_s or pause_s
        except EnrollmentUnreachable:
            if not waiting:
                raise
        await asyncio.sleep(pause_s)


def _already(wish: Wish, store: Store) -> Identity | None:
    """The identity that makes this wish needless. Raises EnrollmentFailed if it is another fleet's, IdentityDamaged."""
    try:
        identity = store.current()
    except IdentityDamaged:
        if not wish.force:
            raise
        return None
    if identity is None:
        return None
    same_fleet = wish.token.root_sha256 in identity.anchors.pins
    if same_fleet and identity.token_id == wish.token.id:
        return identity  # with --force too: an enrollment that got so far and no further must not begin again
    if wish.force:
        return None
    if same_fleet or identity.fleet_url == wish.url:
        return identity
    raise EnrollmentFailed(
        f"this node is enrolled at {identity.fleet_url} as {identity.node}; to have it enrolled elsewhere instead: --force"
    )
