"""What the JSON API for people takes and answers."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field

from edge.control.audit import Entry
from edge.control.nodes import NodeRow
from edge.control.tokens import GROUP, MOST_USES, TokenRow


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class KeyGiven(_Strict):
    """To sign in."""

    key: Annotated[str, MinLen(1), MaxLen(256)]


class SessionAnswer(_Strict):
    """Who is signed in, and what must stand in X-CSRF-Token of everything that changes something."""

    name: str
    csrf: str
    expires_s: float


class NodesPage(_Strict):
    """Some nodes by name; `next` is the `after` of the following page, null at the end."""

    items: list[NodeRow]
    next: str | None


class TokensPage(_Strict):
    """Some tokens by id."""

    items: list[TokenRow]
    next: str | None


class AuditPage(_Strict):
    """Newest first; `next` is the `before` of the following page."""

    items: list[Entry]
    next: int | None


class Overview(_Strict):
    """The fleet in figures."""

    fleet: str
    nodes: dict[str, int]
    online: int
    root_ends_s: float
    issuing_ends_s: float
    rolling_over: bool
    problems: list[str]
    """What is wrong with the server itself: lists that do not hold, telemetry that stands still."""
    now_s: float


class TokenAsked(_Strict):
    """What a token is to allow."""

    group: Annotated[str, Field(pattern=GROUP)] = "default"
    label: Annotated[str, MaxLen(63)] = ""
    uses: Annotated[int, Ge(1), Le(MOST_USES)] = 1
    life_s: Annotated[float, Ge(60), Le(366 * 86_400)] = 24 * 3600.0
    approval: bool = False


class TokenMade(_Strict):
    """The token, which is not shown again."""

    id: str
    token: str
    url: str
    """What `edge enroll --fleet` is to be given."""


class Changed(_Strict):
    """A node after a decision. `enforced`: broker and gateways have been told."""

    node: NodeRow
    enforced: bool
