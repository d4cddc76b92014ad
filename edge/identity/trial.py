"""Whether the broker lets a certificate in: a connection beside the node's own, under another client name."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edge.effective import ENROLLED_SETTINGS
from edge.identity import applied
from edge.identity.identity import read_identity
from edge.identity.store import Store
from edge.settings import Mqtt
from edge.telemetry.mqtt import Connection, ConnectionFailed, Handlers
from edge.telemetry.node import place_of


def uses_identity(mqtt: Mqtt) -> bool:
    """Whether the node speaks to a broker with the certificate that it was enrolled with."""
    return bool(mqtt.url) and mqtt.cert_file == ENROLLED_SETTINGS.parent / applied.CERTIFICATE


def try_broker(mqtt: Mqtt, home: Path, directory: Path, check_dates: Callable[[], bool]) -> str:
    """Connect with the certificate in `directory`, and leave. What was wrong, empty if nothing, or if no broker asks for it."""
    if not uses_identity(mqtt):
        return ""
    url = _broker_of(mqtt, home, directory)
    if not url:
        return ""
    own = place_of(mqtt, home).config.address
    address = replace(
        own,
        url=url,
        client_id=f"{own.client_id}-trial-{secrets.token_hex(4)}",
        ca_file=directory / applied.AUTHORITIES,
        cert_file=directory / applied.CERTIFICATE,
        key_file=directory / applied.KEY,
        check_dates=check_dates,
    )
    connection = Connection(address, Handlers())
    try:
        connection.open()
    except ConnectionFailed as failure:
        connection.abandon()
        # In TLS 1.3 a certificate that is not taken looks like this.
        hint = (
            "" if failure.tls or failure.code else "; if it is there, its log says why it does not take the certificate"
        )
        return f"{failure.reason}{hint}"
    connection.close()
    return ""


def _broker_of(mqtt: Mqtt, home: Path, directory: Path) -> str:
    """Where this certificate is meant for: the fleet may have moved its broker, and the old one may be gone by now."""
    there = Store(home).current()
    if there is None or there.bootstrap is None or there.bootstrap.mqtt is None or there.bootstrap.mqtt.url != mqtt.url:
        return mqtt.url  # set by hand
    bootstrap = read_identity(directory).bootstrap
    return bootstrap.mqtt.url if bootstrap is not None and bootstrap.mqtt is not None else ""
