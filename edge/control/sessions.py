"""Who may administer: a key in each request, or a session that a key has opened in a browser."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy import delete
from sqlalchemy.orm import Session

from edge.api.auth import ApiKey, KeyStore, authorize
from edge.control.audit import note
from edge.control.database import Database, SignIn
from edge.errors import InvalidApiKey, PermissionDenied

CSRF_HEADER = "x-csrf-token"
_ID_BYTES = 32


@dataclass(frozen=True, slots=True)
class Opened:
    """A session as its owner sees it."""

    id: str
    name: str
    csrf: str
    expires_s: float


class Sessions:
    """Owner of the table of sessions."""

    def __init__(self, database: Database, keys: KeyStore, life_s: float) -> None:
        self._database, self._keys, self.life_s = database, keys, life_s

    def open(self, secret: str, now_s: float) -> Opened:
        """Sign in with an admin key. Raises InvalidApiKey or PermissionDenied."""
        key = self._key(secret)
        session_id = secrets.token_urlsafe(_ID_BYTES)
        with self._database.write() as session:
            session.execute(delete(SignIn).where(SignIn.expires_s < now_s))
            session.add(
                SignIn(
                    id_sha256=_hash(session_id), key_name=key.name, key_sha256=key.sha256, expires_s=now_s + self.life_s
                )
            )
            note(session, now_s, f"admin:{key.name}", "signed_in", key.name)
        return Opened(session_id, key.name, csrf_of(session_id), now_s + self.life_s)

    def find(self, session_id: str, now_s: float) -> Opened:
        """Of a cookie. Raises InvalidApiKey. A session ends with its key."""
        with self._database.read() as session:
            row = session.get(SignIn, _hash(session_id))
            known = row is not None and row.expires_s > now_s and self._still(row)
        if row is None or not known:
            raise InvalidApiKey("the session has ended; sign in again")
        return Opened(session_id, row.key_name, csrf_of(session_id), row.expires_s)

    def close(self, session_id: str) -> None:
        """Sign out."""
        with self._database.write() as session:
            _drop(session, session_id)

    def by_key(self, secret: str) -> str:
        """The name of an admin key. Raises InvalidApiKey or PermissionDenied."""
        return self._key(secret).name

    def _key(self, secret: str) -> ApiKey:
        try:
            return authorize(self._keys, secret, "admin")
        except (InvalidApiKey, PermissionDenied):
            raise InvalidApiKey(
                "this fleet does not know that admin key; `edge fleet admin-key create NAME` makes one"
            ) from None

    def _still(self, row: SignIn) -> bool:
        return any(hmac.compare_digest(key.sha256, row.key_sha256) for key in self._keys.all())


def csrf_of(session_id: str) -> str:
    """What a page must send with what it asks for: known to who can read the session's answers, and to nobody else."""
    return hmac.new(session_id.encode(), b"edge-fleet-csrf", hashlib.sha256).hexdigest()


def _drop(session: Session, session_id: str) -> None:
    session.execute(delete(SignIn).where(SignIn.id_sha256 == _hash(session_id)))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
