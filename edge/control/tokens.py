"""Enrollment tokens: made here, shown once, kept as hashes.

A secret is 192 random bits, so a plain SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from edge.control.audit import note
from edge.control.database import Token, TokenUse
from edge.errors import ConfigurationError
from edge.identity.token import EnrollmentToken

_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH, _SECRET_BYTES = 8, 24
LONGEST_LIFE_S, MOST_USES, LONGEST_LABEL = 366 * 86_400.0, 100_000, 63
GROUP = r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,62}$"
_NOBODY = hashlib.sha256(b"no token has this secret").hexdigest()
TokenState = Literal["usable", "used", "expired", "revoked"]


@dataclass(frozen=True, slots=True)
class TokenWish:
    """What a token is to allow."""

    group: str = "default"
    label: str = ""
    """Name that its node gets; with several uses a number follows."""
    uses: int = 1
    life_s: float = 24 * 3600.0
    approval: bool = False


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token as it may be shown."""

    id: str
    group: str
    label: str
    approval: bool
    uses: int
    used: int
    created_s: float
    created_by: str
    expires_s: float
    revoked_s: float | None
    state: TokenState


def create_token(session: Session, wish: TokenWish, pin: str, now_s: float, actor: str) -> EnrollmentToken:
    """The only time that its secret can be seen. Raises ConfigurationError for a wish out of bounds."""
    _check(wish)
    token = EnrollmentToken(
        pin, "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH)), secrets.token_urlsafe(_SECRET_BYTES)
    )
    session.add(
        Token(
            id=token.id, secret_sha256=_hash(token.secret), group=wish.group, label=wish.label, approval=wish.approval,
            uses=wish.uses, created_s=now_s, created_by=actor[:100], expires_s=now_s + wish.life_s, revoked_s=None,
        )
    )  # fmt: skip
    uses = "one use" if wish.uses == 1 else f"{wish.uses} uses"
    note(session, now_s, actor, "token_created", token.id, f"group {wish.group}, {uses}, {wish.life_s:.0f} s")
    return token


def find_token(session: Session, token_id: str, secret: str) -> Token | None:
    """The token that this secret belongs to. Takes as long for an unknown id."""
    row = session.get(Token, token_id)
    holds = hmac.compare_digest(row.secret_sha256 if row is not None else _NOBODY, _hash(secret))
    return row if holds else None


def used(session: Session, token_id: str) -> int:
    """With how many keys."""
    query = select(func.count()).select_from(TokenUse).where(TokenUse.token_id == token_id)
    return session.scalar(query) or 0


def token_rows(session: Session, now_s: float, *, after: str | None = None, limit: int = 1000) -> list[TokenRow]:
    """By id; `after` is the last one seen."""
    counted = select(TokenUse.token_id, func.count().label("used")).group_by(TokenUse.token_id).subquery()
    query = select(Token, counted.c.used).outerjoin(counted, counted.c.token_id == Token.id)
    query = query.order_by(Token.id).limit(limit)
    if after is not None:
        query = query.where(Token.id > after)
    return [_row(token, count or 0, now_s) for token, count in session.execute(query)]


def revoke_token(session: Session, token_id: str, now_s: float, actor: str) -> bool:
    """Whether there is one of that id. Nodes that came with it stay."""
    row = session.get(Token, token_id)
    if row is None:
        return False
    if row.revoked_s is None:
        row.revoked_s = now_s
        note(session, now_s, actor, "token_revoked", token_id)
    return True


def _row(token: Token, count: int, now_s: float) -> TokenRow:
    state: TokenState = "usable"
    if token.revoked_s is not None:
        state = "revoked"
    elif count >= token.uses:
        state = "used"
    elif now_s >= token.expires_s:
        state = "expired"
    return TokenRow(
        token.id, token.group, token.label, token.approval, token.uses, count, token.created_s, token.created_by,
        token.expires_s, token.revoked_s, state,
    )  # fmt: skip


def _check(wish: TokenWish) -> None:
    if not re.fullmatch(GROUP, wish.group):
        raise ConfigurationError(
            "a group is 1 to 63 letters, digits, dots, dashes or underscores, and begins with a letter or digit"
        )
    if not 1 <= wish.uses <= MOST_USES:
        raise ConfigurationError(f"a token has 1 to {MOST_USES} uses")
    if not 1 <= wish.life_s <= LONGEST_LIFE_S:
        raise ConfigurationError("a token lives a second at least and 366 days at most")
    if len(wish.label) > LONGEST_LABEL or not wish.label.isprintable():
        raise ConfigurationError(f"a label is at most {LONGEST_LABEL} printable characters")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
