"""Certificates of the fleet's own servers and clients: made at the start, and anew before they end or the authority changes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.control.authority import Authority, is_due
from edge.control.enforcement import COMMANDER, SINK, write_broker_trust
from edge.control.files import PRIVATE, write_file, write_if_changed
from edge.control.settings import FleetHome, FleetSettings
from edge.control.x509 import common_name, issue_client, issue_server, key_pem, new_key, pem


@dataclass(frozen=True, slots=True)
class Renewed:
    """What was made anew."""

    names: tuple[str, ...]
    broker: bool
    """Files of the broker changed."""


def renew_credentials(home: FleetHome, settings: FleetSettings, authority: Authority, now: datetime) -> Renewed:
    """Make what is missing, nearly over, for other names than the settings say, or signed by somebody who no longer counts or
    signs. Raises ConfigurationError."""
    made = []
    for name in ("server", SINK, COMMANDER):
        if not _good(home, settings, authority, name, now):
            _make(home, settings, authority, name, now)
            made.append(name)
    write_if_changed(home.tls / "ca.pem", authority.anchors)
    server, key = (home.tls / "server.pem").read_bytes(), (home.tls / "server.key").read_bytes()
    return Renewed(tuple(made), write_broker_trust(home, authority, server, key))


def _good(home: FleetHome, settings: FleetSettings, authority: Authority, name: str, now: datetime) -> bool:
    try:
        chain = x509.load_pem_x509_certificates((home.tls / f"{name}.pem").read_bytes())
        key = serialization.load_pem_private_key((home.tls / f"{name}.key").read_bytes(), password=None)
    except (OSError, ValueError, TypeError):
        return False
    ours, rest = chain[0], tuple(chain[1:])
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != ours.public_key():
        return False
    if rest != authority.chain or not authority.signed(ours) or is_due(ours, now):
        return False
    if authority.believes(now) and now < ours.not_valid_before_utc:  # the clock was ahead then
        return False
    return _names(ours) == (set(settings.hosts) if name == "server" else {name})


def _names(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    return found | set(names.get_values_for_type(x509.DNSName)) or {common_name(certificate.subject)}


def _make(home: FleetHome, settings: FleetSettings, authority: Authority, name: str, now: datetime) -> None:
    """The key last: a pair that was cut off in the middle does not fit, and is made again."""
    authority.require_clock(now)
    key, issuer = new_key(), authority.issuer
    if name == "server":
        made = issue_server(issuer, key.public_key(), settings.hosts, now)
    else:
        made = issue_client(issuer, key.public_key(), name, now)
    write_file(home.tls / f"{name}.pem", pem(made, *authority.chain))
    write_file(home.tls / f"{name}.key", key_pem(key), PRIVATE)
