"""Local, fleet or refuse. Pure: what is known comes in, a decision comes out.

Two questions in turn. Before a request is even read: may it go to the engine at all (`at_the_door`)? And when the engine has
foreseen that it would be late: is the fleet sooner, is a late answer wanted, or is it refused (`when_late`)? What the engine
admits is answered here, whatever the fleet could do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge.messages import LateReason, Tier

Mode = Literal["fleet", "best-effort", "strict", "off"]
Policy = Literal["auto", "local-only", "fleet-ok"]
DoorReason = Literal[
    "loading", "draining", "engine_down", "queue_full", "model_not_here", "model_unusable", "no_memory"
]
Reason = (
    LateReason
    | DoorReason
    | Literal["", "further_model", "policy", "breaker_open", "fleet_busy", "bytes_cap", "cost_cap", "hop"]
)
"""`further_model`: another model is the one that keeps promises here."""

SOONER = 0.8
"""The fleet must be this much sooner than a late answer here: a prediction that is wrong by less costs nothing."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request wants. `handed_on`: another node sent it here, so it goes no further."""

    tier: Tier
    policy: Policy
    handed_on: bool


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the fleet can do now. `reason`: why it cannot."""

    available: bool
    ttft_s: float
    reason: Literal["", "breaker_open", "fleet_busy", "bytes_cap", "cost_cap"] = ""


@dataclass(frozen=True, slots=True)
class Late:
    """The engine's outlook for a request that it does not admit: until its first token here, and why it is late."""

    reason: LateReason
    ttft_s: float
    hopeless: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """Where to, and why. `reason` is empty for what is admitted here. `fleet_reason`: why the fleet was no choice."""

    route: Literal["local", "late", "fleet", "refuse"]
    reason: Reason
    fleet_reason: Reason = ""


def may_leave(ask: Ask, mode: Mode, fleet: Fleet | None) -> Reason | None:
    """None if the request may go to the fleet now, else why it may not; empty where there is no fleet."""
    if fleet is None or mode != "fleet":
        return ""
    if ask.policy == "local-only":
        return "policy"
    if ask.handed_on:
        return "hop"
    return None if fleet.available else fleet.reason


def at_the_door(ask: Ask, mode: Mode, fleet: Fleet | None, obstacle: DoorReason | None) -> Decision:
    """Before the engine is asked. `obstacle`: why the engine cannot be; None if it can."""
    if obstacle is None:
        return Decision("local", "")
    barred = may_leave(ask, mode, fleet)
    return Decision("fleet", obstacle) if barred is None else Decision("refuse", obstacle, barred)


def when_late(ask: Ask, mode: Mode, offline: Mode, fleet: Fleet | None, late: Late) -> Decision:
    """The engine would be late. `offline`: the mode that holds where the fleet is no choice."""
    barred = may_leave(ask, mode, fleet)
    if barred is None and fleet is not None:
        eager = ask.policy == "fleet-ok" or late.reason == "wait"
        if eager or fleet.ttft_s < late.ttft_s * SOONER:
            return Decision("fleet", late.reason)
        return Decision("late", late.reason)
    effective = offline if mode == "fleet" else mode
    if late.reason == "wait" or (effective == "strict" and ask.tier != "flex"):
        return Decision("refuse", late.reason, barred or "")
    return Decision("late", late.reason, barred or "")
