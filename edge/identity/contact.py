"""Meeting the fleet: whom to trust there by now, what its answers mean, and what they teach about the time."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509

from edge.errors import EnrollmentFailed, EnrollmentPending, EnrollmentRefused, EnrollmentUnreachable, PinMismatch
from edge.identity.certificates import est_body, read_certs_only, request_der, spki
from edge.identity.est import Answer, FleetClient, Trust
from edge.identity.identity import Identity, read_bootstrap
from edge.identity.moment import believed_s, best_guess_s
from edge.identity.store import Store
from edge.identity.token import EnrollmentToken
from edge.identity.trust import Anchors, issued_to, pinned, rolled_over
from edge.identity.wire import Bootstrap
from edge.telemetry.clock import Clock

_OK, _PENDING, _NOT_FOUND = 200, 202, 404
_REFUSALS = frozenset({401, 403, 409})
_SAID = {
    "token_unknown": "the fleet does not know this token; copy it whole, or have one made: edge fleet token create",
    "token_expired": "this token has expired; have another one made: edge fleet token create",
    "token_used": "this token was used up by other nodes; have another one made: edge fleet token create",
    "token_revoked": "this token was revoked; have another one made: edge fleet token create",
    "token_bound": "this token was used by a node with another key; each node needs a token, or a use of one, of its own",
    "node_revoked": "the fleet has revoked this node; who runs the fleet can let it in again, with a new token",
    "node_unknown": "the fleet does not know this node any more; enroll anew: edge enroll --force, with a new token",
    "certificate_expired": "this node's certificate ended too long ago to be renewed, or a newer one of this node has taken its "
    "place; enroll anew: edge enroll --force, with a new token",
    401: "the fleet does not take this token; see that it is whole and not used or expired, or have another one made",
    403: "the fleet does not let this node in",
    409: "this token belongs to a node with another key; have another one made",
}
FINAL = frozenset({"node_revoked", "node_unknown"})
"""No use in asking with that key again."""
_LONGEST_SAID = 200


class Contact:
    """One conversation. `anchors` is the fleet's CA once it was met."""

    def __init__(self, client: FleetClient, store: Store, clock: Clock) -> None:
        self._client, self._store, self._clock = client, store, clock
        self._known = store.known()
        self._trust: Trust | None = None

    @property
    def anchors(self) -> Anchors:
        """Whom to trust."""
        return self._met.anchors

    @property
    def _met(self) -> Trust:
        assert self._trust is not None, "met first"
        return self._trust

    @property
    def now_s(self) -> float | None:
        """None: the clock cannot be believed."""
        return believed_s(self._clock.now(), self._known)

    def is_over(self, certificate: x509.Certificate) -> bool:
        """Whether it has ended, as far as can be known: a certificate that was kept over a crash may have."""
        return certificate.not_valid_after_utc.timestamp() <= best_guess_s(self._clock.now(), self._known)

    def _trusting(self, anchors: Anchors) -> Trust:
        return Trust(anchors, check_dates=self.now_s is not None)

    async def meet(self, root_sha256: str) -> None:
        """For the first time, with nothing but the pin. Raises PinMismatch and what `FleetClient` does."""
        seen = self._authorities(await self._client.look_at_authorities())
        self._trust = self._trusting(rolled_over(pinned(seen, root_sha256), seen))
        found = self._authorities(self._heard(await self._client.authorities(self._met)))
        self._trust = self._trusting(rolled_over(self.anchors, found))

    async def meet_again(self, identity: Identity) -> None:
        """With the CA known from before. If the server shows another one, that must have been signed by it."""
        self._trust = self._trusting(identity.anchors)
        try:
            answer = await self._client.authorities(self._met)
        except PinMismatch:
            found = self._authorities(await self._client.look_at_authorities())
            seen = rolled_over(identity.anchors, found, [identity.certificate])
            if seen.pins == identity.anchors.pins:
                raise
            self._trust = self._trusting(seen)
            answer = await self._client.authorities(self._met)
        found = self._authorities(self._heard(answer))
        self._trust = self._trusting(rolled_over(self.anchors, found, [identity.certificate]))

    async def enroll(self, token: EnrollmentToken, label: str) -> tuple[x509.Certificate, ...]:
        """A certificate for the key in the making. Raises EnrollmentPending, EnrollmentRefused and others."""
        key = self._store.key("enrolling")
        answer = self._heard(await self._client.enroll(self._met, token, est_body(request_der(key, label))))
        return self._certificate(answer, spki(key), None)

    async def renew(self, identity: Identity) -> tuple[x509.Certificate, ...]:
        """The same with the certificate that there is."""
        key = self._store.key("renewing")
        request = est_body(request_der(key, identity.node))
        answer = self._heard(await self._client.renew(self._met, identity.directory, request))
        return self._certificate(answer, spki(key), identity.node)

    def _certificate(self, answer: Answer, key_spki: bytes, node: str | None) -> tuple[x509.Certificate, ...]:
        self._require_ok(answer)
        try:
            found = read_certs_only(answer.body)
        except ValueError as error:
            raise EnrollmentFailed(f"the fleet's answer holds no certificates: {error}") from None
        chain = issued_to(found, key_spki, self.anchors, now_s=self.now_s, node=node)
        # It was signed a moment ago, by a CA that is trusted: it is no earlier than that.
        self._known = self._known.later(chain[0].not_valid_before_utc.timestamp())
        return chain

    async def bootstrap(self, directory: Path, node: str) -> Bootstrap | None:
        """What this node is to do; None where the server has nothing of that kind (it is an EST server of others)."""
        answer = self._heard(await self._client.bootstrap(self._met, directory))
        if answer.status == _NOT_FOUND and not answer.reason:
            return None
        self._require_ok(answer)
        found = read_bootstrap(answer.body)
        if found.node != node:
            raise EnrollmentFailed(f"the fleet's bootstrap is for {found.node}, and its certificate is for {node}")
        return found

    def remember(self) -> None:
        """What was learned of the time. A believed clock that the fleet's certificate agreed with is a floor too."""
        if (now_s := self.now_s) is not None:
            self._known = self._known.later(now_s)
        self._store.remember_time(self._known)

    def _heard(self, answer: Answer) -> Answer:
        if answer.date_s:
            self._known = self._known.told(answer.date_s, self._clock.now())
        return answer

    def _authorities(self, answer: Answer) -> list[x509.Certificate]:
        if answer.status != _OK:
            raise EnrollmentUnreachable(
                f"what answers at {self._client.url} is no EST server: it answers {answer.status} to /cacerts"
            )
        try:
            return read_certs_only(answer.body)
        except ValueError as error:
            raise EnrollmentUnreachable(
                f"what answers at {self._client.url} is no EST server: /cacerts holds no certificates ({error})"
            ) from None

    def _require_ok(self, answer: Answer) -> None:
        status = answer.status
        if status == _OK:
            return
        said = _plain(answer.body)
        if status == _PENDING:
            raise EnrollmentPending(
                "the fleet has noted this node; somebody has to approve it now: edge fleet approve. Then the same command "
                "again, or --wait",
                retry_after_s=answer.retry_after_s,
            )
        if status in _REFUSALS:
            known = _SAID.get(answer.reason) or f"{_SAID[status]}{f' ({said})' if said else ''}"
            raise EnrollmentRefused(known, answer.reason)
        words = f" ({said})" if said else ""
        if status == 400:
            raise EnrollmentFailed(f"the fleet calls the request malformed{words}; are both of like version?")
        raise EnrollmentUnreachable(f"the fleet at {self._client.url} answers {status}{words}; try again later")


def _plain(body: bytes) -> str:
    """A refusal's sentence, if it is one: it comes from outside and goes to a terminal."""
    text = body[:_LONGEST_SAID].decode("ascii", "ignore").strip()
    return text if text.isprintable() and not text.startswith(("<", "{")) else ""
