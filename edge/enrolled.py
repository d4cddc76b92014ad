"""What an enrollment means for a node that starts: who it is, and how far its clock may judge its broker."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge.effective import ENROLLED_SETTINGS, Effective
from edge.errors import EdgeError, NotYet
from edge.fleet.upstreams import read_upstreams
from edge.identity.identity import IdentityDamaged
from edge.identity.keeper import Keeper
from edge.identity.store import Store
from edge.identity.trial import try_broker, uses_identity
from edge.settings import Fleet, Mqtt, Settings
from edge.telemetry.clock import SystemClock
from edge.telemetry.mqtt import dates_count
from edge.telemetry.node import Telemetry


@dataclass(frozen=True, slots=True)
class Standing:
    """What a node may serve with. With a damaged identity nothing in `effective` comes from the enrollment, or uses its files."""

    effective: Effective
    damage: str = ""
    """What is wrong with the identity, and the cure; empty: nothing."""
    keeps: bool = False
    """What it tells is kept until the damage is mended: under another name it would be another node."""


def begun(effective: Effective, env: Mapping[str, str]) -> Standing:
    """Of a node that starts. What a crash or a copy left half done of an enrollment is put right first, as far as that can be.
    Raises ConfigurationError."""
    with contextlib.suppress(EdgeError, OSError):
        Store(effective.home).recover()
    return standing_of(effective.anew(env), env)


def standing_of(effective: Effective, env: Mapping[str, str]) -> Standing:
    """What of these settings may be used.

    Files that somebody may have changed are used for nothing. A node that did not start over them would be worse than one that
    serves those beside it and says what is wrong: the keeper does, by an alarm. Raises ConfigurationError.
    """
    try:
        Store(effective.home).current()
    except IdentityDamaged as damaged:
        damage = damaged.message
    else:
        return Standing(effective)
    bare, home = effective.without_enrollment(env), effective.home
    mqtt, fleet, admission = bare.settings.mqtt, bare.settings.fleet, bare.settings.admission
    off = bare.is_own("mqtt.url") and not mqtt.url
    if _is_enrollments(home, mqtt.cert_file, mqtt.key_file, mqtt.ca_file, mqtt.command_keys_file):
        none = {"url": "", "cert_file": None, "key_file": None, "ca_file": None, "command_keys_file": None}
        mqtt = mqtt.model_copy(update=none)
    if _leans_on_it(fleet, home):
        fleet = Fleet()
    if admission.mode == "fleet" and not (fleet.url or fleet.file):
        admission = admission.model_copy(update={"mode": "auto"})
    settings = bare.settings.model_copy(update={"mqtt": mqtt, "fleet": fleet, "admission": admission})
    keeps = not off and not (mqtt.url and bare.is_own("mqtt.group", "mqtt.node"))
    return Standing(replace(bare, settings=settings), damage, keeps)


def _is_enrollments(home: Path, *files: Path | None) -> bool:
    return any(file is not None and (home / file).is_relative_to(home / ENROLLED_SETTINGS.parts[0]) for file in files)


def _leans_on_it(fleet: Fleet, home: Path) -> bool:
    """Whether an upstream of the operator's own is met with the enrollment's files. Raises ConfigurationError."""
    try:
        upstreams = read_upstreams(fleet, home)
    except NotYet:  # a file is lost: most likely one of these
        return True
    return any(_is_enrollments(home, one.cert_file, one.key_file, one.ca_file) for one in upstreams)


def keeper_of(settings: Settings, home: Path, damage: str) -> Keeper:
    """Of who the node is to its fleet; `damage` as in its `Standing`."""
    store, clock = Store(home), SystemClock(trusted=settings.mqtt.trust_clock)

    def prove(directory: Path) -> str:
        return try_broker(settings.mqtt, home, directory, keeper.dates_count)

    keeper = Keeper(store, clock, prove, damage=damage)
    return keeper


def telemetry_of(standing: Standing, keeper: Keeper) -> Telemetry | None:
    """None where nothing is told. Raises ConfigurationError."""
    mqtt: Mqtt = standing.effective.settings.mqtt
    if not mqtt.url and not standing.keeps:
        return None
    # Only the CA that was pinned at enrollment lets a clock be wrong; one that somebody put there himself does not.
    check_dates = keeper.dates_count if uses_identity(mqtt) else dates_count
    telemetry = Telemetry(mqtt, standing.effective.home, check_dates=check_dates, sends=not standing.keeps)
    keeper.alarms, keeper.on_renewed = telemetry.alarms, telemetry.connect_anew
    return telemetry
