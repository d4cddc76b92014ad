"""The audit log: who did what to whom, in the same transaction as the deed."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from edge.control.database import Audit

_LONGEST_DETAIL, _LONGEST_NAME = 400, 100


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of it."""

    id: int
    at_s: float
    actor: str
    action: str
    subject: str
    detail: str


def note(session: Session, now_s: float, actor: str, action: str, subject: str, detail: str = "") -> None:
    """Add a line. `actor` is `admin:NAME`, `cli:USER`, `token:ID`, `node:ID` or `fleet`."""
    session.add(
        Audit(
            at_s=now_s, actor=actor[:_LONGEST_NAME], action=action, subject=subject[:_LONGEST_NAME],
            detail=detail[:_LONGEST_DETAIL],
        )
    )  # fmt: skip


def entries(session: Session, *, before: int | None, subject: str | None, limit: int) -> list[Entry]:
    """Newest first; `before` is the id of the last one seen."""
    query = select(Audit).order_by(Audit.id.desc()).limit(limit)
    if before is not None:
        query = query.where(Audit.id < before)
    if subject:
        query = query.where(Audit.subject == subject)
    return [Entry(row.id, row.at_s, row.actor, row.action, row.subject, row.detail) for row in session.scalars(query)]
