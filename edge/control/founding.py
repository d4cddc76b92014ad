"""`edge fleet init`: a new fleet's directory, with everything in it that a fleet needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edge.api.auth import KeyStore
from edge.control.audit import note
from edge.control.authority import create_authority, load_authority
from edge.control.credentials import renew_credentials
from edge.control.database import migrated
from edge.control.enforcement import broker_config, enforce
from edge.control.files import PRIVATE, close_directory, write_file
from edge.control.settings import FleetHome, FleetSettings, parse_settings
from edge.control.x509 import now_utc
from edge.errors import ConfigurationError
from edge.telemetry.commands import new_key_pair

_FLEET_TOML = """\
# The fleet's settings; docs/fleet.md lists all that there are. Restart `edge fleet serve` after a change.
name = {name}
hosts = {hosts}

[est]
port = {est_port}

[admin]
port = {admin_port}

[broker]
url = {url}
port = {broker_port}

[nodes]
certificate_days = 30
grace_days = 30
"""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new fleet is to be like."""

    name: str
    hosts: tuple[str, ...]
    est_port: int = 8443
    admin_port: int = 8444
    broker_port: int = 8883


@dataclass(frozen=True, slots=True)
class Founded:
    """What there is now."""

    home: FleetHome
    settings: FleetSettings
    pin: str
    admin_key: str
    """The only time that it can be seen."""


def found_fleet(root: Path, wish: Wish, actor: str) -> Founded:
    """Raises ConfigurationError, also if a fleet is there already. fleet.toml is written last."""
    home = FleetHome(root.absolute())
    if home.settings_file.exists():
        raise ConfigurationError(f"{root} holds a fleet already; choose another directory")
    if (home.ca / "state.json").exists():
        raise ConfigurationError(
            f"{root} holds a fleet without its fleet.toml, or one that was not finished: restore fleet.toml from a back-up, "
            "or remove the directory if nothing was enrolled with it"
        )
    toml = _toml(wish)
    settings = parse_settings(toml, "")
    for ours in (home.root, home.ca, home.tls, home.broker, home.gateway, home.commands.parent):
        _directory(ours)
    now = now_utc()
    create_authority(home, wish.name, now)
    authority = load_authority(home)
    renew_credentials(home, settings, authority, now)
    private, public = new_key_pair()
    write_file(home.commands, private, PRIVATE)
    write_file(Path(f"{home.commands}.pub"), public)
    write_file(home.broker / "mosquitto.conf", broker_config(home.broker, settings.broker.port).encode())
    database = migrated(home.database, new=True)
    with database.write() as session:
        note(session, now.timestamp(), actor, "fleet_founded", wish.name, f"root {authority.pin}")
    enforce(home, settings, authority, database, set())
    database.close()
    key = KeyStore(home.admin_keys).create(
        "first", scopes=("admin",), requests_per_minute=None,
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )  # fmt: skip
    write_file(home.settings_file, toml.encode())
    return Founded(home, settings, authority.pin, key)


def _directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made: {error.strerror}; choose another directory") from None
    if not path.is_dir():
        raise ConfigurationError(f"{path} is no directory; choose another")
    close_directory(path)


def _toml(wish: Wish) -> str:
    host = f"[{wish.hosts[0]}]" if ":" in wish.hosts[0] else wish.hosts[0]
    return _FLEET_TOML.format(
        name=json.dumps(wish.name), hosts=json.dumps(list(wish.hosts)), est_port=wish.est_port, admin_port=wish.admin_port,
        url=json.dumps(f"mqtts://{host}:{wish.broker_port}"), broker_port=wish.broker_port,
    )  # fmt: skip
