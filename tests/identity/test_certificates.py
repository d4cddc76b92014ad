"""What comes from outside may be anything at all; what is read must be sound, or be refused as a ValueError."""

from __future__ import annotations

import base64
import contextlib
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID

from bench.est_authority import Authority
from edge.errors import EnrollmentFailed
from edge.identity.certificates import key_pem, new_key, pem, read_certs_only, read_key, read_pem, request_der, spki
from edge.identity.trust import issued_to, pinned, rolled_over
from tests.slow_key import slow_key


def body(found: list[x509.Certificate]) -> bytes:
    return base64.b64encode(pkcs7.serialize_certificates(found, serialization.Encoding.DER))


def wrapped(data: bytes, width: int, end: bytes) -> bytes:
    return end.join(data[at : at + width] for at in range(0, len(data), width)) + end


def test_base64_is_read_in_one_line_wrapped_and_between_pem_lines() -> None:
    found = Authority().listed
    line = body(found)
    framed = b"-----BEGIN PKCS7-----\n" + wrapped(line, 64, b"\n") + b"-----END PKCS7-----\n"
    for form in (line, line + b"\r\n", wrapped(line, 76, b"\r\n"), wrapped(line, 64, b"\n"), framed):
        assert set(read_certs_only(form)) == set(found)


@pytest.mark.parametrize("data", [b"", b"<html>", b"AAAA", b"!!!!", b"=", base64.b64encode(b"\x30\x80"), b"\xff" * 40])
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_certs_only(data)


def test_too_many_certificates_are_refused() -> None:
    authority = Authority()
    keys = [new_key() for _ in range(33)]
    many = [authority.client("n", key.public_key(), fleet="t", begins=None, days=1) for key in keys]
    with pytest.raises(ValueError, match="33 certificates"):
        read_certs_only(body(many))


def test_keys_that_take_long_to_check_are_refused_unchecked() -> None:
    """Whoever stands in between can send them, and the node that renews serves meanwhile."""
    slow, name = slow_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    begins = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(slow.public_key())
    builder = builder.serial_number(1).not_valid_before(begins).not_valid_after(begins + timedelta(days=1))
    made = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
        slow, hashes.SHA256()
    )
    with pytest.raises(ValueError, match="takes long"):
        read_certs_only(body([*Authority().listed, made]))


def test_a_damaged_answer_is_an_error_of_ours_or_none_at_all() -> None:
    """Four thousand answers with one to four bytes changed: nothing else may come out, whatever the library thinks of them.

    They are the same ones each time, made of a node's certificate and what a fleet lists after its CA rolled over.
    """
    leaf, *listed = read_pem(Path(__file__).with_name("answer.pem").read_bytes())
    issuing, root, *others = listed
    trusted = pinned(listed, root.fingerprint(hashes.SHA256()).hex())
    assert issued_to([leaf, issuing], spki(leaf), trusted, now_s=None, node="press-7")
    source, good = random.Random(1), base64.b64decode(body([leaf, *listed]))
    read = 0
    for _ in range(4000):
        data = bytearray(good)
        for _ in range(source.randint(1, 4)):
            data[source.randrange(len(data))] = source.randrange(256)
        with contextlib.suppress(ValueError, EnrollmentFailed):
            found = read_certs_only(base64.b64encode(bytes(data)))
            read += 1
            anchors = rolled_over(trusted, found)
            assert set(anchors.roots) <= {root, *others}
            issued_to(found, spki(leaf), anchors, now_s=None, node=None)
    assert read > 100, "the changes must get as far as the decisions"


def test_keys_that_are_not_ours_are_refused() -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)):
        data = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with pytest.raises(ValueError, match="elliptic curve"):
            read_key(data)
    locked = new_key().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    with pytest.raises(ValueError, match="passphrase"):
        read_key(locked)
    assert spki(read_key(key_pem(new_key()))) != spki(new_key())


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("Press 7", "Press 7"),
        ("ä" * 99, "ä" * 32),
        (" \n\x1b[2J ", "[2J"),
        ("", "node"),
        ("\udcff", "node"),
        ("x" * 99, "x" * 64),
    ],
)
def test_a_label_is_cut_to_what_a_name_may_be(label: str, shown: str) -> None:
    request = x509.load_der_x509_csr(request_der(new_key(), label))
    assert request.is_signature_valid
    assert request.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value == shown


def test_certificates_are_written_as_they_are_read() -> None:
    found = Authority().listed
    assert read_pem(pem(found)) == found
