"""The uplink against a real mosquitto: TLS with client certificates, an access list, a relay that spoils the way."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest
import trustme

from bench.broker import ACCESS, Broker, Relay
from bench.est_authority import Authority, now
from edge.telemetry.mqtt import BrokerAddress, Connection, ConnectionFailed, Handlers, Message
from tests.telemetry.conftest import PREFIX, HandClock, NodeSide, SinkSide, small_sample
from tests.waiting import until


def next_packet(stream: BinaryIO) -> tuple[int, bytes]:
    """The kind of an MQTT packet and what follows its head, however its bytes come; kind 0 at the end."""
    head = stream.read(1)
    if not head:
        return 0, b""
    length = shift = 0
    while True:
        byte = stream.read(1)[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return head[0] >> 4, stream.read(length)


class Listener:
    """A client of the fleet that hears everything."""

    def __init__(self, broker: Broker, topic: str = "edge/v1/#") -> None:
        self.heard: list[Message] = []
        self._stop = threading.Event()
        self.connection = Connection(broker.address("fleet", client_id="ear"), Handlers(self.heard.append))
        self.connection.open()
        self.connection.subscribe(topic)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(ConnectionFailed):  # the broker ends before it
            while not self._stop.is_set():
                self.connection.turn(0.05)

    def last(self, topic: str) -> Any:
        found = [m for m in self.heard if m.topic == topic]
        return orjson.loads(found[-1].payload) if found else None

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.connection.close()


def test_what_a_sink_acknowledges_leaves_the_outbox(node: NodeSide, broker: Broker, sink: SinkSide) -> None:
    node.outbox.append_event("engine_ready", {"seconds": 1.5})
    node.outbox.append_metrics(small_sample(), 15_000_000_000)
    node.connect(broker.address("n1"))
    until(lambda: node.outbox.pending() == 0)
    node.outbox.append_event("stop", {})
    until(lambda: node.outbox.pending() == 0)
    assert sink.rows() == [(1,), (2,), (3,)]
    assert not node.codes()


def test_without_a_sink_records_stay_and_an_alarm_says_so(node: NodeSide, broker: Broker) -> None:
    node.outbox.append_event("start", {})
    node.connect(broker.address("n1"), no_ack_alarm_s=0.5)
    until(lambda: "no_acknowledgement" in node.codes())
    assert node.outbox.pending() == 1


def test_the_brokers_word_suffices_in_mode_puback(node: NodeSide, broker: Broker) -> None:
    for number in range(30):
        node.outbox.append_event("start", {"number": number})
    node.connect(broker.address("n1"), ack="puback")
    until(lambda: node.outbox.pending() == 0)


def test_version_3_1_1_works_too(node: NodeSide, broker: Broker, sink: SinkSide) -> None:
    node.outbox.append_event("start", {})
    node.connect(replace(broker.address("n1"), version_5=False))
    until(lambda: node.outbox.pending() == 0)
    assert sink.rows() == [(1,)]


def test_a_password_is_read_from_its_file_and_never_logged(
    node: NodeSide, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = ConnectOnly()
    (tmp_path / "password").write_text("open sesame\n")
    address = BrokerAddress(f"mqtt://127.0.0.1:{heard.port}", "n1", "robot", tmp_path / "password")
    uplink = node.connect(address)
    until(lambda: "uplink_refused" in node.codes())
    assert b"robot" in heard.packet and b"open sesame" in heard.packet
    assert "open sesame" not in caplog.text + uplink.last_failure + str(node.alarms.active())


class ConnectOnly:
    """Takes one CONNECT packet and refuses it: bad user name or password."""

    def __init__(self) -> None:
        self.packet = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            near, _ = self._listener.accept()
            _, self.packet = next_packet(near.makefile("rb"))
            near.sendall(bytes([0x20, 3, 0, 0x86, 0]))
            near.close()


def test_a_refused_topic_is_kept_reported_and_sent_once_it_is_allowed(
    node: NodeSide, broker: Broker, sink: SinkSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.allow(ACCESS.replace("%u/up/#", "%u/up/state"))
    broker.reload()
    monkeypatch.setattr("edge.telemetry.session._REFUSED_S", 1.0)
    node.outbox.append_event("engine_down", {})
    node.connect(broker.address("n1"))
    until(lambda: "uplink_refused" in node.codes())
    assert node.outbox.pending() == 1
    broker.allow(ACCESS)
    broker.reload()
    until(lambda: node.outbox.pending() == 0)
    until(lambda: "uplink_refused" not in node.codes())
    assert sink.rows() == [(1,)]


def test_state_is_retained_and_the_will_says_offline(node: NodeSide, broker: Broker) -> None:
    relay = Relay(broker.port)
    node.connect(broker.address("n1", port=relay.port))
    ear = Listener(broker)
    until(lambda: (ear.last(f"{PREFIX}up/state") or {}).get("state") == "online")
    until(lambda: ear.last(f"{PREFIX}up/info"))
    node.presence.change(draining=True)
    until(lambda: ear.last(f"{PREFIX}up/state")["state"] == "draining")
    relay.mode = "refuse"
    relay.reset()
    until(lambda: ear.last(f"{PREFIX}up/state")["state"] == "offline")
    relay.mode = "open"
    until(lambda: ear.last(f"{PREFIX}up/state")["state"] == "draining")
    node.uplink.stop(5)  # type: ignore[union-attr]
    until(lambda: ear.last(f"{PREFIX}up/state")["state"] == "offline")
    ear.close()
    relay.close()


def test_a_link_that_swallows_everything_is_noticed_and_nothing_is_lost(
    node: NodeSide, broker: Broker, sink: SinkSide
) -> None:
    relay = Relay(broker.port)
    uplink = node.connect(broker.address("n1", port=relay.port), silence_s=1.0)
    until(lambda: uplink.connected)
    relay.mode = "black hole"
    for number in range(20):
        node.outbox.append_event("start", {"number": number})
    until(lambda: not uplink.connected)
    relay.mode = "open"
    until(lambda: node.outbox.pending() == 0)
    assert sink.rows() == [(n,) for n in range(1, 21)]
    relay.close()


def test_after_an_outage_live_data_overtakes_the_backlog(node: NodeSide, broker: Broker, sink: SinkSide) -> None:
    for number in range(300):  # five minutes'
        node.outbox.append_event("start", {"number": number})
    uplink = node.connect(broker.address("n1"), backlog_per_s=1.0)
    until(lambda: uplink.connected)
    node.outbox.append_event("engine_down", {})
    until(lambda: {(1,), (301,)} <= set(sink.rows()))
    assert node.outbox.pending() > 20
    rows = sink.rows("SELECT seq, payload FROM records")
    historical = {seq: orjson.loads(payload)["hist"] for seq, payload in rows}
    assert historical[1] and not historical[301]


class MuteBroker:
    """Takes a connection, names its Receive Maximum, and acknowledges nothing. Counts PUBLISH packets."""

    def __init__(self, receive_maximum: int) -> None:
        self.publishes = 0
        self._greeting = bytes([0x20, 6, 0, 0, 3, 0x21]) + receive_maximum.to_bytes(2, "big")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        near, _ = self._listener.accept()
        stream = near.makefile("rb")
        while kind := next_packet(stream)[0]:
            if kind == 1:
                near.sendall(self._greeting)
            self.publishes += kind == 3


@pytest.mark.parametrize(("receive_maximum", "expected"), [(100, 10), (4, 4)])
def test_no_more_publishes_wait_than_ten_or_what_the_broker_takes(
    node: NodeSide, receive_maximum: int, expected: int
) -> None:
    mute = MuteBroker(receive_maximum)
    for number in range(50):
        node.outbox.append_event("start", {"number": number})
    uplink = node.connect(BrokerAddress(f"mqtt://127.0.0.1:{mute.port}", "n1"), silence_s=300.0, resend_s=300.0)
    until(lambda: uplink.connected)
    for number in range(50):
        node.outbox.append_event("start", {"number": number})
    until(lambda: mute.publishes >= expected)
    time.sleep(1.0)  # more would come now
    assert mute.publishes == expected


def test_missing_certificate_files_are_an_alarm_that_ends_when_they_are_there(
    node: NodeSide, broker: Broker, tmp_path: Path
) -> None:
    address = broker.address("n1")
    pem = tmp_path / "late.pem"
    uplink = node.connect(replace(address, cert_file=pem, key_file=pem))
    until(lambda: "uplink_tls" in node.codes())
    assert str(pem) in node.alarms.active()[0]["text"]
    pem.write_bytes(broker.identity("n1").read_bytes())
    until(lambda: uplink.connected)
    until(lambda: "uplink_tls" not in node.codes())


def test_a_renewed_certificate_is_taken_up_without_a_restart_and_without_an_alarm(
    node: NodeSide, broker: Broker, sink: SinkSide, tmp_path: Path
) -> None:
    pem = tmp_path / "node.pem"
    pem.write_bytes(broker.identity("n1").read_bytes())
    uplink = node.connect(replace(broker.address("n1"), cert_file=pem, key_file=pem))
    until(lambda: uplink.connected)
    broker.identity("n1").unlink()
    pem.write_bytes(broker.identity("n1").read_bytes())
    before = broker.connections()
    uplink.begin_anew()
    until(lambda: broker.connections() > before)
    node.outbox.append_event("start", {"after": "renewal"})
    until(lambda: not node.outbox.pending())
    assert node.codes() == set()


def test_dates_of_the_brokers_certificate_count_unless_the_clock_is_not_believed(
    tmp_path: Path, node: NodeSide
) -> None:
    authority = Authority()

    def certify(place: Path) -> None:
        authority.trusted_pem(place / "ca.pem")
        authority.server_pem(place / "broker.pem", "localhost", begins=now() - timedelta(days=900), days=30)

    place = tmp_path / "broker"
    place.mkdir()
    broker = Broker(place, certify=certify)
    broker.start()
    try:
        pem = authority.client_pem(tmp_path / "n1.pem", "n1")
        believed = [True]
        address = BrokerAddress(
            f"mqtts://localhost:{broker.port}", "n1", ca_file=place / "ca.pem", cert_file=pem, key_file=pem,
            check_dates=lambda: believed[0],
        )  # fmt: skip
        uplink = node.connect(address)
        until(lambda: "expired" in uplink.last_failure)
        believed[0] = False
        until(lambda: uplink.connected)
    finally:
        broker.kill()


def test_a_certificate_of_a_stranger_is_refused(node: NodeSide, broker: Broker, tmp_path: Path) -> None:
    pem = tmp_path / "stranger.pem"
    trustme.CA().issue_cert(common_name="n1").private_key_and_cert_chain_pem.write_to_path(pem)
    uplink = node.connect(replace(broker.address("n1"), cert_file=pem, key_file=pem))
    until(lambda: uplink.last_failure)
    assert not uplink.connected


def test_a_dead_name_and_a_dead_broker_are_an_alarm_after_a_while(node: NodeSide, broker: Broker) -> None:
    address = replace(broker.address("n1"), url="mqtts://no-such-host.invalid:8883")
    uplink = node.connect(address, down_alarm_s=0.1)
    until(lambda: "uplink_down" in node.codes())
    assert "no-such-host.invalid" in uplink.last_failure


def test_two_nodes_of_one_name_are_told_so(tmp_path: Path, broker: Broker) -> None:
    sides = [NodeSide(tmp_path / name, HandClock()) for name in ("a", "b")]
    for side in sides:
        side.connect(broker.address("n1"))
    # mosquitto 2.0.11 ends the older session without a word; a broker that keeps to MQTT 5 says why.
    until(lambda: any(side.codes() & {"node_name_taken", "uplink_unstable"} for side in sides))
    for side in sides:
        side.stop()


def test_a_link_that_drops_each_session_does_not_accuse_another_node(node: NodeSide, broker: Broker) -> None:
    relay = Relay(broker.port)
    uplink = node.connect(broker.address("n1", port=relay.port))

    def cut() -> set[str]:
        if uplink.connected:
            relay.reset()
        return node.codes()

    assert until(cut) == {"uplink_unstable"}
    relay.close()


def test_a_sink_whose_database_is_locked_waits_and_goes_on(
    node: NodeSide, broker: Broker, sink: SinkSide, caplog: pytest.LogCaptureFixture
) -> None:
    node.connect(broker.address("n1"))
    sink.sink._file._db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(sink.path, timeout=60, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    node.outbox.append_event("start", {})

    def told(name: str) -> list[Any]:
        return [r for r in caplog.records if getattr(r, "event", "") == name]

    with caplog.at_level("INFO"):
        until(lambda: told("sink_locked"))
        other.execute("ROLLBACK")
        other.close()
        until(lambda: node.outbox.pending() == 0)
        until(lambda: told("sink_unlocked"))
    assert sink.rows() == [(1,)] and sink.sink.connected.is_set()
    assert len(told("sink_locked")) == len(told("sink_unlocked")) == 1


def test_acknowledgements_that_make_no_sense_delete_nothing_and_end_no_session(
    node: NodeSide, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    boot = node.outbox.append_event("start", {}).boot_id
    uplink = node.connect(broker.address("n1"))
    until(lambda: uplink.connected)
    fleet = Connection(broker.address("fleet", client_id="liar"), Handlers())
    fleet.open()
    numbers = ("true", '"1"', "1.0", "1e400", str(1 << 80), "null")
    told = [f'{{"boot_id": "{boot}", "seq": {number}}}' for number in numbers]
    for text in (*told, '{"boot_id": 5, "seq": 1}', "[]"):
        fleet.publish(f"{PREFIX}down/ack", text.encode())
        fleet.turn(0.1)
    until(lambda: sum(getattr(r, "event", "") == "uplink_nonsense" for r in caplog.records) == len(told) + 2)
    assert node.outbox.pending() == 1 and uplink.connected
    fleet.close()


def test_a_client_id_with_slashes_is_one_that_the_broker_takes(node: NodeSide, broker: Broker, sink: SinkSide) -> None:
    node.outbox.append_event("start", {})
    node.connect(broker.address("n1", client_id="edge/plant-7/1"))
    until(lambda: node.outbox.pending() == 0)
    assert sink.rows() == [(1,)]


def test_a_killed_broker_costs_nothing(node: NodeSide, broker: Broker, sink: SinkSide) -> None:
    node.connect(broker.address("n1"))
    for round_ in range(3):
        for number in range(20):
            node.outbox.append_event("start", {"number": number, "round": round_})
        broker.kill()
        broker.start()
    until(lambda: node.outbox.pending() == 0, 60)
    assert sink.rows() == [(n,) for n in range(1, 61)]
