"""What the bootstrap document means for the settings. Pure.

The settings are written beside the certificate they speak of, so that one pointer changes both; `edge.effective` puts them
between defaults and settings file.
"""

from __future__ import annotations

import tomllib
from urllib.parse import urlsplit

from pydantic import ValidationError

from edge.effective import ENROLLED_SETTINGS
from edge.errors import EnrollmentFailed
from edge.identity.wire import Bootstrap
from edge.settings import Settings, declared, holds_credentials, toml_value

CERTIFICATE, KEY, AUTHORITIES, COMMAND_KEYS = "cert.pem", "key.pem", "ca.pem", "command_keys.pem"
_NOTE = "# Written by `edge enroll` and at each renewal. What EDGE_HOME/edge.toml, the environment or a flag says comes first.\n"

Tables = dict[str, dict[str, str]]


def settings_of(bootstrap: Bootstrap) -> Tables:
    """Tables of the settings file. Raises EnrollmentFailed if a node could not start with them."""
    current = ENROLLED_SETTINGS.parent
    files = {name: str(current / file) for name, file in (("cert_file", CERTIFICATE), ("key_file", KEY))}
    tables: Tables = {}
    mqtt: dict[str, str] = {"node": bootstrap.node, "group": bootstrap.group}
    if bootstrap.mqtt is not None:
        mqtt |= {"url": bootstrap.mqtt.url, "prefix": bootstrap.mqtt.prefix}
        if bootstrap.mqtt.url.startswith("mqtts://"):
            mqtt |= {**files, "ca_file": str(current / AUTHORITIES)}
    if bootstrap.command_keys:
        mqtt["command_keys_file"] = str(current / COMMAND_KEYS)
    tables["mqtt"] = mqtt
    if bootstrap.fallback is not None:
        fleet = {"url": bootstrap.fallback.url, "model": bootstrap.fallback.model}
        if bootstrap.fallback.url.startswith("https://"):
            fleet |= files
            if bootstrap.fallback.ca == "fleet":
                fleet["ca_file"] = str(current / AUTHORITIES)
        tables["fleet"] = fleet
        _require_host(bootstrap.fallback.url)
    try:
        _validate(tables)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise EnrollmentFailed(f"what the fleet would have this node do cannot be done: {said}") from None
    return tables


def require_usable(text: str) -> None:
    """Of an identity's file. Settings of a later version are passed over. Raises ValueError if a node cannot start with it."""
    if not text:  # one that sets nothing says at least so
        raise ValueError("the settings are empty")
    known = {setting.key for setting in declared()}
    tables = tomllib.loads(text)
    _validate(
        {
            section: {name: value for name, value in table.items() if f"{section}.{name}" in known}
            for section, table in tables.items()
            if any(key.startswith(f"{section}.") for key in known)
        }
    )


def _validate(tables: Tables) -> None:
    """Raises ValidationError."""
    if holds_credentials(str(tables.get("fleet", {}).get("url", ""))):
        # Fleets once handed such addresses out. `edge.effective` passes them over and says so: no reason to have no certificate.
        tables = {section: table for section, table in tables.items() if section != "fleet"}
    Settings.model_validate(tables)


def _require_host(url: str) -> None:
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:
            return
    except ValueError:
        pass
    raise EnrollmentFailed("what the fleet would have this node do cannot be done: its fallback's address has no host")


def as_toml(tables: Tables) -> bytes:
    """The settings as a file."""
    lines = [_NOTE]
    for section, table in tables.items():
        lines.append(f"\n[{section}]\n")
        lines += [f"{name} = {toml_value(value)}\n" for name, value in table.items()]
    return "".join(lines).encode()
