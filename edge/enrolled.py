"""What an enrollment means for a node that starts: who it is, and how far its clock may judge its broker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge.effective import Effective
from edge.identity.identity import IdentityDamaged
from edge.identity.keeper import Keeper
from edge.identity.store import Store
from edge.identity.trial import try_broker, uses_identity
from edge.settings import Settings
from edge.telemetry.clock import SystemClock
from edge.telemetry.mqtt import dates_count
from edge.telemetry.node import Telemetry


def usable(effective: Effective, env: Mapping[str, str]) -> tuple[Effective, str]:
    """The settings to serve with, and why the enrollment is left out of them: empty where it is not.

    Files that somebody may have changed are used for nothing. A node that did not start over them would be worse than one that
    serves those beside it and says what is wrong: the keeper does, by an alarm. Raises ConfigurationError.
    """
    try:
        Store(effective.home).current()
    except IdentityDamaged as damaged:
        damage = damaged.message
    else:
        return effective, ""
    bare = effective.without_enrollment(env)
    if bare.settings.admission.mode == "fleet" and not (bare.settings.fleet.url or bare.settings.fleet.file):
        bare = bare.with_mode("auto")
    return bare, damage


def keeper_of(settings: Settings, home: Path, damage: str) -> Keeper:
    """Of who the node is to its fleet; `damage` as `usable` found it."""
    store, clock = Store(home), SystemClock(trusted=settings.mqtt.trust_clock)

    def prove(directory: Path) -> str:
        return try_broker(settings.mqtt, home, directory, keeper.dates_count)

    keeper = Keeper(store, clock, prove, damage=damage)
    return keeper


def telemetry_of(effective: Effective, keeper: Keeper) -> Telemetry | None:
    """None where nothing is told. With a damaged identity what happens is kept until that is mended, unless the operator himself
    has said where it goes, and under which name. Raises ConfigurationError."""
    mqtt, home = effective.settings.mqtt, effective.home
    keeps = bool(keeper.damage) and not effective.is_own("mqtt.url", "mqtt.group", "mqtt.node")
    if not mqtt.url and not keeps:
        return None
    # Only the CA that was pinned at enrollment lets a clock be wrong; one that somebody put there himself does not.
    check_dates = keeper.dates_count if uses_identity(mqtt) else dates_count
    telemetry = Telemetry(mqtt, home, check_dates=check_dates, sends=not keeps)
    keeper.alarms, keeper.on_renewed = telemetry.alarms, telemetry.connect_anew
    return telemetry
