"""Keeps a running node's identity: renews it in time, notices that it was changed from outside, tells how it is.

Lives on the event loop. What takes long (network, the trial at the broker) is awaited; files of a few kilobytes are simply read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from edge.errors import EdgeError, EnrollmentRefused, StoreBusy
from edge.identity.contact import Contact
from edge.identity.est import FleetClient
from edge.identity.identity import SETTINGS, Identity, IdentityDamaged, LastTry
from edge.identity.moment import believed_s, best_guess_s, floor_by_clock, has_no_idea, next_pause_s, pause_s
from edge.identity.renew import Prove, renew
from edge.identity.store import Store
from edge.telemetry.alarms import Alarms
from edge.telemetry.clock import Clock

log = logging.getLogger(__name__)

LOOK_S = 5.0
_ASK_TIME_S = 300.0
_BEGIN_S = 30.0
"""So often a node that could not begin anew is asked to."""


class Keeper:
    """Construct it before what uses the identity; `start` and `stop` it with the node."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        prove: Prove,
        *,
        damage: str = "",
        look_s: float = LOOK_S,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """`damage`: why the identity is not to be used; the keeper looks whether that lasts. Raises IdentityDamaged where nobody
        has looked before."""
        self._store, self._clock, self._prove = store, clock, prove
        self._look_s, self._chance = look_s, rand
        self._damage = damage
        self._identity = None if damage else store.current()
        self._known = store.known()
        self._settings = self._text_of(self._identity)
        self._last = store.last_try()
        self._next_try_s = self._next_ask_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.alarms: Alarms | None = None
        self.on_renewed: Callable[[], None] = lambda: None
        """The certificate is another one, the settings are the same."""
        self.on_settings: Callable[[], str] = lambda: ""
        """The enrollment's settings are others than this node began with, or it began without them. Returns why they cannot be
        taken up now; it is asked again then."""
        self._unheard = False
        """That there are other settings was said, and refused."""
        self._next_asked_s = 0.0
        self._told_damage = self._told_refusal = ""

    @property
    def identity(self) -> Identity | None:
        """In force; None: not enrolled, or damaged."""
        return self._identity

    @property
    def damage(self) -> str:
        """Why the node is to its fleet as if it were not there, and the cure; empty: nothing is damaged."""
        return self._damage

    def dates_count(self) -> bool:
        """Whether this machine's clock may judge certificates. Asked by the uplink's thread too."""
        return self._identity is None or believed_s(self._clock.now(), self._known) is not None

    @property
    def now_s(self) -> float:
        """The best guess of Unix time."""
        return best_guess_s(self._clock.now(), self._known)

    def account(self) -> dict[str, Any] | None:
        """For /edge/v1/load; None where the node is not enrolled. Of a damaged identity only `standing` and `reason`."""
        if self._damage:
            return {"standing": "damaged", "reason": self._damage}
        identity = self._identity
        if identity is None:
            return None
        life, last = identity.life, self._last
        return {
            "node": identity.node,
            "fleet": identity.bootstrap.fleet if identity.bootstrap is not None else "",
            "url": identity.fleet_url,
            "generation": identity.generation,
            "standing": life.standing(self.now_s),
            "certificate_ends": life.ends_s,
            "certificate_left_s": round(life.ends_s - self.now_s),
            "renewal_due": life.due_s,
            "renewal_failure": last.reason if last is not None else "",
            "clock": "believed" if believed_s(self._clock.now(), self._known) is not None else "not believed",
        }

    async def start(self) -> None:
        """Begin to look."""
        self._announce()
        if self._damage:
            self._tell_damage(self._damage)
        self._task = asyncio.create_task(self._keep(), name="identity")

    async def stop(self) -> None:
        """Look no longer. A renewal under way is given up; the next start goes on with it, with the same key."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self) -> None:
        while True:
            try:
                await self.look()
            except Exception as error:
                log.error("identity cannot be kept", extra={"event": "bug"}, exc_info=error)
            await asyncio.sleep(self._look_s)

    async def look(self) -> None:
        """See how things are, and do what is due."""
        self._notice()
        if self._unheard and not self._damage:
            self._ask_for_a_new_beginning()
        if self._identity is None:
            return
        now_s = time.monotonic()
        if has_no_idea(self._clock.now(), self._known):
            if now_s >= self._next_ask_s:
                self._next_ask_s = now_s + _ASK_TIME_S
                await self._ask_the_time(self._identity)
        else:
            self._raise_floor(self._identity)
        if self._identity.life.standing(self.now_s) != "good" and now_s >= self._next_try_s:
            await self._renew(self._identity)
        self._judge(self._identity)

    def _notice(self) -> None:
        """Somebody may have enrolled, renewed or reset in the meantime."""
        try:
            there = self._identity.directory.name if self._identity is not None else ""
            if not self._damage and self._store.pointer.rpartition("/")[2] == there:
                return
            found = self._store.current()
        except (IdentityDamaged, OSError) as damaged:
            if self._damage:
                self._tell_damage(str(damaged))
            else:
                self._fail(str(damaged), count=False)
            return
        if self._damage:  # what hangs on the enrollment was never built: that takes a new beginning
            if refused := self._ask_for_a_new_beginning():
                self._tell_damage(f"its identity is whole again, and a start with that would fail: {refused}")
                return
            self._damage = ""
            if self.alarms is not None:
                self.alarms.clear("identity_damaged")
            self._settings = self._text_of(found)
        self._identity = found
        self._known, self._last, self._next_try_s = self._store.known(), self._store.last_try(), 0.0
        self._changed()

    def _tell_damage(self, damage: str) -> None:
        if damage == self._told_damage:
            return
        self._damage = self._told_damage = damage
        text = f"this node serves without its fleet: {damage}"
        if self.alarms is not None:
            self.alarms.set("identity_damaged", text, "what was mended is taken up by itself")
        else:
            log.warning(text, extra={"event": "identity_damaged"})

    def _ask_for_a_new_beginning(self) -> str:
        """Of the node. Why there is none; said once for each reason, and asked again after a while."""
        now_s = time.monotonic()
        if now_s < self._next_asked_s:
            return self._told_refusal
        refused = self.on_settings()
        self._unheard, self._next_asked_s = bool(refused), now_s + _BEGIN_S if refused else 0.0
        if refused and refused != self._told_refusal:
            log.warning(
                "the enrollment's settings cannot be taken up",
                extra={"event": "enrollment_unusable", "reason": refused},
            )
        self._told_refusal = refused
        return refused

    def _changed(self) -> None:
        self._announce()
        if self.alarms is not None:
            self.alarms.clear("renewal_refused")
        settings = self._text_of(self._identity)
        if settings != self._settings:
            self._settings, self._next_asked_s = settings, 0.0
            self._ask_for_a_new_beginning()
        elif self._identity is not None:
            self.on_renewed()

    @staticmethod
    def _text_of(identity: Identity | None) -> bytes:
        return (identity.directory / SETTINGS).read_bytes() if identity is not None else b""

    async def _renew(self, identity: Identity) -> None:
        try:
            self._identity = await renew(self._store, self._clock, self._prove)
        except StoreBusy:
            self._next_try_s = time.monotonic() + self._look_s
            return
        except EdgeError as error:
            self._fail(error.message, count=True, refused=isinstance(error, EnrollmentRefused))
            failures = self._last.failures if self._last is not None else 1
            pause = pause_s(failures, identity.life, self.now_s, self._chance())
            self._next_try_s = time.monotonic() + max(pause, error.retry_after_s or 0.0)
            return
        finally:
            self._known = self._store.known()
        self._last = self._store.last_try()
        life = self._identity.life
        if life.standing(self.now_s) != "good":
            self._next_try_s = time.monotonic() + next_pause_s(life, self.now_s, self._chance())
        self._changed()

    def _fail(self, reason: str, *, count: bool, refused: bool = False) -> None:
        """Said and told once for each reason."""
        last = self._last
        if not count and last is not None and last.reason == reason:
            return
        if last is None or last.reason != reason:
            failures = 1 if last is None else last.failures + 1
            log.warning(
                "identity is not renewed", extra={"event": "renewal_failed", "reason": reason, "failures": failures}
            )
        self._last = LastTry(self.now_s, (last.failures if last is not None else 0) + int(count), reason)
        with contextlib.suppress(EdgeError):
            self._store.remember_try(self._last)
        if refused and self.alarms is not None:
            self.alarms.set(
                "renewal_refused",
                f"the fleet does not renew this node's certificate: {reason}",
                "see `edge identity show`",
            )

    def _judge(self, identity: Identity) -> None:
        """The alarm of a certificate that nears its end, or is past it."""
        if self.alarms is None:
            return
        standing = identity.life.standing(self.now_s)
        if standing in ("good", "due"):
            self.alarms.clear("certificate_expiring")
            return
        ends = datetime.fromtimestamp(identity.life.ends_s, UTC)
        word = "has ended" if standing == "expired" else "ends soon"
        why = f": {self._last.reason}" if self._last is not None and self._last.reason else ""
        self.alarms.set(
            "certificate_expiring",
            f"this node's certificate {word} ({ends:%Y-%m-%d %H:%M} UTC) and could not be renewed{why}",
            "see the link to the fleet, and that the fleet knows this node; edge identity renew",
        )

    async def _ask_the_time(self, identity: Identity) -> None:
        """The clock is not set: the fleet has one."""
        contact = Contact(FleetClient(identity.fleet_url), self._store, self._clock)
        try:
            await contact.meet_again(identity)
            with self._store.locked():
                contact.remember()
        except EdgeError as error:
            log.info("the fleet did not tell the time", extra={"event": "time_unknown", "reason": error.message})
        self._known = self._store.known()

    def _raise_floor(self, identity: Identity) -> None:
        """A believed clock moves the floor."""
        last_use_s = identity.life.ends_s + identity.renewal.grace_s
        if (raised := floor_by_clock(self._clock.now(), self._known, last_use_s)) is not None:
            with contextlib.suppress(EdgeError), self._store.locked():
                self._known = raised
                self._store.remember_time(raised)

    def _announce(self) -> None:
        """Each generation is told of once. A node that has no uplink yet leaves that to itself after the start with one."""
        identity = self._identity
        if identity is None or self._store.announced == identity.directory.name:
            return
        ends = datetime.fromtimestamp(identity.life.ends_s, UTC).isoformat(timespec="seconds")
        about = {"generation": identity.generation, "certificate_ends": ends}
        log.info("this node has a new certificate", extra={"event": identity.how, **about})
        if self.alarms is not None:
            with contextlib.suppress(EdgeError):
                self._store.announce(identity.directory.name)
