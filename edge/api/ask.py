"""What a request says about where and when it wants to be answered."""

from __future__ import annotations

from starlette.datastructures import Headers

from edge.admission.policy import Ask, Policy
from edge.errors import InvalidRequest
from edge.fleet.central import HOP_HEADER
from edge.messages import Tier

POLICY_HEADER = "x-edge-policy"
_POLICIES: dict[str, Policy] = {"auto": "auto", "local-only": "local-only", "fleet-ok": "fleet-ok"}
_TIERS: dict[str | None, Tier] = {"priority": "priority", "flex": "flex"}


def asked(headers: Headers, service_tier: str | None) -> Ask:
    """From its headers, and its body's `service_tier`. Raises InvalidRequest."""
    given = headers.get(POLICY_HEADER, "auto").strip().lower()
    if given not in _POLICIES:
        raise InvalidRequest(f"the header X-Edge-Policy is one of {', '.join(_POLICIES)}", param="X-Edge-Policy")
    return Ask(_TIERS.get(service_tier, "default"), _POLICIES[given], handed_on=HOP_HEADER in headers)
