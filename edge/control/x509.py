"""Certificates, made. Pure but for the random numbers of keys and serials.

Profiles after RFC 5280; P-256 and SHA-256 throughout. A node's name is given by the fleet, never taken from its request.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.errors import ConfigurationError

ROOT_LIFE, ISSUING_LIFE, SERVER_LIFE = timedelta(days=20 * 365), timedelta(days=5 * 365), timedelta(days=397)
BACK = timedelta(hours=1)
"""Certificates begin this long before they are made: clocks differ."""
_RSA_BITS = range(2048, 4097)
_RSA_EXPONENT_BITS = 32
"""To check a signature takes as long as its key's exponent is, and anybody may send one: 65537 is the usual."""
CRL_LIFE = timedelta(days=30)
"""As long as a node's certificate: a fleet whose server is down for longer has lost its nodes anyway."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate and the key that signs for it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    """P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def now_utc() -> datetime:
    """Whole seconds, as certificates have them."""
    return datetime.now(UTC).replace(microsecond=0)


def make_root(fleet: str, generation: int, now: datetime) -> Issuer:
    """A self-signed root."""
    key, name = new_key(), _name(f"{fleet} root {generation}")
    made = _ca_certificate(name, key.public_key(), name, key, key.public_key(), (now, now + ROOT_LIFE), path_length=2)
    return Issuer(made, key)


def make_issuing(fleet: str, generation: int, root: Issuer, now: datetime) -> Issuer:
    """An issuing authority under a root."""
    key = new_key()
    end = min(now + ISSUING_LIFE, root.certificate.not_valid_after_utc)
    subject, issuer = _name(f"{fleet} issuing {generation}"), root.certificate.subject
    made = _ca_certificate(
        subject, key.public_key(), issuer, root.key, root.key.public_key(), (now, end), path_length=0
    )
    return Issuer(made, key)


def cross_sign(subject: x509.Certificate, issuer: Issuer, now: datetime) -> x509.Certificate:
    """One root's key vouched for by another root: OldWithNew and NewWithOld of RFC 4210, section 4.4."""
    public = subject.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    end = min(subject.not_valid_after_utc, issuer.certificate.not_valid_after_utc)
    return _ca_certificate(
        subject.subject,
        public,
        issuer.certificate.subject,
        issuer.key,
        issuer.key.public_key(),
        (now, end),
        path_length=1,
    )


def issue_node(
    issuer: Issuer, public_key: CertificatePublicKeyTypes, fleet: str, node: str, now: datetime, life: timedelta
) -> x509.Certificate:
    """A node's certificate: for clients only, valid no longer than who issues it. Raises ConfigurationError if that has ended."""
    uri = x509.UniformResourceIdentifier(f"spiffe://{fleet}/node/{node}")
    return _leaf(issuer, public_key, node, [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now, life)


def issue_client(issuer: Issuer, public_key: CertificatePublicKeyTypes, name: str, now: datetime) -> x509.Certificate:
    """For one of the fleet's own programs; `name` is none that a node can get."""
    return _leaf(issuer, public_key, name, [x509.DNSName(name)], ExtendedKeyUsageOID.CLIENT_AUTH, now, SERVER_LIFE)


def issue_server(
    issuer: Issuer, public_key: CertificatePublicKeyTypes, hosts: Sequence[str], now: datetime
) -> x509.Certificate:
    """For a server that is reached by these names and addresses."""
    names = [_host(host) for host in hosts]
    return _leaf(issuer, public_key, hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, now, SERVER_LIFE)


def make_crl(
    issuer: Issuer, revoked: Iterable[tuple[int, datetime]], begin: datetime, end: datetime
) -> x509.CertificateRevocationList:
    """Of (serial, when). It may outlast its issuer: one that has ended is still looked up in the lists of all."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.certificate.subject)
    builder = builder.last_update(begin).next_update(end)
    builder = builder.add_extension(x509.CRLNumber(int(begin.timestamp())), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
    )
    for serial, when in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256())


class RequestRefused(Exception):
    """A certificate request that is none, or not one that is signed here. `text` says why."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def read_request(der: bytes) -> x509.CertificateSigningRequest:
    """PKCS #10, its signature checked: whoever sent it has the key. Raises RequestRefused."""
    try:
        request = x509.load_der_x509_csr(der)
        public = request.public_key()
        good = _wanted(public)
        holds = good and request.is_signature_valid
        common_name(request.subject)  # raises for what is no text
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise RequestRefused("that is no PKCS #10 certificate request") from None
    if not good:
        raise RequestRefused(
            "keys are P-256 (the usual), P-384, Ed25519, or RSA of 2048 to 4096 bits with a small exponent"
        )
    if not holds:
        raise RequestRefused("the request is not signed by the key that it is for")
    return request


def _wanted(public: CertificatePublicKeyTypes) -> bool:
    """Whether certificates are made for such keys."""
    if isinstance(public, rsa.RSAPublicKey):
        return public.key_size in _RSA_BITS and public.public_numbers().e.bit_length() <= _RSA_EXPONENT_BITS
    if isinstance(public, ec.EllipticCurvePublicKey):
        return isinstance(public.curve, ec.SECP256R1 | ec.SECP384R1)
    return isinstance(public, ed25519.Ed25519PublicKey)


def key_hash(public: CertificatePublicKeyTypes) -> str:
    """SHA-256 of SubjectPublicKeyInfo, in hex: what a token and a node are bound to."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex()


def common_name(name: x509.Name) -> str:
    """The first, or nothing."""
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def pem(*certificates: x509.Certificate) -> bytes:
    """One after the other."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS #8, without passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _leaf(
    issuer: Issuer,
    public_key: CertificatePublicKeyTypes,
    name: str,
    names: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    now: datetime,
    life: timedelta,
) -> x509.Certificate:
    end = min(now + life, issuer.certificate.not_valid_after_utc)
    if end <= now:
        raise ConfigurationError(
            f"the issuing authority ended on {end:%Y-%m-%d} and signs nothing any more: `edge fleet ca new-issuing` makes another"
        )
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name[:64]))
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACK)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def _ca_certificate(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_name: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer_public: ec.EllipticCurvePublicKey,
    between: tuple[datetime, datetime],
    *,
    path_length: int,
) -> x509.Certificate:
    begin, end = between
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - BACK)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=signs, crl_sign=signs, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
