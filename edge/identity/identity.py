"""Who a node is, as it is read from its files and written into them."""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from edge.errors import EnrollmentFailed, NotYet
from edge.identity import applied
from edge.identity.certificates import common_name, read_key, read_pem, spki
from edge.identity.moment import Life
from edge.identity.trust import Anchors, anchors_of
from edge.identity.wire import Bootstrap, Renewal
from edge.telemetry.commands import parse_public_keys

SCHEMA = 1
ABOUT, BOOTSTRAP, SETTINGS = "identity.json", "bootstrap.json", "settings.toml"
_FOR_OTHERS = 0o077


class IdentityDamaged(NotYet):
    """The identity's files are not as this software leaves them. A node serves without it until that is mended."""

    code = "identity_damaged"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is. `chain`: its certificate and what leads to a root."""

    directory: Path
    chain: tuple[x509.Certificate, ...]
    anchors: Anchors
    fleet_url: str
    how: Literal["enrolled", "renewed"]
    token_id: str
    """Of the token that it was enrolled with."""
    bootstrap: Bootstrap | None

    @property
    def certificate(self) -> x509.Certificate:
        """Its own."""
        return self.chain[0]

    @property
    def node(self) -> str:
        """The fleet's name for it."""
        return common_name(self.certificate)

    @property
    def generation(self) -> int:
        """Counts from 1, with every certificate."""
        return int(self.directory.name)

    @property
    def renewal(self) -> Renewal:
        """When the fleet wants it renewed."""
        return self.bootstrap.renewal if self.bootstrap is not None else Renewal()

    @property
    def life(self) -> Life:
        """Of its certificate. The jitter comes from the certificate itself, and so outlives restarts."""
        certificate = self.certificate
        jitter = (certificate.serial_number % 997) / 997
        begins_s, ends_s = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        return Life(begins_s, ends_s, self.renewal.at_share, jitter)


@dataclass(frozen=True, slots=True)
class Request:
    """What a generation in the making is for. No secret is in it."""

    fleet_url: str
    root_sha256: str
    """Of the token; empty for a renewal."""
    token_id: str
    label: str


@dataclass(frozen=True, slots=True)
class LastTry:
    """How the last try to renew went. `reason` is empty if it went well."""

    at_s: float
    failures: int
    reason: str


def read_identity(directory: Path) -> Identity:
    """A whole generation, in force or in the making. Raises IdentityDamaged, also where others can read the key."""
    try:
        return _read(directory)
    except FileNotFoundError as error:
        what = f"{error.filename} is missing"
    except OSError as error:
        what = f"{error.filename} cannot be read: {error.strerror}"
    except IdentityDamaged:
        raise
    except Exception as error:  # what reads keys and certificates raises more kinds than it tells
        what = f"a file in {directory} makes no sense ({str(error)[:120]})"
    raise IdentityDamaged(f"this node's identity is damaged: {what}; enroll anew: edge enroll --force")


def _read(directory: Path) -> Identity:
    key = read_private(directory)
    about = json.loads((directory / ABOUT).read_bytes())
    if about["schema"] > SCHEMA:
        raise IdentityDamaged(
            f"{directory} was written by a newer version of edge (schema {about['schema']}); run that, or enroll anew"
        )
    chain = read_pem((directory / applied.CERTIFICATE).read_bytes())
    if spki(chain[0]) != spki(key):
        raise ValueError("certificate and key do not belong together")
    anchors = anchors_of(read_pem((directory / applied.AUTHORITIES).read_bytes()))
    applied.require_usable((directory / SETTINGS).read_text("utf-8"))
    path = directory / BOOTSTRAP
    bootstrap = Bootstrap.model_validate_json(path.read_bytes()) if path.exists() else None
    if bootstrap is not None and bootstrap.command_keys:
        parse_public_keys((directory / applied.COMMAND_KEYS).read_bytes())
    found = Identity(directory, tuple(chain), anchors, about["fleet_url"], about["how"], about["token_id"], bootstrap)
    _ = found.node, found.life  # what the certificate says is read when it is asked for
    return found


def read_private(directory: Path) -> ec.EllipticCurvePrivateKey:
    """The key of a generation. Raises IdentityDamaged if anybody else may read it, OSError, ValueError."""
    for path in (directory, directory / applied.KEY):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & _FOR_OTHERS:
            raise IdentityDamaged(
                f"{path} has mode {mode:04o}: others may have read this node's key; chmod go= {path}, and if that can have "
                "happened: edge identity renew, twice (the second renewal, by the new key, shuts the old one out)"
            )
    return read_key((directory / applied.KEY).read_bytes())


def read_bootstrap(data: bytes) -> Bootstrap:
    """Of the fleet's answer. Raises EnrollmentFailed."""
    try:
        found = Bootstrap.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise EnrollmentFailed(f"the fleet's bootstrap makes no sense: {where or 'it'}: {first['msg']}") from None
    try:
        if found.command_keys:
            parse_public_keys(joined(found.command_keys))
    except (ValueError, UnsupportedAlgorithm):
        raise EnrollmentFailed(
            "the fleet's bootstrap makes no sense: command_keys: they must be Ed25519 keys in PEM"
        ) from None
    return found


def joined(command_keys: tuple[str, ...]) -> bytes:
    """As they are kept in one file."""
    return "".join(f"{key.strip()}\n" for key in command_keys).encode()
