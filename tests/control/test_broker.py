"""What the written broker configuration lets nodes do, and how soon a revocation holds: real mosquitto, real certificates."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.fleet_side import Box, FleetSide
from edge.telemetry.mqtt import NOT_AUTHORIZED, Connection, ConnectionFailed, Handlers, Message
from tests.control.conftest import NewBox, let_in
from tests.waiting import until


class Client:
    """One MQTT session of a box, with what came back."""

    def __init__(self, box: Box, *, version_5: bool = True) -> None:
        self.codes: dict[int, int] = {}
        self.refused: dict[str, int] = {}
        self.messages: list[Message] = []
        handlers = Handlers(self.messages.append, self.codes.__setitem__, self.refused.__setitem__)
        self.connection = Connection(box.address(version_5=version_5), handlers)
        self.connection.open()

    def publish(self, topic: str, payload: bytes = b"{}") -> int:
        """The reason code."""
        number = self.connection.publish(topic, payload)
        give_up_s = time.monotonic() + 120
        while number not in self.codes:
            assert time.monotonic() < give_up_s
            self.connection.turn(0.05)
        return self.codes[number]

    def until_the_end(self, topic: str) -> None:
        """Publish until the broker ends the session. How soon that is `make prove-enroll` measures."""
        give_up_s = time.monotonic() + 60
        with pytest.raises(ConnectionFailed):
            while time.monotonic() < give_up_s:
                self.publish(topic)

    def turn(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.connection.turn(0.05)


@pytest.fixture
def box(fleet: FleetSide, new_box: NewBox) -> Iterator[Box]:
    found = new_box("speaks")
    assert found.enroll(fleet.token(group="hall-b")).status_code == 200
    let_in(found)
    yield found


def test_a_node_writes_and_reads_its_own_topics_and_no_others(fleet: FleetSide, box: Box, new_box: NewBox) -> None:
    client = Client(box)
    assert client.publish(f"edge/v1/hall-b/{box.name}/up/events") == 0
    for topic in (
        f"edge/v1/other/{box.name}/up/events", "edge/v1/hall-b/another/up/events", f"edge/v1/hall-b/{box.name}/down/ack",
        f"edge/v1/hall-b/{box.name}/down/cmd/x", "anything",
    ):  # fmt: skip
        assert client.publish(topic) == NOT_AUTHORIZED, topic
    other = new_box("other")
    other.enroll(fleet.token(group="hall-b"))
    let_in(other)
    client.connection.subscribe(f"edge/v1/hall-b/{other.name}/up/#", "edge/v1/#", "#")
    client.turn(0.3)
    speaker = Client(other)
    assert speaker.publish(f"edge/v1/hall-b/{other.name}/up/events", b"secret") == 0
    client.turn(0.5)
    assert client.messages == []


def test_a_node_cannot_take_anothers_session(fleet: FleetSide, box: Box, new_box: NewBox) -> None:
    client = Client(box)
    thief = new_box("thief")
    thief.enroll(fleet.token())
    let_in(thief)
    taken = Connection(thief.address(client_id=box.name), Handlers())
    taken.open()
    client.turn(0.5)
    assert client.publish(f"edge/v1/hall-b/{box.name}/up/events") == 0
    taken.close()


def test_who_has_no_certificate_of_ours_does_not_connect(
    fleet: FleetSide, box: Box, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = FleetSide(tmp_path_factory.mktemp("foreign") / "other")
    tls = other.home.tls
    box.cert_file.write_bytes((tls / "fleet-sink.pem").read_bytes())
    box.key_file.write_bytes((tls / "fleet-sink.key").read_bytes())
    with pytest.raises(ConnectionFailed):
        Client(box)


@pytest.mark.parametrize("by", ["the command", "the API"])
def test_a_revoked_node_is_cut_off_at_once_and_stays_out(fleet: FleetSide, box: Box, by: str) -> None:
    client = Client(box)
    topic = f"edge/v1/hall-b/{box.name}/up/events"
    assert client.publish(topic) == 0
    if by == "the API":
        with fleet.people() as people:

            def revoke() -> dict[str, Any]:
                done: dict[str, Any] = people.post(f"/fleet/v1/nodes/{box.name}/revoke").json()
                return done

            assert revoke()["node"]["state"] == "revoked"
            until(lambda: revoke()["enforced"])  # it answers after some seconds also if that takes longer
    else:
        assert fleet.cli("revoke", box.name).returncode == 0
    client.until_the_end(topic)
    with pytest.raises(ConnectionFailed):
        Client(box)
    assert box.renew().status_code == 403 and box.renew().headers["edge-reason"] == "node_revoked"
    assert box.bootstrap().status_code == 403


def test_a_broker_that_starts_later_knows_who_was_revoked(own_fleet: FleetSide, tmp_path: object) -> None:
    own_fleet.start()
    box = Box(own_fleet.home.root / "box", own_fleet, "b")
    box.enroll(own_fleet.token())
    own_fleet.kill()
    assert own_fleet.cli("revoke", "b").returncode == 0
    own_fleet.start_broker()
    with pytest.raises(ConnectionFailed):
        Client(box)


def test_a_reload_that_was_cut_off_is_made_up_for(own_fleet: FleetSide) -> None:
    """Killed after the list was written and before the broker was told: the mark is there, and the next server tells it."""
    own_fleet.start()
    own_fleet.start_broker()
    box = Box(own_fleet.home.root / "box", own_fleet, "b")
    box.enroll(own_fleet.token())
    box.bootstrap()
    client = Client(box)
    own_fleet.stop()
    pid_file = own_fleet.home.broker / "mosquitto.pid"
    pid = pid_file.read_text()
    own_fleet.set('broker.reload_command = ["false"]')
    done = own_fleet.cli("revoke", "b")
    assert done.returncode == 1 and "could not be told" in done.stderr
    assert (own_fleet.home.broker / ".untold").exists() and pid_file.read_text() == pid
    own_fleet.set("broker.reload_command = []")
    own_fleet.start()
    until(lambda: not (own_fleet.home.broker / ".untold").exists())
    client.until_the_end(f"edge/v1/default/{box.name}/up/events")


def test_a_pid_file_that_names_no_broker_is_no_success(own_fleet: FleetSide) -> None:
    """As it is when the broker runs in a container, with numbers of its own."""
    own_fleet.start()
    Box(own_fleet.home.root / "box", own_fleet, "b").enroll(own_fleet.token())
    own_fleet.stop()
    pid_file = own_fleet.home.broker / "mosquitto.pid"
    for text in (str(os.getpid()), "", str(2**22 + 1)):
        pid_file.write_text(text)
        done = own_fleet.cli("revoke", "b")
        assert done.returncode == 1 and "[broker] reload_command" in done.stderr, text
        assert (own_fleet.home.broker / ".untold").exists()
    pid_file.unlink()
    assert own_fleet.cli("revoke", "b").returncode == 0, "a broker that does not run reads its lists when it starts"
    assert not (own_fleet.home.broker / ".untold").exists()


def test_the_page_knows_what_a_node_told(fleet: FleetSide, box: Box) -> None:
    client = Client(box)
    prefix = f"edge/v1/hall-b/{box.name}/up"
    state = {"node": box.name, "boot_id": "b1", "state": "online"}
    info = {"node": box.name, "boot_id": "b1", "version": "1.2.3", "model": "tiny", "cores": 4}
    client.publish(f"{prefix}/state", json.dumps(state).encode())
    client.publish(f"{prefix}/info", json.dumps(info).encode())
    row = until(lambda: (r := fleet.node(box.name))["health"] == "online" and r["version"] and r)
    assert (row["version"], row["models"], row["info"]["cores"]) == ("1.2.3", ["tiny"], 4)
    assert row["last_seen_s"] == pytest.approx(time.time(), abs=60) and row["slo_attainment"] is None


def test_nonsense_on_a_nodes_topics_harms_nobody(fleet: FleetSide, box: Box) -> None:
    client = Client(box)
    prefix = f"edge/v1/hall-b/{box.name}/up"
    for rest in ("state", "info", "metrics", "events"):
        for payload in (b"", b"\xff\xfe", b"[]", b"null", b'{"state": 7}', b'{"resourceMetrics": []}', b"x" * 100_000):
            client.publish(f"{prefix}/{rest}", payload)
    client.publish(f"{prefix}/state", json.dumps({"node": box.name, "boot_id": "b", "state": "draining"}).encode())
    until(lambda: fleet.node(box.name)["health"] == "draining")
