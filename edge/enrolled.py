"""What an enrollment means for a node that starts: who it is, and how far its clock may judge its broker."""

from __future__ import annotations

from pathlib import Path

from edge.identity.keeper import Keeper
from edge.identity.store import Store
from edge.identity.trial import try_broker, uses_identity
from edge.settings import Settings
from edge.telemetry.clock import SystemClock
from edge.telemetry.mqtt import dates_count
from edge.telemetry.node import Telemetry


def keeper_of(settings: Settings, home: Path) -> Keeper:
    """Of who the node is to its fleet. Raises IdentityDamaged."""
    store, clock = Store(home), SystemClock(trusted=settings.mqtt.trust_clock)

    def prove(directory: Path) -> str:
        return try_broker(settings.mqtt, home, directory, keeper.dates_count)

    keeper = Keeper(store, clock, prove)
    return keeper


def telemetry_of(settings: Settings, home: Path, keeper: Keeper) -> Telemetry | None:
    """None where nothing is sent. Raises ConfigurationError."""
    if not settings.mqtt.url:
        return None
    # Only the CA that was pinned at enrollment lets a clock be wrong; one that somebody put there himself does not.
    check_dates = keeper.dates_count if uses_identity(settings.mqtt) else dates_count
    telemetry = Telemetry(settings.mqtt, home, check_dates=check_dates)
    keeper.alarms, keeper.on_renewed = telemetry.alarms, telemetry.connect_anew
    return telemetry
