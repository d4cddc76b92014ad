"""From a token to an identity, against a strict EST server that is not ours, over real TLS."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from bench.est_authority import now
from bench.est_server import EstServer
from edge.effective import load
from edge.errors import (
    EnrollmentFailed,
    EnrollmentPending,
    EnrollmentRefused,
    EnrollmentUnreachable,
    PinMismatch,
)  # fmt: skip
from edge.identity.est import FleetClient
from edge.identity.identity import IdentityDamaged
from tests.identity.conftest import Box, now_clock
from tests.waiting import until

_DAY_S = 86_400.0


def test_a_bare_box_becomes_a_node(est: EstServer, box: Box) -> None:
    est.more = {
        "group": "press",
        "mqtt": {"url": "mqtts://broker.example:8883"},
        "fallback": {"url": "https://gateway.example/v1", "model": "big"},
        "command_keys": [_public_key()],
    }
    identity = box.enroll(est.token()).identity
    assert (identity.node, identity.generation, identity.how) == ("tok1-1", 1, "enrolled")
    assert est.nodes["tok1-1"].label == "Press 7"
    effective = load(box.home, {}, {})
    mqtt, fleet = effective.settings.mqtt, effective.settings.fleet
    assert (mqtt.url, mqtt.node, mqtt.group) == ("mqtts://broker.example:8883", "tok1-1", "press")
    assert (fleet.url, fleet.model) == ("https://gateway.example/v1", "big")
    for path in (mqtt.cert_file, mqtt.key_file, mqtt.ca_file, mqtt.command_keys_file, fleet.cert_file, fleet.ca_file):
        assert path is not None and (box.home / path).is_file()
    assert {o.where for k, o in effective.origins.items() if k.startswith(("mqtt.url", "fleet.url"))} == {"enrollment"}


def test_nobody_else_can_read_anything(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    for path in [box.home / "identity", *(box.home / "identity").rglob("*")]:
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_the_token_is_written_nowhere(est: EstServer, box: Box) -> None:
    box.enroll(est.token(secret="very-secret-very-secret"))
    for path in box.home.rglob("*"):
        assert path.is_dir() or b"very-secret" not in path.read_bytes()


def test_the_key_is_on_the_disk_before_anybody_hears_of_it(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    assert box.effects.index("place key.pem") < box.effects.index("ask cacerts")


def test_a_node_that_is_enrolled_stays_as_it_is(est: EstServer, box: Box) -> None:
    token = est.token()
    first = box.enroll(token).identity
    asked = len(est.asked)
    again = box.enroll(est.token("tok2"))
    assert again.already and again.identity.certificate == first.certificate
    assert len(est.asked) == asked


def test_force_enrolls_anew_with_another_key_once(est: EstServer, box: Box) -> None:
    first = box.enroll(est.token()).identity
    second = box.enroll(est.token("tok2"), force=True).identity
    assert (second.node, second.generation) == ("tok2-1", 2)
    assert first.certificate.public_key() != second.certificate.public_key()
    assert not first.directory.exists()
    assert box.enroll(est.token("tok2"), force=True).already, "the same command again finishes, it does not begin again"


def test_a_node_of_another_fleet_is_not_taken_over_in_silence(est: EstServer, box: Box, tmp_path: Path) -> None:
    box.enroll(est.token())
    other = EstServer(tmp_path / "other")
    try:
        with pytest.raises(EnrollmentFailed, match="this node is enrolled at"):
            box.enroll(other.token(), url=other.url)
        assert box.enroll(other.token("tokz"), url=other.url, force=True).identity.node == "tokz-1"
    finally:
        other.stop()


# --- whom it trusts ---------------------------------------------------------------------------------------------------


def test_another_ca_than_the_tokens_gets_nothing(est: EstServer, box: Box, tmp_path: Path) -> None:
    other = EstServer(tmp_path / "other")
    try:
        with pytest.raises(PinMismatch, match="not the one that the token names"):
            box.enroll(other.token(), url=est.url)
    finally:
        other.stop()
    assert est.asked == ["cacerts"]
    assert box.store.current() is None


def test_who_repeats_the_fleets_ca_without_being_it_gets_nothing(est: EstServer, box: Box, tmp_path: Path) -> None:
    """Anybody can fetch /cacerts and show it; the token's secret must not go there."""
    thief = EstServer(tmp_path / "thief")
    try:
        genuine = est.authority.listed
        thief.authority.others = list(genuine)
        with pytest.raises(PinMismatch, match="has not signed"):
            box.enroll(est.token(), url=thief.url)
        assert "simpleenroll" not in thief.asked
    finally:
        thief.stop()


def test_a_certificate_for_another_name_is_refused_in_words(est: EstServer, box: Box) -> None:
    est.renew_server("elsewhere.example")
    with pytest.raises(EnrollmentFailed, match="not made for the name") as failed:
        box.enroll(est.token())
    assert not isinstance(failed.value, PinMismatch)
    assert "simpleenroll" not in est.asked


@pytest.mark.parametrize("wall_s", [0.0, 2_208_988_800.0 + 40 * 365 * _DAY_S, now().timestamp() + 14 * 365 * _DAY_S])
@pytest.mark.parametrize("synced", [True, False])
def test_a_clock_in_1970_or_2040_hinders_nobody(est: EstServer, box: Box, wall_s: float, synced: bool) -> None:
    """The server's own certificate has ended long ago, which such a box cannot tell; the pin holds all the same."""
    est.renew_server(begins=now().replace(year=2020), days=30)
    box.clock = now_clock(synced=synced, wall_s=wall_s)
    assert box.enroll(est.token()).identity.node == "tok1-1"
    known = box.store.known()
    assert abs(known.floor_s - now().timestamp()) < 3600, "what the CA signed is the floor, not such a clock"


def test_with_a_clock_that_was_set_dates_count(est: EstServer, box: Box) -> None:
    est.renew_server(begins=now().replace(year=2020), days=30)
    with pytest.raises(EnrollmentFailed, match="is the clock right"):
        box.enroll(est.token())
    assert "simpleenroll" not in est.asked


# --- what it is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"expired": True}, "this token has expired"),
        ({"revoked": True}, "this token was revoked"),
        ({"secret": "x" * 24}, "does not know this token"),
        ({"bound": {"other": "other-1"}}, "used by a node with another key"),
        ({"bound": {"a": "n1", "b": "n2"}, "uses": 2}, "was used up"),
    ],
)
@pytest.mark.parametrize("reasons", [True, False])
def test_a_token_that_is_refused(est: EstServer, box: Box, state: dict, words: str, reasons: bool) -> None:
    token = est.token()
    est.token(**state)
    est.manner.reasons = reasons
    with pytest.raises(EnrollmentRefused) as refused:
        box.enroll(token)
    if reasons:
        assert words in refused.value.message
    assert box.store.current() is None


def test_a_node_that_was_revoked_begins_anew_with_a_new_token(est: EstServer, box: Box) -> None:
    est.manner.approval = True
    with pytest.raises(EnrollmentPending):
        box.enroll(est.token())
    est.nodes["tok1-1"].revoked = True
    with pytest.raises(EnrollmentRefused, match="revoked this node"):
        box.enroll(est.token("tok1", bound=est.tokens["tok1"].bound))
    est.manner.approval = False
    assert box.enroll(est.token("tok2")).identity.node == "tok2-1"


def test_pending_until_somebody_approves(est: EstServer, box: Box) -> None:
    est.manner.approval = True
    token = est.token()
    for _ in range(2):
        with pytest.raises(EnrollmentPending, match="has to approve") as pending:
            box.enroll(token)
        assert pending.value.retry_after_s == 1
    est.approved.add("tok1-1")
    assert box.enroll(token).identity.node == "tok1-1"
    assert list(est.nodes) == ["tok1-1"]


def test_it_waits_if_it_is_told_to_also_over_a_gap(est: EstServer, box: Box) -> None:
    est.manner.approval = True
    token = est.token()
    thread = threading.Thread(target=lambda: box.enroll(token, wait=True))
    thread.start()
    until(lambda: est.asked.count("simpleenroll") >= 2)
    est.approved.add("tok1-1")
    thread.join(120)
    assert box.identity().node == "tok1-1"
    assert any("waiting until somebody approves" in text for text in box.said)


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["cacerts", "simpleenroll", "bootstrap"])
def test_an_answer_that_is_lost_can_be_asked_for_again(est: EstServer, box: Box, lost: str) -> None:
    token = est.token()
    est.manner.lose = lost
    with pytest.raises(EnrollmentUnreachable):
        box.enroll(token)
    identity = box.enroll(token).identity
    assert list(est.nodes) == [identity.node]
    assert len(est.nodes[identity.node].keys) == 1


def test_a_certificate_that_came_is_not_asked_for_again(est: EstServer, box: Box) -> None:
    token = est.token()
    est.manner.lose = "bootstrap"
    with pytest.raises(EnrollmentUnreachable):
        box.enroll(token)
    est.tokens["tok1"].revoked = True
    assert box.enroll(token).identity.node == "tok1-1"


def test_an_est_server_of_others_makes_an_identity_without_settings(est: EstServer, box: Box) -> None:
    est.manner.bootstrap, est.manner.wrapped, est.manner.reasons = False, True, False
    identity = box.enroll(est.token()).identity
    assert identity.bootstrap is None
    assert {o.source for o in load(box.home, {}, {}).origins.values()} == {"default"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"node": "somebody-else"}, "is for somebody-else"),
        ({"version": 2}, "makes no sense: version"),
        ({"mqtt": {"url": "mqtts://u:p@broker"}}, "must hold no password"),
        ({"mqtt": {"url": "mqtts://broker", "prefix": "a/b/"}}, "must contain {node}"),
        ({"mqtt": {"url": "http://broker"}}, "makes no sense: mqtt.url"),
        ({"command_keys": ["nonsense"]}, "makes no sense: command_keys"),
        (
            {"command_keys": ["-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]},
            "makes no sense: command_keys",
        ),
        ({"renewal": {"at_share": 2}}, "makes no sense: renewal.at_share"),
    ],
)
def test_a_bootstrap_that_no_node_could_start_with_is_refused(est: EstServer, box: Box, more: dict, words: str) -> None:
    est.more = more
    token = est.token()
    with pytest.raises(EnrollmentFailed, match=words.replace("{", r"\{")):
        box.enroll(token)
    assert box.store.current() is None
    est.more = {}
    assert box.enroll(token).identity.node == "tok1-1"


def test_a_name_that_could_leave_its_topic_is_refused(est: EstServer, box: Box) -> None:
    est.manner.issue = lambda _: "a/b#"
    with pytest.raises(EnrollmentFailed, match="named this node"):
        box.enroll(est.token())


def _too_much(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n" + b"A" * (1 << 20))


def _not_est(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n<html></html>")


def _elsewhere(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")


def _broken(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\n\x1b[2J")


def _drip(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n")
    for _ in range(600):
        try:
            handler.wfile.write(b"A")
            handler.wfile.flush()
        except OSError:
            return
        time.sleep(0.05)


@pytest.mark.parametrize("answer", [_too_much, _not_est, _elsewhere, _broken])
@pytest.mark.parametrize("path", ["cacerts", "simpleenroll", "bootstrap"])
def test_what_is_no_fleet_is_not_believed(est: EstServer, box: Box, path: str, answer: object) -> None:
    est.manner.break_with[path] = answer  # type: ignore[assignment]
    token = est.token()
    with pytest.raises(EnrollmentFailed) as failed:
        box.enroll(token)
    assert "\x1b" not in failed.value.message
    est.manner.break_with.clear()
    assert box.enroll(token).identity.node == "tok1-1"


def test_an_answer_that_drips_is_given_up(est: EstServer) -> None:
    est.manner.break_with["cacerts"] = _drip
    with pytest.raises(EnrollmentUnreachable, match="in time"):
        asyncio.run(FleetClient(est.url, whole_s=1.0).look_at_authorities())


def test_nobody_there(est: EstServer, box: Box) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(EnrollmentUnreachable, match="cannot be reached"):
            box.enroll(est.token(), url=f"https://localhost:{taken.getsockname()[1]}")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["key.pem", ""])
def test_a_key_that_others_can_read_is_not_used(est: EstServer, box: Box, place: str) -> None:
    path = box.enroll(est.token()).identity.directory / place
    path.chmod(0o755 if path.is_dir() else 0o644)
    with pytest.raises(IdentityDamaged, match="others may have read"):
        box.store.current()
    path.chmod(0o700 if path.is_dir() else 0o600)
    assert box.identity().node == "tok1-1"


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "ca.pem", "identity.json", "bootstrap.json", "settings.toml"])
@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_damage_is_said_and_force_cures_it(est: EstServer, box: Box, name: str, data: bytes) -> None:
    (box.enroll(est.token()).identity.directory / name).write_bytes(data)
    with pytest.raises(IdentityDamaged, match="enroll anew"):
        box.store.current()
    with pytest.raises(IdentityDamaged):
        box.enroll(est.token("tok2"))
    assert box.enroll(est.token("tok2"), force=True).identity.node == "tok2-1"


@pytest.mark.parametrize("data", [None, b"", b"nonsense"])
def test_keys_for_commands_that_are_lost_are_damage_too(est: EstServer, box: Box, data: bytes | None) -> None:
    est.more = {"command_keys": [_public_key()]}
    path = box.enroll(est.token()).identity.directory / "command_keys.pem"
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(IdentityDamaged, match="enroll anew"):
        box.store.current()


def test_a_copy_that_followed_the_link_does_not_stand_in_the_way(est: EstServer, box: Box) -> None:
    directory = box.enroll(est.token()).identity.directory
    current = box.home / "identity" / "current"
    current.unlink()
    shutil.copytree(directory, current)
    with pytest.raises(IdentityDamaged, match="is not the link"):
        box.store.current()
    assert box.enroll(est.token("tok2"), force=True).identity.node == "tok2-1"
    assert current.is_symlink()


def test_a_newer_versions_files_are_left_alone(est: EstServer, box: Box) -> None:
    path = box.enroll(est.token()).identity.directory / "identity.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(IdentityDamaged, match="newer version"):
        box.store.current()


def test_a_link_that_leads_nowhere_is_no_silent_start_as_somebody_else(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    current = box.home / "identity" / "current"
    current.unlink()
    current.symlink_to("generations/000009")
    with pytest.raises(IdentityDamaged):
        box.store.current()


def test_a_reset_that_was_interrupted_is_ended(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    (box.home / "identity" / "resetting").write_bytes(b"")
    (box.home / "identity" / "current").unlink()
    with box.store.locked():
        pass
    assert box.store.current() is None
    assert not list((box.home / "identity").rglob("key.pem"))


def _public_key() -> str:
    from edge.telemetry.commands import new_key_pair

    return new_key_pair()[1].decode()


def test_what_root_makes_belongs_to_the_owner_of_the_home(est: EstServer, box: Box) -> None:
    """`sudo edge enroll` for a node that runs as somebody else. Who is not root is the owner anyway."""
    box.home.mkdir()
    if os.geteuid() == 0:
        os.chown(box.home, 65_534, 65_534)
    box.enroll(est.token())
    box.renew()
    owner = box.home.stat()
    for path in (box.home / "identity", *(box.home / "identity").rglob("*")):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (owner.st_uid, owner.st_gid), path


def test_an_enrollment_that_is_gone_on_with_after_its_certificate_ended_asks_for_another(
    est: EstServer, box: Box
) -> None:
    token, box.clock = est.token(), now_clock(wall_s=0.0, synced=False)
    est.manner.begins, est.manner.break_with = now() - timedelta(days=40), {"bootstrap": lambda _: None}
    with pytest.raises(EnrollmentUnreachable):
        box.enroll(token)
    est.manner.begins, est.manner.break_with = None, {}
    assert box.enroll(token).identity.life.standing(now().timestamp()) == "good"
    assert len(est.nodes["tok1-1"].keys) == 1
