"""Enrollment, renewal and bootstrap over real TLS."""

from __future__ import annotations

import base64
import contextlib
import socket
import ssl
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from bench.fleet_side import Box, FleetSide
from edge.control.authority import load_authority
from edge.control.database import Database
from edge.control.enrollment import Issued, Registrar
from edge.control.settings import load_settings
from edge.control.x509 import issue_node, now_utc, read_request
from edge.errors import RateLimited
from edge.identity.token import EnrollmentToken
from edge.identity.wire import Bootstrap
from tests.control.conftest import NewBox
from tests.slow_key import slow_key
from tests.waiting import until


def reason(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.headers.get("edge-reason", "")


def test_a_token_gets_a_certificate_with_the_fleets_name_and_none_of_the_requests(
    fleet: FleetSide, new_box: NewBox
) -> None:
    box = new_box("Robot 12 / Hall B")
    answer = box.enroll(fleet.token(group="hall-b"))
    assert (
        answer.status_code == 200 and answer.headers["content-type"] == "application/pkcs7-mime; smime-type=certs-only"
    )
    assert box.certificate is not None and box.name == "robot-12-hall-b"
    uri = box.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert uri.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://plant/node/robot-12-hall-b"]
    usage = box.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    row = fleet.node(box.name)
    assert (row["state"], row["group"], row["label"]) == ("active", "hall-b", "Robot 12 / Hall B")
    assert row["certificate_ends_s"] == box.certificate.not_valid_after_utc.timestamp()


def test_the_authority_can_be_fetched_by_who_knows_nothing_but_its_hash(fleet: FleetSide) -> None:
    blind = ssl.create_default_context()
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    answer = httpx.get(f"{fleet.url}/.well-known/est/cacerts", verify=blind, timeout=60, trust_env=False)
    certificates = pkcs7.load_der_pkcs7_certificates(base64.b64decode(answer.content, validate=True))
    pins = {c.fingerprint(hashes.SHA256()).hex() for c in certificates}
    assert fleet.pin in pins and len(certificates) == 2


def test_bootstrap_is_the_nodes_own_and_nobody_elses(fleet: FleetSide, new_box: NewBox) -> None:
    box, other = new_box("a"), new_box("b")
    box.enroll(fleet.token(group="g1"))
    other.enroll(fleet.token(group="g2"))
    mine, theirs = (Bootstrap.model_validate(b.bootstrap().json()) for b in (box, other))
    assert (mine.node, mine.group, theirs.node, theirs.group) == (box.name, "g1", other.name, "g2")
    assert mine.mqtt is not None and mine.mqtt.url == fleet.broker_url and "BEGIN PUBLIC KEY" in mine.command_keys[0]
    with box.client(certificate=False) as nobody:
        assert reason(nobody.get("/fleet/v1/bootstrap")) == (403, "node_unknown")
        assert nobody.get("/fleet/v1/nodes").status_code == 404, "administration is not on this listener"


def test_a_command_key_that_nodes_do_not_take_keeps_none_from_its_bootstrap(
    own_fleet: FleetSide, tmp_path: Path
) -> None:
    place = own_fleet.home.commands.parent
    (place / "a-persons.pub").write_text("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGb ops@host\n")
    own = (place / "command.key.pub").read_text()
    for number in range(9):
        (place / f"b{number}.pub").write_text(own)
    own_fleet.start()
    box = Box(tmp_path / "box", own_fleet)
    box.enroll(own_fleet.token())
    for _ in range(2):
        found = Bootstrap.model_validate(box.bootstrap().json())
    assert found.command_keys == (own,) * 8
    said = [line for line in own_fleet.log.read_text().splitlines() if "command key is left out" in line]
    assert len(said) == 3 and "a-persons.pub" in said[0]


def test_a_lost_reply_is_given_again_and_makes_no_second_node(fleet: FleetSide, new_box: NewBox) -> None:
    box, token = new_box("twice"), fleet.token()
    first = box.enroll(token)
    again = box.enroll(token)
    assert first.content == again.content
    thief = new_box("twice")
    assert reason(thief.enroll(token)) == (409, "token_bound")


def test_each_use_of_a_token_belongs_to_one_key(fleet: FleetSide, new_box: NewBox) -> None:
    token = fleet.token(uses=2, label="line")
    boxes = [new_box("x") for _ in range(3)]
    assert [b.enroll(token).status_code for b in boxes] == [200, 200, 401]
    assert boxes[0].name == "line" and boxes[1].name.startswith("line-") and boxes[0].name != boxes[1].name
    assert reason(boxes[2].enroll(token)) == (401, "token_used")
    assert boxes[1].enroll(token).status_code == 200, "a key that is in may ask again"


def test_what_is_no_token_of_this_fleet_is_refused(fleet: FleetSide, new_box: NewBox, tmp_path: Path) -> None:
    box = new_box()
    token = fleet.token()
    foreign = EnrollmentToken(token.root_sha256, "abcd2345", "x" * 32)
    assert reason(box.enroll(foreign)) == (401, "token_unknown")
    wrong = EnrollmentToken(token.root_sha256, token.id, token.secret[:-1] + ("a" if token.secret[-1] != "a" else "b"))
    answer = box.enroll(wrong)
    assert reason(answer) == (401, "token_unknown") and answer.headers["www-authenticate"].startswith("Basic")
    expired = fleet.token(life_s=60.0, now_s=time.time() - 61)
    assert reason(box.enroll(expired)) == (401, "token_expired")
    gone = fleet.token()
    assert fleet.cli("token", "revoke", gone.id).returncode == 0
    assert reason(box.enroll(gone)) == (401, "token_revoked")
    with box.client(certificate=False) as bare:
        answer = bare.post("/.well-known/est/simpleenroll", content=base64.b64encode(box.csr()))
        assert reason(answer) == (401, "token_unknown")
    assert box.enroll(token).status_code == 200, "none of that has used it up"


def test_a_node_waits_until_somebody_lets_it_in(fleet: FleetSide, new_box: NewBox) -> None:
    box, token = new_box("waits"), fleet.token(approval=True)
    answer = box.enroll(token)
    assert reason(answer) == (202, "pending") and int(answer.headers["retry-after"]) > 0
    assert reason(box.enroll(token)) == (202, "pending")
    assert fleet.node("waits")["state"] == "pending"
    done = fleet.cli("approve", "waits")
    assert done.returncode == 0 and "approved waits" in done.stdout
    assert box.enroll(token).status_code == 200
    assert fleet.node("waits")["approved_by"].startswith("cli:")


@pytest.mark.parametrize("body", [b"", b"not base64 !", base64.b64encode(b"not a request"), b"A" * 60_000])
def test_nonsense_is_refused_with_a_sentence(fleet: FleetSide, new_box: NewBox, body: bytes) -> None:
    token = fleet.token()
    with new_box().client(certificate=False) as client:
        answer = client.post("/.well-known/est/simpleenroll", content=body, auth=(token.id, token.secret))
    assert reason(answer) == (400, "request_malformed") and answer.text.strip()


def test_no_request_is_looked_at_before_the_token_is_known(fleet: FleetSide, new_box: NewBox) -> None:
    with new_box().client(certificate=False) as client:
        answer = client.post("/.well-known/est/simpleenroll", content=b"not a request", auth=("abcd2345", "x" * 32))
    assert reason(answer) == (401, "token_unknown")


@pytest.mark.parametrize("tag, value", [(0x0C, b"\xff\xfe\xfd"), (0x14, b"\xe4bc"), (0x02, b"\1\2\3"), (0x03, b"\0ab")])
def test_a_name_that_is_no_text_is_refused(fleet: FleetSide, new_box: NewBox, tag: int, value: bytes) -> None:
    box, token = new_box("A" * len(value)), fleet.token()
    request = x509.load_der_x509_csr(box.csr())
    told = bytearray(request.tbs_certrequest_bytes)
    at = told.index(b"A" * len(value))
    told[at - 2], told[at : at + len(value)] = tag, value
    signature = box.key.sign(bytes(told), ec.ECDSA(hashes.SHA256()))
    body = bytes(told) + bytes.fromhex("300a06082a8648ce3d040302") + bytes([3, len(signature) + 1, 0]) + signature
    der = bytes([0x30, 0x81, len(body)]) + body
    with box.client(certificate=False) as client:
        answer = client.post(
            "/.well-known/est/simpleenroll", content=base64.b64encode(der), auth=(token.id, token.secret)
        )
    assert reason(answer) == (400, "request_malformed")


def test_a_token_is_not_spent_on_a_box_that_was_revoked(fleet: FleetSide, new_box: NewBox) -> None:
    """The box learns it, makes another key, and comes again with the same token."""
    box = new_box("second-try")
    assert box.enroll(fleet.token(approval=True)).status_code == 202
    assert fleet.cli("revoke", "second-try").returncode == 0
    token = fleet.token()
    assert reason(box.enroll(token)) == (403, "node_revoked")
    box.rekey()
    assert box.enroll(token).status_code == 200 and box.name != "second-try"


def test_a_node_that_renews_all_the_time_is_stopped(own_fleet: FleetSide, tmp_path: Path) -> None:
    """What was replaced stands in the lists that the broker and all gateways read."""
    home, box, now = own_fleet.home, Box(tmp_path / "box", own_fleet), now_utc()
    registrar, database, token = (
        Registrar(load_authority(home), load_settings(home)),
        Database(home.database),
        own_fleet.token(),
    )
    with database.write() as session:
        outcome = registrar.enroll(session, token.id, token.secret, read_request(box.csr()), now)
        for _ in range(99):
            assert isinstance(outcome, Issued)
            box.rekey()
            outcome = registrar.renew(session, outcome.certificate, read_request(box.csr()), now)
    assert isinstance(outcome, Issued)
    with pytest.raises(RateLimited, match="edge fleet revoke box"), database.write() as session:
        registrar.renew(session, outcome.certificate, read_request(box.csr()), now)
    with database.write() as session:
        later = now + timedelta(days=31)
        assert isinstance(registrar.renew(session, outcome.certificate, read_request(box.csr()), later), Issued)
    database.close()


def test_a_key_that_is_slow_to_check_is_refused(fleet: FleetSide, new_box: NewBox) -> None:
    slow = slow_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "slow")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(slow, hashes.SHA256())
    der, token = request.public_bytes(Encoding.DER), fleet.token()
    with new_box().client(certificate=False) as client:
        answer = client.post(
            "/.well-known/est/simpleenroll", content=base64.b64encode(der), auth=(token.id, token.secret)
        )
    assert reason(answer) == (400, "request_malformed") and "exponent" in answer.text


def test_a_request_that_another_key_signed_is_refused(fleet: FleetSide, new_box: NewBox) -> None:
    box, token = new_box(), fleet.token()
    spoiled = bytearray(box.csr())
    spoiled[-3] ^= 1
    with box.client(certificate=False) as client:
        answer = client.post(
            "/.well-known/est/simpleenroll", content=base64.encodebytes(bytes(spoiled)), auth=(token.id, token.secret)
        )
    assert reason(answer) == (400, "request_malformed")


def test_renewal_keeps_the_name_with_the_same_key_and_with_a_new_one(fleet: FleetSide, new_box: NewBox) -> None:
    box = new_box("renews")
    box.enroll(fleet.token())
    first = box.certificate
    assert box.renew().status_code == 200 and box.certificate != first and box.name == "renews"
    old = box.key
    with box.client() as client:
        box.rekey()
        answer = client.post("/.well-known/est/simplereenroll", content=base64.b64encode(box.csr()))
    box.keep(answer)
    assert box.name == "renews" and box.certificate is not None
    assert box.certificate.public_key() == box.key.public_key() != old.public_key()
    assert box.bootstrap().json()["node"] == "renews"


def test_what_was_replaced_counts_no_longer_once_the_newer_one_has_renewed(fleet: FleetSide, new_box: NewBox) -> None:
    token = fleet.token()
    box, thief = new_box("chain"), new_box("thief")
    box.enroll(token)
    thief.key, leaked = box.key, box.certificate
    assert leaked is not None

    def as_thief() -> Box:
        thief.hold(leaked)
        return thief

    with box.client() as client:  # the reply is lost, and asked for again with the old one; a trial fails
        box.rekey()
        for _ in range(2):
            answer = client.post("/.well-known/est/simplereenroll", content=base64.b64encode(box.csr()))
            assert answer.status_code == 200
    box.keep(answer)
    assert box.bootstrap().status_code == 200
    assert as_thief().bootstrap().status_code == 200, "the box itself may still go back to it"
    with box.client() as client:
        box.rekey()
        answer = client.post("/.well-known/est/simplereenroll", content=base64.b64encode(box.csr()))
    assert reason(as_thief().bootstrap()) == (403, "certificate_expired")
    assert reason(as_thief().renew()) == (403, "certificate_expired")
    assert reason(thief.enroll(token)) == (409, "token_bound")
    box.keep(answer)
    assert box.renew().status_code == 200 and box.bootstrap().status_code == 200
    until(lambda: leaked.serial_number in revoked(fleet))
    assert box.certificate is not None and box.certificate.serial_number not in revoked(fleet)


def revoked(fleet: FleetSide) -> set[int]:
    data = (fleet.home.broker / "revoked.pem").read_bytes()
    lists = [x509.load_pem_x509_crl(b"-----BEGIN" + part) for part in data.split(b"-----BEGIN")[1:]]
    return {entry.serial_number for found in lists for entry in found}


def test_a_certificate_that_has_ended_may_be_renewed_within_the_grace_and_not_beyond(
    fleet: FleetSide, new_box: NewBox
) -> None:
    box = new_box("late")
    box.enroll(fleet.token())
    issuer, key = load_authority(fleet.home).issuer, box.key.public_key()

    def hold(ended_days_ago: float) -> None:
        begin = now_utc() - timedelta(days=30 + ended_days_ago)
        box.hold(issue_node(issuer, key, "plant", "late", begin, timedelta(days=30)))

    hold(31)
    assert reason(box.renew()) == (403, "certificate_expired")
    hold(29)
    assert reason(box.bootstrap()) == (403, "certificate_expired"), "ended is ended, but for renewal"
    assert box.renew().status_code == 200
    assert box.bootstrap().status_code == 200


def test_a_certificate_of_another_authority_does_not_get_in(fleet: FleetSide, new_box: NewBox, tmp_path: Path) -> None:
    box = new_box("real")
    box.enroll(fleet.token())
    other = FleetSide(tmp_path / "other")
    forged = issue_node(
        load_authority(other.home).issuer, box.key.public_key(), "plant", "real", now_utc(), timedelta(days=1)
    )
    box.hold(forged)
    with pytest.raises(httpx.HTTPError):
        box.bootstrap()
    with pytest.raises(httpx.HTTPError):
        box.renew()


def test_the_fleets_own_clients_are_no_nodes(fleet: FleetSide, new_box: NewBox) -> None:
    box = new_box("fleet-sink")
    box.enroll(fleet.token())
    assert box.name == "node-fleet-sink", "names of the fleet's own clients are never given to nodes"
    tls = fleet.home.tls
    context = ssl.create_default_context(cafile=fleet.home.ca / "root-1.pem")
    context.load_cert_chain(tls / "fleet-sink.pem", tls / "fleet-sink.key")
    answer = httpx.get(f"{fleet.url}/fleet/v1/bootstrap", verify=context, timeout=60, trust_env=False)
    assert reason(answer) == (403, "node_unknown")


def test_big_bodies_are_refused(fleet: FleetSide, new_box: NewBox) -> None:
    with new_box().client(certificate=False) as client:
        assert client.post("/.well-known/est/simpleenroll", content=b"A" * 70_000, auth=("a", "b")).status_code == 413


def test_slow_clients_are_cut_off(own_fleet: FleetSide) -> None:
    own_fleet.set("est.timeout_s = 1.0")
    own_fleet.start()
    context = ssl.create_default_context(cafile=own_fleet.home.ca / "root-1.pem")
    with socket.create_connection(("localhost", own_fleet.ports[0])) as silent:
        silent.settimeout(60)
        assert silent.recv(1) == b"", "a handshake that does not come is not waited for"

    def answer_to_half_a_body() -> bytes:
        with (
            contextlib.suppress(OSError),  # a machine that stands still may be too slow with its handshake or its head
            context.wrap_socket(
                socket.create_connection(("localhost", own_fleet.ports[0]), 60), server_hostname="localhost"
            ) as slow,
        ):
            slow.sendall(b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nabc")
            return slow.recv(4096)
        return b""

    until(lambda: b" 408 " in answer_to_half_a_body())


def test_connections_are_bounded(own_fleet: FleetSide) -> None:
    own_fleet.set("est.max_connections = 3\nest.timeout_s = 300.0")
    own_fleet.start()
    context = ssl.create_default_context(cafile=own_fleet.home.ca / "root-1.pem")

    def connect() -> ssl.SSLSocket:
        return context.wrap_socket(
            socket.create_connection(("localhost", own_fleet.ports[0]), 60), server_hostname="localhost"
        )

    ask = b"GET /.well-known/est/cacerts HTTP/1.1\r\nhost: x\r\n\r\n"

    def require_answer(one: ssl.SSLSocket) -> None:
        one.sendall(ask)
        head = b""
        while b"\r\n\r\n" not in head:
            head += one.recv(1)
        assert head.startswith(b"HTTP/1.1 200")
        left = next(
            int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length")
        )
        while left:
            left -= len(one.recv(left))

    held = [connect() for _ in range(3)]
    for one in held:
        require_answer(one)
    with connect() as more:
        require_answer(more)
        assert held[0].recv(1) == b"", "the one that was idle longest goes"
        for one in (more, *held[1:]):
            one.sendall(b"GET /")
        with connect() as refused:
            refused.sendall(ask)
            assert b" 429 " in refused.recv(4096)
    for one in held:
        one.close()


def test_strongswans_client_fetches_the_authority_enrolls_and_renews(fleet: FleetSide, tmp_path: Path) -> None:
    """An implementation of EST that knows nothing of ours (Debian's strongswan-pki)."""
    ca, url = fleet.home.ca, fleet.url

    def pki(*arguments: str) -> bytes:
        done = subprocess.run(["pki", *arguments], capture_output=True, timeout=300, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return done.stdout

    (tmp_path / "key.pem").write_bytes(pki("--gen", "--type", "ecdsa", "--size", "256", "--outform", "pem"))
    pki("--estca", "--url", url, "--cacert", str(ca / "root-1.pem"), "--caout", "got", "--outform", "pem")
    assert (tmp_path / "got.pem").read_bytes().split() == (ca / "root-1.pem").read_bytes().split()
    assert (tmp_path / "got-1.pem").read_bytes().split() == (ca / "issuing-1.pem").read_bytes().split()
    request = pki("--req", "--in", "key.pem", "--type", "ecdsa", "--dn", "CN=swan", "--outform", "der")
    (tmp_path / "req.der").write_bytes(request)
    token = fleet.token()
    trusted = ("--url", url, "--in", "req.der", "--cacert", "got.pem", "--cacert", "got-1.pem", "--outform", "pem")
    (tmp_path / "swan.pem").write_bytes(pki("--est", *trusted, "--userpass", f"{token.id}:{token.secret}"))
    (tmp_path / "new.pem").write_bytes(pki("--est", *trusted, "--cert", "swan.pem", "--key", "key.pem"))
    for name in ("swan.pem", "new.pem"):
        checked = subprocess.run(
            ["openssl", "verify", "-CAfile", "got.pem", "-untrusted", "got-1.pem", "-purpose", "sslclient", name],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stderr
    assert (tmp_path / "swan.pem").read_bytes() != (tmp_path / "new.pem").read_bytes()
    assert fleet.node("swan")["state"] == "active"


def test_curl_and_openssl_enroll_by_hand(fleet: FleetSide, tmp_path: Path) -> None:
    token = fleet.token()
    script = f"""
    set -euo pipefail
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout k.pem -subj /CN=by-hand -outform der 2>/dev/null \
      | openssl base64 > r.b64
    curl -sSf --cacert {fleet.home.ca}/root-1.pem -u "$SECRET" -H 'Content-Type: application/pkcs10' --data-binary @r.b64 \
      {fleet.url}/.well-known/est/simpleenroll | openssl base64 -d -A | openssl pkcs7 -inform der -print_certs -out c.pem
    curl -sSf --cacert {fleet.home.ca}/root-1.pem --cert c.pem --key k.pem {fleet.url}/fleet/v1/bootstrap
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
        env={"PATH": "/usr/bin:/bin", "SECRET": f"{token.id}:{token.secret}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Bootstrap.model_validate_json(done.stdout).node == "by-hand"
