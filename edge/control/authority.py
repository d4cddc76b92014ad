"""The certificate authority in files: an offline root, an issuing authority, and both of each while one takes over.

`ca/state.json` is what counts; it is written last, so a change that was cut off has not happened. Layout:

    ca/root-N.pem  root-N.key (may be moved away)  root-N.crl
    ca/issuing-N.pem  issuing-N.key
    ca/new-with-old-N.pem  old-with-new-N.pem   N: the new root's number
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edge.control.files import PRIVATE, read_file, write_file
from edge.control.settings import FleetHome
from edge.control.x509 import (
    Issuer,
    cross_sign,
    key_pem,
    make_crl,
    make_issuing,
    make_root,
    pem,
)
from edge.errors import ConfigurationError


class CaState(msgspec.Struct, frozen=True):
    """Generations that count, oldest first; the last of each is the current one."""

    roots: tuple[int, ...]
    issuing: tuple[int, ...]
    root_of: dict[str, int]
    """Which root signed an issuing authority."""
    next: int
    """Number of the next generation."""


@dataclass(frozen=True, slots=True)
class Authority:
    """All certificates that count, and the key that signs nodes' certificates."""

    state: CaState
    roots: tuple[x509.Certificate, ...]
    issuing: tuple[x509.Certificate, ...]
    crossed: tuple[x509.Certificate, ...]
    """OldWithNew and NewWithOld, while there are two roots."""
    bridge: x509.Certificate | None
    """The current issuing authority's root as the one before vouches for it: lets nodes that know only that one go on."""
    issuers: tuple[Issuer, ...]
    """Issuing authorities whose keys are here, oldest first."""
    root_crls: tuple[bytes, ...]

    @property
    def issuer(self) -> Issuer:
        """Who signs now."""
        return self.issuers[-1]

    @property
    def pin(self) -> str:
        """What new tokens pin: SHA-256 of the DER of the current issuing authority's root."""
        return self.current_root.fingerprint(hashes.SHA256()).hex()

    @property
    def current_root(self) -> x509.Certificate:
        """The one above the current issuing authority."""
        return self.roots[self.state.roots.index(self.state.root_of[str(self.state.issuing[-1])])]

    @property
    def anchors(self) -> bytes:
        """PEM of all that is trusted: roots, and issuing authorities for peers that send a bare certificate."""
        return pem(*self.roots, *self.issuing)

    @property
    def published(self) -> list[x509.Certificate]:
        """What /cacerts says."""
        return [*reversed(self.issuing), *reversed(self.roots), *self.crossed]

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What a server sends beside its own certificate."""
        return (self.issuer.certificate, *(() if self.bridge is None else (self.bridge,)))

    def believes(self, now: datetime) -> bool:
        """Whether the clock can be right: it is not before who signs was made, as it is on a machine that starts in 1970."""
        return now >= self.issuer.certificate.not_valid_before_utc

    def require_clock(self, now: datetime) -> None:
        """Before anything is signed, which would be over at once. Raises ConfigurationError."""
        if not self.believes(now):
            raise ConfigurationError(
                f"the clock says {now:%Y-%m-%d %H:%M} UTC, which is before the authority was made: set the clock"
            )

    def signed(self, certificate: x509.Certificate) -> bool:
        """Whether one of the issuing authorities that count made it."""
        for authority in self.issuing:
            try:
                certificate.verify_directly_issued_by(authority)
            except (ValueError, TypeError, InvalidSignature):
                continue
            return True
        return False


def create_authority(home: FleetHome, fleet: str, now: datetime) -> None:
    """A root and an issuing authority. Raises ConfigurationError."""
    root = make_root(fleet, 1, now)
    _write_root(home, 1, root)
    _write_issuing(home, 1, make_issuing(fleet, 1, root, now))
    _write_state(home, CaState(roots=(1,), issuing=(1,), root_of={"1": 1}, next=2))


def load_authority(home: FleetHome) -> Authority:
    """Raises ConfigurationError with the file at fault."""
    state = read_state(home)
    roots = tuple(_certificate(home.ca / f"root-{n}.pem") for n in state.roots)
    issuing = tuple(_certificate(home.ca / f"issuing-{n}.pem") for n in state.issuing)
    issuers = tuple(
        Issuer(certificate, _key(home.ca / f"issuing-{n}.key", certificate))
        for n, certificate in zip(state.issuing, issuing, strict=True)
    )
    above = state.root_of[str(state.issuing[-1])]
    crossed = tuple(_certificate(path) for n in state.roots for path in _crossings(home, n) if n != state.roots[0])
    bridge = _certificate(home.ca / f"new-with-old-{above}.pem") if above != state.roots[0] else None
    crls = tuple(read_file(home.ca / f"root-{n}.crl", "the root's revocation list") for n in state.roots)
    return Authority(state, roots, issuing, crossed, bridge, issuers, crls)


def read_state(home: FleetHome) -> CaState:
    """Raises ConfigurationError."""
    path = home.ca / "state.json"
    try:
        return msgspec.json.decode(read_file(path, "the authority's state"), type=CaState)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); restore the directory from a back-up") from None


# --- taking over ------------------------------------------------------------------------------------------------------


def add_root(home: FleetHome, fleet: str, now: datetime, old_key: Path | None = None) -> int:
    """A second root, and each vouching for the other. Nodes learn of it when they renew. Raises ConfigurationError."""
    state = read_state(home)
    if len(state.roots) > 1:
        raise ConfigurationError("there are two roots already; finish with `edge fleet ca retire` first")
    number = state.next
    old = _root(home, state.roots[-1], old_key)
    new = make_root(fleet, number, now)
    _write_root(home, number, new)
    with_old, with_new = _crossings(home, number)
    write_file(with_old, pem(cross_sign(new.certificate, old, now)))
    write_file(with_new, pem(cross_sign(old.certificate, new, now)))
    _write_state(home, msgspec.structs.replace(state, roots=(*state.roots, number), next=number + 1))
    return number


def add_issuing(home: FleetHome, fleet: str, now: datetime, root_key: Path | None = None) -> int:
    """A new issuing authority under the newest root. It signs from now on; the one before stays trusted."""
    state = read_state(home)
    if len(state.issuing) > 1:
        raise ConfigurationError("there are two issuing authorities already; finish with `edge fleet ca retire` first")
    number, root = state.next, state.roots[-1]
    _write_issuing(home, number, make_issuing(fleet, number, _root(home, root, root_key), now))
    state = msgspec.structs.replace(
        state, issuing=(*state.issuing, number), root_of={**state.root_of, str(number): root}, next=number + 1
    )
    _write_state(home, state)
    return number


def retire_old(home: FleetHome) -> list[str]:
    """Trust only the current issuing authority and its root from now on. Returns what is trusted no longer."""
    state = read_state(home)
    current = state.issuing[-1]
    root = state.root_of[str(current)]
    gone = [f"root {n}" for n in state.roots if n < root] + [f"issuing {n}" for n in state.issuing if n != current]
    if not gone:
        raise ConfigurationError("there is nothing to retire: one issuing authority under one root is all there is")
    kept = tuple(n for n in state.roots if n >= root)
    _write_state(home, replace_state(state, kept, (current,)))
    return gone


def replace_state(state: CaState, roots: tuple[int, ...], issuing: tuple[int, ...]) -> CaState:
    """With only these."""
    root_of = {str(n): state.root_of[str(n)] for n in issuing}
    return msgspec.structs.replace(state, roots=roots, issuing=issuing, root_of=root_of)


def is_due(certificate: x509.Certificate, now: datetime, share: float = 2 / 3) -> bool:
    """Whether it should be made anew."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begin + (end - begin) * share


# --- files ------------------------------------------------------------------------------------------------------------


def _write_root(home: FleetHome, number: int, root: Issuer) -> None:
    write_file(home.ca / f"root-{number}.key", key_pem(root.key), PRIVATE)
    write_file(home.ca / f"root-{number}.pem", pem(root.certificate))
    # As long-lived as the root: it is made where the root's key is, and that is away most of the time.
    begin, end = root.certificate.not_valid_before_utc, root.certificate.not_valid_after_utc
    crl = make_crl(root, (), begin, end)
    write_file(home.ca / f"root-{number}.crl", crl.public_bytes(serialization.Encoding.PEM))


def _write_issuing(home: FleetHome, number: int, issuing: Issuer) -> None:
    write_file(home.ca / f"issuing-{number}.key", key_pem(issuing.key), PRIVATE)
    write_file(home.ca / f"issuing-{number}.pem", pem(issuing.certificate))


def _write_state(home: FleetHome, state: CaState) -> None:
    write_file(home.ca / "state.json", msgspec.json.format(msgspec.json.encode(state)) + b"\n")


def _crossings(home: FleetHome, number: int) -> tuple[Path, Path]:
    return home.ca / f"new-with-old-{number}.pem", home.ca / f"old-with-new-{number}.pem"


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(path, "the certificate"))
    except ValueError as error:
        raise ConfigurationError(f"{path} is no certificate in PEM: {error}") from None


def _root(home: FleetHome, number: int, given: Path | None) -> Issuer:
    path = given or home.ca / f"root-{number}.key"
    if not path.exists():
        raise ConfigurationError(
            f"this needs the key of root {number}, and {path} is not there; give it with --root-key FILE"
        )
    certificate = _certificate(home.ca / f"root-{number}.pem")
    return Issuer(certificate, _key(path, certificate))


def _key(path: Path, certificate: x509.Certificate) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_file(path, "the key"), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"{path} is no private key in PEM without passphrase: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError(f"{path} does not belong to the certificate of {certificate.subject.rfc4514_string()}")
    return key
