"""Keys, certificate requests and certificates, as bytes. Everything that comes from outside may be nonsense: ValueError."""

from __future__ import annotations

import base64
import binascii
import hashlib
import warnings
from collections.abc import Callable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from edge.printable import printable

_MOST_CERTIFICATES = 32
_MOST_RSA_BITS, _RSA_EXPONENT_BITS = 8192, 32
_LONGEST_LABEL_BYTES = 64
"""The bound of a common name (X.520 ub-common-name); cryptography counts it in UTF-8."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """P-256: every TLS stack knows it, and a handshake costs a small board little."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS8, without a passphrase: a node starts with nobody there to type one."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """Of what `key_pem` made. Raises ValueError."""
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise ValueError("the key has a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("it is no key on an elliptic curve")
    return key


def spki(key: ec.EllipticCurvePrivateKey | x509.Certificate) -> bytes:
    """DER of the public half: two things belong to one key if these are equal."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def sha256(certificate: x509.Certificate) -> str:
    """Of the DER bytes, hexadecimal, lower case: what a token pins."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def request_der(key: ec.EllipticCurvePrivateKey, label: str) -> bytes:
    """PKCS10 (RFC 2986). The fleet gives the name; the label is only what people shall see."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _cut(label) or "node")])
    built = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return built.public_bytes(serialization.Encoding.DER)


def _cut(label: str) -> str:
    text = printable(label).strip()
    return text.encode("utf-8", "ignore")[:_LONGEST_LABEL_BYTES].decode("utf-8", "ignore")


def est_body(der: bytes) -> bytes:
    """As EST carries it: base64 in one line (RFC 8951 section 3.1)."""
    return base64.b64encode(der)


def read_certs_only(body: bytes) -> list[x509.Certificate]:
    """The certificates of an EST answer: PKCS7 certs-only in base64, wrapped or not, also between PEM lines. Raises
    ValueError."""
    lines = [line for line in body.split() if line]
    text = b"".join(lines)
    if text.startswith(b"-----BEGIN"):
        text = b"".join(line for line in body.splitlines() if not line.startswith(b"-----"))
        text = b"".join(text.split())
    try:
        der = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("it is not base64") from None
    with warnings.catch_warnings():
        # CMS is BER; openssl and others do not sort the set of certificates as DER wants it, and that is said each time.
        warnings.simplefilter("ignore", UserWarning)
        return _sound(_parsed(pkcs7.load_der_pkcs7_certificates, der))


def read_pem(data: bytes) -> list[x509.Certificate]:
    """One or more certificates. Raises ValueError."""
    return _sound(_parsed(x509.load_pem_x509_certificates, data))


def pem(certificates: list[x509.Certificate] | tuple[x509.Certificate, ...]) -> bytes:
    """One after the other."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)


def common_name(certificate: x509.Certificate) -> str:
    """Empty if there is none, or more than one."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def _parsed(parse: Callable[[bytes], list[x509.Certificate]], data: bytes) -> list[x509.Certificate]:
    try:
        return parse(data)
    except (UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from None


def _require_quick(key: object) -> None:
    """Signatures are checked before anybody is trusted, by the node that serves meanwhile, and each with each: some RSA keys make
    minutes of that. Raises ValueError."""
    if isinstance(key, rsa.RSAPublicKey) and (
        key.key_size > _MOST_RSA_BITS or key.public_numbers().e.bit_length() > _RSA_EXPONENT_BITS
    ):
        raise ValueError("a certificate in it has a key that takes long to check")


def _sound(found: list[x509.Certificate]) -> list[x509.Certificate]:
    """Each one is read through here, so that nothing can be malformed later."""
    if not 0 < len(found) <= _MOST_CERTIFICATES:
        raise ValueError(f"it has {len(found)} certificates")
    try:
        for one in found:
            _ = (
                one.subject,
                one.issuer,
                one.extensions,
                one.public_key(),
                one.not_valid_before_utc,
                one.not_valid_after_utc,
            )
            _require_quick(one.public_key())
    except (
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        x509.InvalidVersion,
    ) as error:
        raise ValueError(f"a certificate in it is of no kind that is known here: {error}") from None
    return found
