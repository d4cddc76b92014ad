"""A running node's identity: renewed in time, noticed when it changes, told of, and loud when it cannot be kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from bench.est_authority import now
from bench.est_server import EstServer
from edge.effective import load
from edge.enrolled import begun, standing_of, telemetry_of
from edge.errors import ConfigurationError
from edge.identity.identity import IdentityDamaged
from edge.identity.keeper import Keeper
from edge.telemetry.alarms import Alarms
from tests.identity.conftest import Box, now_clock
from tests.telemetry.conftest import HandClock

_DAY_S = 86_400.0


class Watched:
    """A keeper whose `look` is called by hand, and what it did."""

    def __init__(self, box: Box, damage: str = "") -> None:
        self.box, self.alarms = box, Alarms()
        self.settings_changed = self.renewed = 0
        self.refusal = ""
        self.keeper = Keeper(box.store, box.clock, lambda _: box.broker, damage=damage, rand=lambda: 0.5)
        self.keeper.alarms = self.alarms
        self.keeper.on_settings = self._on_settings
        self.keeper.on_renewed = self._on_renewed

    def _on_settings(self) -> str:
        self.settings_changed += not self.refusal
        return self.refusal

    def _on_renewed(self) -> None:
        self.renewed += 1

    def look(self, times: int = 1) -> None:
        async def looked() -> None:
            for _ in range(times):
                await self.keeper.look()

        asyncio.run(looked())

    def codes(self) -> set[str]:
        return {alarm["code"] for alarm in self.alarms.active()}


@pytest.fixture
def events() -> Iterator[list[logging.LogRecord]]:
    """Log events of the identity; those in telemetry's list are sent to the fleet."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[method-assign]
    logger = logging.getLogger("edge.identity.keeper")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)


def names(events: list[logging.LogRecord]) -> list[str]:
    return [str(event.__dict__["event"]) for event in events]


def later(days: float) -> HandClock:
    return now_clock(wall_s=now().timestamp() + days * _DAY_S)


def test_a_young_certificate_is_left_alone(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    asked = len(est.asked)
    watched = Watched(box)
    watched.look(3)
    assert len(est.asked) == asked and not watched.codes()
    about = watched.keeper.account()
    assert about is not None
    assert (about["node"], about["standing"], about["clock"]) == ("tok1-1", "good", "believed")


def test_it_is_renewed_once_when_it_is_due(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    box.clock = later(25)
    est.manner.begins = now() + timedelta(days=25)
    watched = Watched(box)
    watched.look(5)
    assert est.asked.count("simplereenroll") == 1
    assert (box.identity().generation, watched.renewed, watched.settings_changed) == (2, 1, 0)


def test_settings_that_came_with_a_renewal_are_taken_up(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    est.more = {"group": "elsewhere"}
    box.clock = later(25)
    est.manner.begins = now() + timedelta(days=25)
    watched = Watched(box)
    watched.look(2)
    assert (watched.settings_changed, watched.renewed) == (1, 0)


def test_failures_are_told_once_paused_and_become_an_alarm(
    est: EstServer, box: Box, events: list[logging.LogRecord]
) -> None:
    box.enroll(est.token())
    est.stop()
    box.clock = later(22)
    watched = Watched(box)
    watched.look(5)
    assert names(events).count("renewal_failed") == 1
    assert watched.codes() == set(), "a first failure with days to go is no alarm"
    last = box.store.last_try()
    assert last is not None and last.failures == 1, "the second try comes after a pause"
    box.clock = later(27)
    watched = Watched(box)
    watched.look()
    assert watched.codes() == {"certificate_expiring"}
    assert "could not be renewed" in watched.alarms.active()[0]["text"]


def test_a_revoked_node_says_so_and_serves_on(est: EstServer, box: Box, events: list[logging.LogRecord]) -> None:
    box.enroll(est.token())
    est.nodes["tok1-1"].revoked = True
    box.clock = later(22)
    watched = Watched(box)
    watched.look()
    assert watched.codes() == {"renewal_refused"}
    assert "revoked" in watched.keeper.account()["renewal_failure"]  # type: ignore[index]
    est.nodes["tok1-1"].revoked = False
    est.manner.begins = now() + timedelta(days=22)
    again = Watched(box)
    again.alarms.set("renewal_refused", "from before", "")
    again.look()
    assert again.codes() == set() and again.keeper.account()["renewal_failure"] == ""  # type: ignore[index]


def test_an_enrollment_from_outside_is_noticed_and_told_once(
    est: EstServer, box: Box, events: list[logging.LogRecord]
) -> None:
    watched = Watched(box)
    watched.look()
    assert watched.keeper.account() is None
    box.enroll(est.token())
    watched.look(3)
    assert watched.settings_changed == 1
    assert names(events) == ["enrolled"]
    asyncio.run(_started_and_stopped(Watched(box).keeper))  # the node that starts anew
    assert names(events) == ["enrolled"]
    box.renew()
    watched.look(2)
    assert (names(events), watched.renewed) == (["enrolled", "renewed"], 1)


async def _started_and_stopped(keeper: Keeper) -> None:
    await keeper.start()
    await keeper.stop()


def test_a_reset_is_noticed(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    watched = Watched(box)
    with box.store.locked():
        box.store.reset()
    watched.look(2)
    assert watched.settings_changed == 1 and watched.keeper.account() is None


@pytest.mark.parametrize("wall_s", [0.0, now().timestamp() + 14 * 365 * _DAY_S])
def test_a_clock_that_is_not_set_asks_the_fleet_and_renews_by_its_word(est: EstServer, box: Box, wall_s: float) -> None:
    """A box that believes in 2040 must not renew all day, and one in 1970 must not forget to."""
    box.clock = now_clock(wall_s=wall_s, synced=False)
    box.enroll(est.token())
    box.clock.kernel_boot = "k2"  # it starts anew
    watched = Watched(box)
    watched.look(5)
    assert est.asked.count("simplereenroll") == 0
    assert not watched.keeper.dates_count()
    assert abs(watched.keeper.now_s - now().timestamp()) < 3600
    box.clock.pass_s(25 * _DAY_S)
    est.manner.begins = now() + timedelta(days=25)
    watched.look(3)
    assert est.asked.count("simplereenroll") == 1


def test_a_believed_clock_moves_the_floor_a_day_at_a_time(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    floor_s = box.store.known().floor_s
    watched = Watched(box)
    watched.look()
    assert box.store.known().floor_s == floor_s
    box.clock.pass_s(2 * _DAY_S)
    watched.look()
    assert abs(box.store.known().floor_s - floor_s - 2 * _DAY_S) < 3600
    assert watched.keeper.dates_count()
    box.clock.wall_s = 0.0
    assert not watched.keeper.dates_count()


def test_one_wrong_clock_that_is_called_set_does_not_spoil_the_box(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    watched = Watched(box)
    box.clock.wall_s += 7 * 365 * _DAY_S
    watched.look(3)
    box.clock.wall_s -= 7 * 365 * _DAY_S
    watched = Watched(box)
    assert watched.keeper.dates_count()
    assert watched.keeper.account()["standing"] == "good"  # type: ignore[index]


def test_a_renewal_that_brings_no_time_is_not_repeated_at_once(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    box.clock = later(25)  # the fleet's clock says otherwise, so that the new certificate is as due as the old one
    watched = Watched(box)
    watched.look(5)
    assert est.asked.count("simplereenroll") == 1
    assert box.identity().generation == 2


def damaged(box: Box) -> tuple[Watched, Path]:
    """Watched from a start on, at which others could read the key."""
    key = box.identity().directory / "key.pem"
    key.chmod(0o640)
    with pytest.raises(IdentityDamaged) as found:
        Watched(box)
    return Watched(box, found.value.message), key


def test_a_key_that_others_can_read_is_used_for_nothing_until_that_is_mended(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    watched, key = damaged(box)
    keeper = watched.keeper
    asyncio.run(keeper.start())
    watched.look(2)
    assert keeper.identity is None and watched.codes() == {"identity_damaged"} and watched.settings_changed == 0
    assert keeper.account() == {"standing": "damaged", "reason": keeper.damage} and "chmod go=" in keeper.damage
    key.write_bytes(b"")
    key.chmod(0o600)
    watched.look()
    assert "a file in" in keeper.damage, "what is wrong now"
    assert box.enroll(est.token("tok2"), force=True).identity.node == "tok2-1"
    watched.look(2)
    assert (watched.settings_changed, keeper.damage, watched.codes()) == (1, "", set())
    assert (keeper.account() or {})["node"] == "tok2-1"


def test_a_reset_ends_the_damage_too(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    watched, _ = damaged(box)
    with box.store.locked():
        box.store.reset()
    watched.look(2)
    assert (watched.settings_changed, watched.keeper.damage, watched.keeper.account()) == (1, "", None)


def test_what_cannot_be_taken_up_yet_is_asked_for_again(
    est: EstServer, box: Box, events: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A typing error in the file beside it, say: mended later, it must not keep the node from its fleet."""
    monkeypatch.setattr("edge.identity.keeper._BEGIN_S", 0.0)
    box.enroll(est.token())
    watched, key = damaged(box)
    watched.refusal = "edge.toml is not valid TOML"
    asyncio.run(watched.keeper.start())
    key.chmod(0o600)
    watched.look(3)
    assert "whole again" in watched.keeper.damage and watched.refusal in watched.alarms.active()[0]["text"]
    watched.refusal = ""
    watched.look(3)
    assert (watched.settings_changed, watched.keeper.damage, watched.codes()) == (1, "", set())

    watched.refusal = "a file is missing"
    est.more = {"fallback": {"url": "http://127.0.0.1:9/v1", "model": ""}}
    box.enroll(est.token("tok2"), force=True)
    watched.look(3)
    assert watched.settings_changed == 1
    assert [vars(event)["reason"] for event in events if vars(event).get("event") == "enrollment_unusable"] == [
        "edge.toml is not valid TOML",
        "a file is missing",
    ]
    watched.refusal = ""
    watched.look(3)
    assert watched.settings_changed == 2


def test_without_a_usable_enrollment_its_settings_are_none(est: EstServer, box: Box) -> None:
    est.more = {"fallback": {"url": "http://127.0.0.1:9/v1", "model": ""}, "mqtt": {"url": "mqtt://127.0.0.1:9"}}
    flags = {"admission.mode": ("fleet", "--set admission.mode")}
    settings = box.enroll(est.token()).identity.directory / "settings.toml"
    whole = standing_of(load(box.home, {}, flags), {})
    assert (whole.damage, whole.keeps) == ("", False) and whole.effective.settings.fleet.url
    for spoilt in (b"", b"[fleet\n", b'[mqtt]\nurl = "carrier pigeon"\n'):
        settings.write_bytes(spoilt)
        bare = standing_of(load(box.home, {}, flags), {})
        assert "makes no sense" in bare.damage and bare.keeps
        found = bare.effective.settings
        assert (found.mqtt.url, found.fleet.url, found.admission.mode) == ("", "", "auto")
    own = {**flags, "fleet.url": ("http://127.0.0.1:8/v1", "--set fleet.url")}
    assert standing_of(load(box.home, {}, own), {}).effective.settings.admission.mode == "fleet"


def test_what_does_not_go_with_a_good_enrollment_is_refused(est: EstServer, box: Box) -> None:
    """To pass over the enrollment for that would be a node that silently is in no fleet."""
    est.more = {"mqtt": {"url": "mqtt://127.0.0.1:9"}}
    box.enroll(est.token())
    with pytest.raises(ConfigurationError, match="mqtt"):
        load(box.home, {}, {"mqtt.ca_file": ("ca.pem", "--set mqtt.ca_file")})


def test_the_operators_own_settings_do_not_lead_to_damaged_files_either(est: EstServer, box: Box) -> None:
    box.enroll(est.token())
    files = {"cert_file": "identity/current/cert.pem", "key_file": "identity/current/key.pem"}
    values = {f"{section}.{name}": file for section in ("mqtt", "fleet") for name, file in files.items()}
    values |= {"mqtt.url": "mqtts://a:1", "mqtt.group": "g", "mqtt.node": "n", "fleet.url": "https://a/v1"}
    flags = {key: (value, "--set") for key, value in values.items()}
    damaged(box)
    bare = standing_of(load(box.home, {}, flags), {})
    found = bare.effective.settings
    assert (found.mqtt.url, found.mqtt.key_file, found.fleet.url, found.fleet.key_file) == ("", None, "", None)
    assert bare.keeps


def test_a_copy_that_followed_the_link_is_put_right_by_the_next_start(est: EstServer, box: Box) -> None:
    directory = box.enroll(est.token()).identity.directory
    current = box.home / "identity" / "current"
    for spoil in (lambda: shutil.copytree(directory, current), lambda: None):
        current.unlink()
        spoil()
        assert begun(load(box.home, {}, {}), {}).damage == ""
        assert box.identity().node == "tok1-1" and current.is_symlink()


@pytest.mark.parametrize(
    ("own", "sends"),
    [({}, False), ({"url": "mqtt://a:1"}, False), ({"url": "mqtt://127.0.0.1:9", "group": "g", "node": "n"}, True)],
)
def test_what_a_damaged_node_tells_is_sent_only_where_the_operator_named_all_of_it(
    est: EstServer, box: Box, own: dict[str, str], sends: bool
) -> None:
    """Under a name that is not its own it would be another node."""
    box.enroll(est.token())
    watched, _ = damaged(box)
    flags = {f"mqtt.{name}": (value, "--set") for name, value in own.items()}
    telemetry = telemetry_of(standing_of(load(box.home, {}, flags), {}), watched.keeper)
    assert telemetry is not None
    telemetry.start({})
    telemetry.stop()
    assert ("is kept" not in telemetry.account()["reason"]) == sends
    with contextlib.closing(sqlite3.connect(box.home / "outbox" / "outbox.db")) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone()[0] >= 2


def test_who_wants_no_telemetry_gets_none_for_a_damage(
    est: EstServer, box: Box, events: list[logging.LogRecord]
) -> None:
    box.enroll(est.token())
    watched, _ = damaged(box)
    assert telemetry_of(standing_of(load(box.home, {}, {"mqtt.url": ("", "--set")}), {}), watched.keeper) is None
    watched.keeper.alarms = None
    asyncio.run(watched.keeper.start())
    watched.look(3)
    assert [vars(event)["event"] for event in events] == ["identity_damaged"]
