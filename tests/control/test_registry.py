"""The registry as the sink feeds it, and what is kept how long."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import orjson
import pytest

from bench.fleet_side import FleetSide
from edge.control.database import Database, Node, NodeStatus
from edge.control.nodes import node_row
from edge.control.registry import Registry, TellingSinkFile
from edge.telemetry.mqtt import Message
from tests.control.test_figures import report

EVENT = {"node": "n", "boot_id": "b", "floor": 1, "kind": "event", "time_unix_nano": "1", "event": "e"}


def message(rest: str, document: object, node: str = "n") -> Message:
    return Message(f"edge/v1/default/{node}/up/{rest}", orjson.dumps(document), 1)


def known(fleet: FleetSide) -> Database:
    database = Database(fleet.home.database)
    with database.write() as session:
        session.add(
            Node(
                id="n", label="n", group="default", state="active", key_sha256="0" * 64, token_id=None, created_s=1.0,
                approved_s=1.0, approved_by="t", revoked_s=None, revoked_by=None, not_after_s=2e9,
            )
        )  # fmt: skip
    return database


def status(database: Database) -> NodeStatus | None:
    with database.read() as session:
        return session.get(NodeStatus, "n")


def test_what_was_told_outlives_the_server(own_fleet: FleetSide) -> None:
    database = known(own_fleet)
    registry = Registry(database, lambda: 1000.0)
    registry.start()
    registry.tell(
        [message("state", {"state": "online"}), message("info", {"version": "1"}), message("metrics", report())]
    )
    registry.tell([message("state", {"state": "online"}, node="stranger")])
    registry.stop()
    row = status(database)
    assert row is not None and (row.state, row.last_seen_s) == ("online", 1000.0)
    assert orjson.loads(row.figures)["fallback_rate"] == 0.2
    later = Registry(database, lambda: 2000.0)
    later.start()
    later.tell([message("state", {"state": "online"})])  # retained: the broker says it to each new subscriber
    later.stop()
    row = status(database)
    assert row is not None and row.last_seen_s == 1000.0, "what the broker repeats is no sign of life"
    database.close()


def test_what_is_told_of_the_past_changes_no_figure(own_fleet: FleetSide) -> None:
    database = known(own_fleet)
    registry = Registry(database, lambda: 1000.0)
    registry.start()
    old = report()
    for attribute in old["resourceMetrics"][0]["resource"]["attributes"]:
        if attribute["key"] == "edge.hist":
            attribute["value"] = {"boolValue": True}
    registry.tell([message("metrics", old)])
    registry.stop()
    row = status(database)
    assert row is not None and orjson.loads(row.figures) == {} and row.last_seen_s == 1000.0
    database.close()


def test_nonsense_of_one_node_stops_nothing(own_fleet: FleetSide, tmp_path: Path) -> None:
    database = known(own_fleet)
    registry = Registry(database, lambda: 1000.0)
    registry.start()
    empty, endless = report(), report()
    empty["resourceMetrics"][0]["resource"]["attributes"].append({"key": "a", "value": {}})
    endless["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"][0]["asDouble"] = "inf"
    deep = Message("edge/v1/default/m/up/info", b"[" * 500 + b"]" * 500, 1)
    registry.tell([message("metrics", empty), message("metrics", endless), deep, message("metrics", report())])
    registry.tell(
        [message("metrics", {"resourceMetrics": [{"resource": {"attributes": [{"key": "a", "value": {}}]}}]})]
    )
    registry.stop()
    row = status(database)
    assert row is not None and orjson.loads(row.figures)["requests"] == 50
    database.close()


def test_what_cannot_be_told_on_is_stored_and_acknowledged(tmp_path: Path) -> None:
    def fails(_: list[Message]) -> None:
        raise RuntimeError("no")

    file = TellingSinkFile(tmp_path / "telemetry.db", fails)
    document = {"node": "n", "boot_id": "b", "seq": 1, "floor": 1, "kind": "event", "time_unix_nano": "1", "event": "e"}
    assert file.store([message("events", document)]) == [("edge/v1/default/n/", "b", 1)]
    file.close()


def test_telemetry_leaves_room_on_the_disk_and_goes_on_when_old_records_are_gone(tmp_path: Path) -> None:
    """With a bound that no disk can meet: nothing is acknowledged, until there is room in the file itself."""
    large = [
        message("events", {**EVENT, "seq": number, "fields": {"x": "y" * 30_000}}) for number in range(1, 300)
    ]  # fmt: skip
    file = TellingSinkFile(tmp_path / "telemetry.db", lambda _: None)
    assert file.store(large) == [("edge/v1/default/n/", "b", 299)]
    file.close()
    full = TellingSinkFile(tmp_path / "telemetry.db", lambda _: None, keep_free_bytes=1 << 62)
    next_one = [message("events", {**EVENT, "seq": 300})]
    with pytest.raises(sqlite3.OperationalError, match="keep_days"):
        full.store(next_one)
    full.forget(time.time() + 1, 1000)
    assert full.store(next_one) == [("edge/v1/default/n/", "b", 300)]
    full.close()


def test_what_a_node_tells_is_text_or_nothing(own_fleet: FleetSide) -> None:
    database = known(own_fleet)
    registry = Registry(database, lambda: 1000.0)
    for version, model in ((5, ["x"]), ("\x1b]0;owned\x07" + "9" * 5000, "tiny\x1b[2J")):
        registry.tell([message("info", {"version": version, "model": model})])
        registry._flush()
        with database.read() as session:
            row = node_row(session, "n")
        assert row is not None
        done = own_fleet.cli("nodes")
        assert done.returncode == 0 and "\x1b" not in done.stdout and "\x07" not in done.stdout, done.stderr
        if version == 5:
            assert (row.version, row.models) == (None, [])
        else:
            assert row.models == ["tiny[2J"] and row.version is not None
            assert row.version.startswith("]0;owned9") and len(row.version) == 100
    database.close()


def test_old_records_are_dropped_and_stay_acknowledged(tmp_path: Path) -> None:
    told: list[Message] = []

    def event(seq: int) -> Message:
        document = {
            "node": "n", "boot_id": "b", "seq": seq, "floor": 1, "kind": "event", "time_unix_nano": "1", "event": "e",
            "fields": {},
        }  # fmt: skip
        return message("events", document)

    file = TellingSinkFile(tmp_path / "telemetry.db", told.extend)
    assert file.store([event(1), event(2)]) == [("edge/v1/default/n/", "b", 2)]
    assert file.forget(time.time() - 60, 10) == 0, "not old"
    assert file.forget(time.time() + 60, 1) == 1, "the oldest first"
    assert file.store([event(3)]) == [("edge/v1/default/n/", "b", 3)]
    file.close()
    brief = TellingSinkFile(tmp_path / "telemetry.db", told.extend, keep_s=1e-9)
    assert brief.store([event(4)]) == [("edge/v1/default/n/", "b", 4)]
    brief.close()
    with sqlite3.connect(tmp_path / "telemetry.db") as db:
        assert db.execute("SELECT COUNT(*) FROM records").fetchone() == (0,)
    assert len(told) == 4
