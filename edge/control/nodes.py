"""Nodes as people see them, and what people do with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from sqlalchemy import and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from edge.control.audit import note
from edge.control.database import Certificate, Node, NodeStatus
from edge.printable import printable

State = Literal["pending", "active", "revoked"]
_LONGEST_TOLD = 100
STATES: tuple[State, ...] = ("pending", "active", "revoked")


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node: its identity, and what it told last. Times are Unix seconds; figures are shares from 0 to 1."""

    id: str
    label: str
    group: str
    state: State
    created_s: float
    approved_by: str | None
    revoked_s: float | None
    revoked_by: str | None
    certificate_ends_s: float | None
    last_seen_s: float | None
    health: str
    """online, draining or offline as it told itself; unseen before it told anything."""
    version: str | None
    models: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)
    slo_attainment: float | None = None
    fallback_rate: float | None = None
    requests: int | None = None
    """In the time that the two shares are about."""


def node_rows(
    session: Session, *, after: str | None = None, limit: int = 100, state: str | None = None, group: str | None = None,
    search: str | None = None,
) -> list[NodeRow]:  # fmt: skip
    """By id; `after` is the last one seen."""
    query = select(Node, NodeStatus).outerjoin(NodeStatus, NodeStatus.node_id == Node.id).order_by(Node.id).limit(limit)
    if after is not None:
        query = query.where(Node.id > after)
    if state:
        query = query.where(Node.state == state)
    if group:
        query = query.where(Node.group == group)
    if search:
        query = query.where(
            or_(Node.id.contains(search, autoescape=True), Node.label.contains(search, autoescape=True))
        )
    return [_row(node, status) for node, status in session.execute(query)]


def node_row(session: Session, node_id: str) -> NodeRow | None:
    """One of them."""
    node = session.get(Node, node_id)
    return None if node is None else _row(node, session.get(NodeStatus, node_id))


def counts(session: Session) -> dict[str, int]:
    """How many there are, by state."""
    found: dict[str, int] = dict.fromkeys(map(str, STATES), 0)
    for state, count in session.execute(select(Node.state, func.count()).group_by(Node.state)):
        found[state] = count
    return found


def online(session: Session) -> int:
    """How many active ones say that they are there."""
    query = select(func.count()).select_from(NodeStatus).join(Node, Node.id == NodeStatus.node_id)
    return session.scalar(query.where(Node.state == "active", NodeStatus.state.in_(("online", "draining")))) or 0


def approve(session: Session, node_id: str, now_s: float, actor: str) -> str | None:
    """None, or why not."""
    node = session.get(Node, node_id)
    if node is None:
        return f"there is no node {node_id!r}; `edge fleet nodes` lists them"
    if node.state == "revoked":
        return f"{node_id} was revoked, and that is for good; enroll it anew with a token and a new key"
    if node.state == "pending":
        node.state, node.approved_s, node.approved_by = "active", now_s, actor
        note(session, now_s, actor, "node_approved", node_id)
    return None


def revoke(session: Session, node_id: str, now_s: float, actor: str) -> str | None:
    """None, or why not. What was decided here is enforced by `edge.control.enforcement`."""
    node = session.get(Node, node_id)
    if node is None:
        return f"there is no node {node_id!r}; `edge fleet nodes` lists them"
    if node.state != "revoked":
        node.state, node.revoked_s, node.revoked_by = "revoked", now_s, actor
        note(session, now_s, actor, "node_revoked", node_id)
    return None


def active(session: Session) -> Iterator[tuple[str, str]]:
    """(id, group) of those that may speak."""
    query = select(Node.id, Node.group).where(Node.state == "active").order_by(Node.id)
    for row in session.execute(query):
        yield row[0], row[1]


def revoked_certificates(session: Session, ended_after_s: float) -> list[tuple[str, str, float]]:
    """(issuer, serial in hex, when) of certificates that have not ended long ago: all those of revoked nodes, and of others those
    that were replaced by one that is known to be in use."""
    asked_by_it = aliased(Certificate)
    replaced = and_(
        Certificate.key_sha256 != Node.proven_key,
        ~exists().where(
            asked_by_it.node_id == Node.id,
            asked_by_it.key_sha256 == Certificate.key_sha256,
            asked_by_it.parent_key == Node.proven_key,
        ),
    )
    since = func.coalesce(Node.revoked_s, Node.proven_s)
    query = select(Certificate.issuer, Certificate.serial, since).join(Node, Node.id == Certificate.node_id)
    query = query.where(or_(Node.state == "revoked", replaced), Certificate.not_after_s > ended_after_s)
    found = [(issuer, serial, when or 0.0) for issuer, serial, when in session.execute(query)]
    return sorted(found, key=lambda row: row[1])


def revoked_since(session: Session, since_s: float) -> list[str]:
    """Those that were shut out lately."""
    return list(
        session.scalars(select(Node.id).where(Node.state == "revoked", Node.revoked_s > since_s).order_by(Node.id))
    )


def holders(session: Session, issuer: str, now_s: float) -> list[str]:
    """Active nodes whose newest certificate was signed by that authority."""
    newest = (
        select(Certificate.node_id, func.max(Certificate.not_after_s).label("ends"))
        .group_by(Certificate.node_id).subquery()
    )  # fmt: skip
    query = select(Node.id).join(newest, newest.c.node_id == Node.id)
    query = query.join(
        Certificate, (Certificate.node_id == newest.c.node_id) & (Certificate.not_after_s == newest.c.ends)
    )
    query = query.where(Node.state == "active", Certificate.issuer == issuer, Certificate.not_after_s > now_s)
    return list(session.scalars(query.distinct().order_by(Node.id)))


def _told(value: Any) -> str | None:
    """What a node told, as a page and a terminal may show it; None if it is no text."""
    if not isinstance(value, str):
        return None
    return printable(value)[:_LONGEST_TOLD] or None


def _row(node: Node, status: NodeStatus | None) -> NodeRow:
    info: dict[str, Any] = {} if status is None else orjson.loads(status.info)
    figures: dict[str, Any] = {} if status is None else orjson.loads(status.figures)
    told = figures.get("models") or [info.get("model")]
    models = [name for found in (told if isinstance(told, list) else ()) if (name := _told(found))]
    return NodeRow(
        id=node.id, label=node.label, group=node.group, state=node.state,  # type: ignore[arg-type]
        created_s=node.created_s, approved_by=node.approved_by, revoked_s=node.revoked_s, revoked_by=node.revoked_by,
        certificate_ends_s=node.not_after_s, last_seen_s=None if status is None else status.last_seen_s,
        health="unseen" if status is None else status.state or "unseen", version=_told(info.get("version")),
        models=models, info=info,
        slo_attainment=figures.get("slo_attainment"), fallback_rate=figures.get("fallback_rate"),
        requests=figures.get("requests"),
    )  # fmt: skip
