"""A new certificate, with a new key, for a node that has one. The old one serves until the broker has let the new one in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from edge.errors import EnrollmentFailed, EnrollmentRefused, EnrollmentUnreachable
from edge.identity.contact import Contact
from edge.identity.est import FleetClient
from edge.identity.identity import Identity, IdentityDamaged, LastTry, Request, read_identity
from edge.identity.moment import best_guess_s
from edge.identity.store import Making, Store
from edge.telemetry.clock import Clock

_MAKING: Making = "renewing"
Prove = Callable[[Path], str]
"""Tries the certificate in that directory at the broker: what was wrong, empty if nothing."""


async def renew(store: Store, clock: Clock, prove: Prove) -> Identity:
    """The renewed identity, in force. Raises EnrollmentFailed and its kinds, IdentityDamaged, DiskFull, StoreBusy."""
    with store.locked():
        identity = store.current()
        if identity is None:
            raise EnrollmentFailed("this node has no identity that could be renewed; see `edge enroll --help`")
        if not _waits_for_trial(store, clock):
            await _make(store, clock, identity)
        place = store.directory / _MAKING
        wrong = await asyncio.to_thread(prove, place)
        if wrong and not _ended(identity, store, clock):
            raise EnrollmentUnreachable(
                f"there is a new certificate, and the broker was not reached with it: {wrong}; the old one serves until it is"
            )
        renewed = store.put_in_force(_MAKING)
        store.drop_others()
        store.remember_try(LastTry(best_guess_s(clock.now(), store.known()), 0, ""))
        return renewed


async def _make(store: Store, clock: Clock, identity: Identity) -> None:
    """A whole generation in the making."""
    kept = store.request(_MAKING)
    request = Request(identity.fleet_url, "", identity.token_id, identity.node)
    store.begin(_MAKING, request, keep_key=kept == request)
    contact = Contact(FleetClient(identity.fleet_url, store.files.before), store, clock)
    await contact.meet_again(identity)
    try:
        chain = store.certificate(_MAKING, contact.anchors)
        if not chain or contact.is_over(chain[0]):
            chain = await contact.renew(identity)
            store.keep_certificate(_MAKING, chain, contact.anchors)
        bootstrap = await contact.bootstrap(store.directory / _MAKING, identity.node)
    except EnrollmentRefused:
        # Of the certificate that was just made, too: the one in force may still be good for another.
        store.forget(_MAKING)
        raise
    # A server that has lost its bootstrap for a while must not cut the node off.
    store.complete(_MAKING, "renewed", identity.fleet_url, identity.token_id, bootstrap or identity.bootstrap)
    contact.remember()


def _waits_for_trial(store: Store, clock: Clock) -> bool:
    """Whether a new certificate is there that could not be tried yet, and still has time before it."""
    if not store.is_whole(_MAKING):
        return False
    try:
        found = read_identity(store.directory / _MAKING)
    except IdentityDamaged:
        found = None
    if found is None or found.life.standing(best_guess_s(clock.now(), store.known())) != "good":
        store.forget(_MAKING)
        return False
    return True


def _ended(identity: Identity, store: Store, clock: Clock) -> bool:
    return identity.life.standing(best_guess_s(clock.now(), store.known())) == "expired"
