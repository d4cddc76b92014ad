"""What node and fleet say to each other beside EST: the bootstrap document and the reasons of refusals."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from pydantic import BaseModel, ConfigDict, Field

EST_PATH = "/.well-known/est"
BOOTSTRAP_PATH = "/fleet/v1/bootstrap"
REASON_HEADER = "Edge-Reason"
"""Of an answer that refuses: one of `Reason`. Absent from servers that are not ours; the status alone must do then."""

Reason = Literal[
    "token_unknown",
    "token_expired",
    "token_used",
    "token_revoked",
    "token_bound",  # to another key: 409
    "node_revoked",
    "node_unknown",
    "certificate_expired",  # beyond the grace time
    "pending",  # 202 with Retry-After
    "request_malformed",
]

MOST_BYTES = 64 * 1024
"""No answer of the fleet's is longer; what is longer is not read."""

MOST_COMMAND_KEYS = 8

_Text = Annotated[str, MaxLen(1024)]


class _Wire(BaseModel):
    """What we do not know is let pass: a newer fleet may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class MqttPlace(_Wire):
    """Where telemetry goes; the node's certificate is its name and password there."""

    url: Annotated[str, Field(pattern=r"^mqtts?://[^\s]+$"), MaxLen(512)]
    prefix: _Text = "edge/v1/{group}/{node}/"


class Fallback(_Wire):
    """An OpenAI-compatible server for what this node cannot answer in time."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s]+$"), MaxLen(512)]
    model: _Text = ""
    ca: Literal["fleet", "system"] = "fleet"
    """Who signed that server's certificate: the fleet's CA, or one that every system knows."""


class Renewal(_Wire):
    """When a certificate is renewed, and how long after its end it still may be."""

    at_share: Annotated[float, Gt(0), Lt(1)] = 2 / 3
    """Of the certificate's life."""
    grace_s: Annotated[int, Ge(0), Le(10 * 365 * 86_400)] = 30 * 86_400


class Bootstrap(_Wire):
    """GET /fleet/v1/bootstrap, over mTLS with the node's own certificate: what a node is to do with its new identity."""

    version: Literal[1] = 1
    fleet: _Text
    node: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,62}$")]
    """The node's id: CN of its certificate, and part of its topics."""
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,62}$")] = "default"
    mqtt: MqttPlace | None = None
    fallback: Fallback | None = None
    command_keys: Annotated[tuple[Annotated[str, MaxLen(1024)], ...], MaxLen(MOST_COMMAND_KEYS)] = ()
    """Ed25519 public keys in PEM."""
    renewal: Renewal = Renewal()
