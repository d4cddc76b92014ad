"""A fleet's CA for trials: a root, an issuing CA, a second root that takes over, and certificates with any dates."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Signer:
    """A CA certificate with its key."""

    certificate: x509.Certificate
    key: Key


def now() -> datetime:
    """This machine's time, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def certify(
    subject: str,
    public_key: ec.EllipticCurvePublicKey,
    signer: Signer | None,
    key: Key | None = None,
    *,
    authority: bool = False,
    path_length: int | None = None,
    begins: datetime | None = None,
    days: float = 30,
    names: tuple[str, ...] = (),
    uri: str = "",
    usage: x509.ObjectIdentifier | None = None,
) -> x509.Certificate:
    """Signed by `signer`, or by `key` itself."""
    begins = begins or now() - timedelta(minutes=5)
    built = (
        x509.CertificateBuilder()
        .subject_name(_named(subject))
        .issuer_name(signer.certificate.subject if signer else _named(subject))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + days * _DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=authority,
                crl_sign=authority,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    above = signer.key.public_key() if signer else public_key
    built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
    others: list[x509.GeneralName] = [_general(name) for name in names]
    if uri:
        others.append(x509.UniformResourceIdentifier(uri))
    if others:
        built = built.add_extension(x509.SubjectAlternativeName(others), critical=False)
    if usage is not None:
        built = built.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    signing = signer.key if signer else key
    assert signing is not None
    return built.sign(signing, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def new_root(name: str = "trial root") -> Signer:
    """Ten years from yesterday."""
    key = ec.generate_private_key(ec.SECP256R1())
    begins = now() - _DAY
    return Signer(certify(name, key.public_key(), None, key, authority=True, begins=begins, days=3650), key)


def below(root: Signer, name: str = "trial issuing CA", *, begins: datetime | None = None) -> Signer:
    """An issuing CA under a root."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = certify(name, key.public_key(), root, authority=True, begins=begins or now() - _DAY, days=1825)
    return Signer(made, key)


class Authority:
    """The CA as it is at the moment."""

    def __init__(self) -> None:
        self.root = new_root()
        self.issuing = below(self.root)
        self.others: list[x509.Certificate] = []
        """Further certificates of /cacerts."""

    @property
    def listed(self) -> list[x509.Certificate]:
        """What /cacerts answers."""
        return [self.issuing.certificate, self.root.certificate, *self.others]

    def roll_over(self, *, name: str = "trial root", crossed: bool = True, keep_old: bool = True) -> None:
        """A new root takes over. With `crossed`, RFC 4210's NewWithOld and OldWithNew are listed."""
        old, old_issuing, new = self.root, self.issuing, new_root(name)
        self.root, self.issuing = new, below(new, f"{name}, issuing")
        self.others = [old_issuing.certificate, old.certificate] if keep_old else []
        if crossed:
            begins = now() - _DAY
            for signed, by in ((new, old), (old, new)):
                subject = signed.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
                self.others.append(
                    certify(str(subject), signed.key.public_key(), by, authority=True, begins=begins, days=365)
                )

    def server_pem(self, path: Path, *names: str, begins: datetime | None = None, days: float = 90) -> Path:
        """A server's key, certificate and issuing CA in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        made = certify(names[0], key.public_key(), self.issuing, names=names, begins=begins, days=days, usage=usage)
        path.write_bytes(private_pem(key) + public_pem(made, self.issuing.certificate))
        path.chmod(0o600)
        return path

    def client(self, name: str, public_key: ec.EllipticCurvePublicKey, *, fleet: str, begins: datetime | None, days: float) -> x509.Certificate:  # fmt: skip  # noqa: E501
        """A node's certificate."""
        return certify(
            name, public_key, self.issuing, begins=begins, days=days, uri=f"spiffe://{fleet}/node/{name}",
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
        )  # fmt: skip

    def client_pem(self, path: Path, name: str) -> Path:
        """A client's key and certificate in one file, for a sink or a commander."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self.client(name, key.public_key(), fleet="trial", begins=None, days=30)
        path.write_bytes(private_pem(key) + public_pem(made, self.issuing.certificate))
        return path

    def trusted_pem(self, path: Path) -> Path:
        """What servers check clients against."""
        path.write_bytes(public_pem(*self.listed))
        return path


def private_pem(key: Key) -> bytes:
    """PKCS8 without passphrase."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(*certificates: x509.Certificate) -> bytes:
    """One after the other."""
    return b"".join(one.public_bytes(serialization.Encoding.PEM) for one in certificates)
