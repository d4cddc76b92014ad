"""Who gets a certificate: first enrollment with a token, renewal with a certificate. Each is one transaction.

A server that is killed before the commit has done nothing; after it, the same key asks again and gets the same node. So there is
one identity for each key, whatever is killed when.

A renewal makes a certificate beside the one that asked: the reply may be lost, and a box tries the new one before it drops the
old one. The new one is known to be in use when it renews in its turn. From then on it and what it asked for count, and nothing
older: a box never goes back, so who comes with an older key is not the box.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edge.control.audit import note
from edge.control.authority import Authority
from edge.control.database import Certificate, Node, Token, TokenUse
from edge.control.settings import FleetSettings
from edge.control.tokens import find_token, used
from edge.control.x509 import BACK, common_name, issue_node, key_hash
from edge.errors import RateLimited
from edge.identity.wire import Reason
from edge.printable import printable

REASK_S = 7 * 86_400.0
"""So long after its end a token still answers the keys that it let in: for replies that were lost."""
RESERVED = "fleet-"
"""Names of the fleet's own clients begin so; no node's does."""
_STATUSES: dict[Reason, int] = {
    "token_unknown": 401, "token_expired": 401, "token_used": 401, "token_revoked": 401, "token_bound": 409,
    "node_revoked": 403, "node_unknown": 403, "certificate_expired": 403, "pending": 202, "request_malformed": 400,
}  # fmt: skip
_TAIL_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_LONGEST_BASE, _LONGEST_LABEL = 50, 200
_MOST_ALIVE = 100
"""Certificates of one node. It needs two; each that was replaced stands in the revocation list that all gateways read."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no certificate: for machines, and as a sentence."""

    reason: Reason
    text: str

    @property
    def status(self) -> int:
        """Of HTTP."""
        return _STATUSES[self.reason]


@dataclass(frozen=True, slots=True)
class Issued:
    """A node's certificate."""

    node: str
    certificate: x509.Certificate


Outcome = Issued | Refused
UNKNOWN_TOKEN = Refused("token_unknown", "this fleet has no such enrollment token")


@dataclass(frozen=True, slots=True)
class Registrar:
    """Decides on requests whose keys were proven already."""

    authority: Authority
    settings: FleetSettings

    def enroll(self, session: Session, token_id: str, secret: str, request: x509.CertificateSigningRequest, now: datetime) -> Outcome:  # fmt: skip  # noqa: E501
        """With a token. `session` is a transaction that may write."""
        now_s, key = now.timestamp(), key_hash(request.public_key())
        token = find_token(session, token_id, secret)
        if token is None:
            return UNKNOWN_TOKEN
        if token.revoked_s is not None:
            return Refused("token_revoked", "the enrollment token was revoked; ask for a new one")
        use = session.get(TokenUse, (token.id, key))
        if use is None and now_s >= token.expires_s:
            return Refused("token_expired", "the enrollment token has expired; ask for a new one")
        if use is None and (count := used(session, token.id)) >= token.uses:
            if token.uses == 1:
                return Refused("token_bound", "the enrollment token was used with another key; each box needs its own")
            return Refused("token_used", f"the enrollment token's {count} uses are used up; ask for a new one")
        node = self._node_of(session, token, key, use, request, now_s)
        if node.state == "revoked":
            return Refused("node_revoked", f"the node {node.id} was revoked")
        if node.state == "pending":
            return Refused("pending", f"the node {node.id} waits for approval: `edge fleet approve {node.id}`")
        if use is not None and node.not_after_s is not None and now_s >= token.expires_s + REASK_S:
            return Refused("token_expired", "the enrollment token has expired; renew with the certificate")
        if not _counts(session, node, key):
            return Refused(
                "token_bound", f"that key of {node.id} was replaced by a newer one; enroll with a new key and token"
            )
        parent = node.proven_key
        return self._again(session, node, key, now) or self._sign(
            session, node, request, now, f"token:{token.id}", parent
        )

    def renew(self, session: Session, peer: x509.Certificate, request: x509.CertificateSigningRequest, now: datetime) -> Outcome:  # fmt: skip  # noqa: E501
        """With a certificate of ours, for the same key or a new one."""
        found = self.node_of(session, peer, now, grace_s=self.settings.grace_s)
        if isinstance(found, Refused):
            return found
        key = key_hash(request.public_key())
        if key != found.key_sha256:
            other = session.scalar(select(Node).where(Node.key_sha256 == key))
            if other is not None and other.id != found.id:
                return Refused("token_bound", "another node has that key; make a new one")
            found.key_sha256 = key
        asker = key_hash(peer.public_key())
        if found.proven_key != asker:
            found.proven_key, found.proven_s = asker, now.timestamp()
        return self._sign(session, found, request, now, f"node:{found.id}", asker)

    def node_of(
        self, session: Session, peer: x509.Certificate, now: datetime, *, grace_s: float = 0.0
    ) -> Node | Refused:
        """The node that a certificate belongs to, if it may be heard. The handshake has checked the chain, and nothing else."""
        name = common_name(peer.subject)
        node = session.get(Node, name) if self.authority.signed(peer) else None
        if node is None:
            return Refused("node_unknown", "this fleet knows no node with that certificate; enroll it with a token")
        if node.state != "active":
            return Refused("node_revoked", f"the node {node.id} was revoked")
        if now.timestamp() > peer.not_valid_after_utc.timestamp() + grace_s:
            return Refused(
                "certificate_expired",
                f"the certificate of {node.id} ended on {peer.not_valid_after_utc:%Y-%m-%d}; enroll it anew with a token",
            )
        key = key_hash(peer.public_key())
        known = select(Certificate.serial).where(Certificate.node_id == node.id, Certificate.key_sha256 == key).limit(1)
        if session.scalar(known) is None:  # the database was restored from before
            if (peer.not_valid_before_utc + BACK).timestamp() < node.created_s:
                return Refused(
                    "node_unknown", f"that certificate is older than the node {node.id}; enroll anew with a token"
                )
        elif not _counts(session, node, key):
            return Refused(
                "certificate_expired",
                f"a newer certificate of {node.id} has renewed since, so this one counts no longer; if the box has no newer one, "
                f"its key has leaked: `edge fleet revoke {node.id}`, and enroll it anew with a token",
            )
        return node

    def _node_of(
        self, session: Session, token: Token, key: str, use: TokenUse | None, request: x509.CertificateSigningRequest,
        now_s: float,
    ) -> Node:  # fmt: skip
        """The node of this key: the one there is, or a new one."""
        if use is not None:
            found = session.get(Node, use.node_id)
            assert found is not None
            return found
        node = session.scalar(select(Node).where(Node.key_sha256 == key))
        if node is None:
            wished = token.label or common_name(request.subject)
            node = Node(
                id=_free_name(session, wished), label=printable(wished)[:_LONGEST_LABEL], group=token.group,
                state="pending" if token.approval else "active", key_sha256=key, token_id=token.id, created_s=now_s,
                approved_s=None if token.approval else now_s, approved_by=None if token.approval else f"token:{token.id}",
                revoked_s=None, revoked_by=None, not_after_s=None,
            )  # fmt: skip
            session.add(node)
            session.flush()
            note(session, now_s, f"token:{token.id}", "node_enrolled", node.id, f"group {node.group}, {node.state}")
        if node.state != "revoked":  # else the box makes another key, and comes with that and the same token
            session.add(TokenUse(token_id=token.id, key_sha256=key, node_id=node.id, used_s=now_s))
            session.flush()
        return node

    def _again(self, session: Session, node: Node, key: str, now: datetime) -> Issued | None:
        """The certificate that this key got already, if most of its life is still to come: the reply may have been lost."""
        query = select(Certificate).where(Certificate.node_id == node.id, Certificate.key_sha256 == key)
        row = session.scalar(query.order_by(Certificate.not_after_s.desc()).limit(1))
        if row is None or not row.not_before_s <= now.timestamp() <= (row.not_before_s + row.not_after_s) / 2:
            return None
        certificate = x509.load_der_x509_certificate(row.der)
        return Issued(node.id, certificate) if self.authority.signed(certificate) else None

    def _sign(
        self, session: Session, node: Node, request: x509.CertificateSigningRequest, now: datetime, actor: str,
        parent_key: str | None,
    ) -> Issued:  # fmt: skip
        self.authority.require_clock(now)
        alive = select(func.count()).where(Certificate.node_id == node.id, Certificate.not_after_s > now.timestamp())
        if (count := session.scalar(alive) or 0) >= max(_MOST_ALIVE, 3 / self.settings.nodes.renew_at_share):
            raise RateLimited(
                f"{node.id} has {count} certificates that have not ended, and gets no more: it renews all the time, or somebody "
                f"else does; `edge fleet revoke {node.id}`, and enroll it anew with a token"
            )
        life = timedelta(days=self.settings.nodes.certificate_days)
        issuer = self.authority.issuer
        made = issue_node(issuer, request.public_key(), self.settings.name, node.id, now, life)
        session.add(
            Certificate(
                serial=f"{made.serial_number:x}", node_id=node.id, key_sha256=key_hash(request.public_key()),
                parent_key=parent_key, issuer=issuer_id(issuer.certificate), not_before_s=made.not_valid_before_utc.timestamp(),
                not_after_s=made.not_valid_after_utc.timestamp(),
                der=made.public_bytes(serialization.Encoding.DER),
            )
        )  # fmt: skip
        node.not_after_s = made.not_valid_after_utc.timestamp()
        until = datetime.fromtimestamp(node.not_after_s, UTC)
        note(
            session,
            now.timestamp(),
            actor,
            "certificate_issued",
            node.id,
            f"{made.serial_number:x} until {until:%Y-%m-%d}",
        )
        return Issued(node.id, made)


def _counts(session: Session, node: Node, key: str) -> bool:
    """Whether a key of that node was not replaced by one that is known to be in use."""
    if node.proven_key is None or key == node.proven_key:
        return True
    query = select(Certificate.serial).where(Certificate.node_id == node.id, Certificate.key_sha256 == key)
    return session.scalar(query.where(Certificate.parent_key == node.proven_key).limit(1)) is not None


def issuer_id(certificate: x509.Certificate) -> str:
    """An issuing authority's key identifier, in hex."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return extension.value.digest.hex()


def node_name(wished: str) -> str:
    """A name as topics and certificates can carry it; never one of the fleet's own."""
    plain = re.sub(r"[^a-z0-9]+", "-", wished.lower()).strip("-")[:_LONGEST_BASE].strip("-")
    return f"node-{plain}" if plain.startswith(RESERVED) or f"{plain}-" == RESERVED else plain or "node"


def _free_name(session: Session, wished: str) -> str:
    base = name = node_name(wished)
    while session.get(Node, name) is not None:
        name = f"{base}-{''.join(secrets.choice(_TAIL_ALPHABET) for _ in range(5))}"
    return name
