"""The reference sink's file: once each, whatever comes twice, merged, or never."""

from __future__ import annotations

import random
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from edge.errors import ConfigurationError
from edge.telemetry.merging import merge
from edge.telemetry.mqtt import BrokerAddress, Message
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.records import LARGEST_BYTES, Envelope, Record, event_body, gap_body, payload
from edge.telemetry.sink import Sink
from edge.telemetry.sinkfile import SinkFile
from edge.telemetry.stamp import Stamp
from tests.telemetry.conftest import PREFIX, small_sample
from tests.waiting import until

_S = 1_000_000_000


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SinkFile]:
    found = SinkFile(tmp_path / "s.db")
    yield found
    found.close()


def stamp(seq: int) -> Stamp:
    return Stamp((1_800_000_000 + 15 * seq) * _S, 15 * seq * _S, "k", True)


def metrics(seq: int) -> Record:
    return Record("b1", seq, "metrics", stamp(seq), small_sample().packed(), 15 * _S)


def event(seq: int) -> Record:
    return Record("b1", seq, "event", stamp(seq), event_body("start", {}))


def sent(record: Record, floor: int = 1, node: str = "n1") -> Message:
    topic = "up/metrics" if record.kind == "metrics" else "up/events"
    return Message(PREFIX + topic, payload(record, Envelope(node, floor, False)), 0)


def rows(tmp_path: Path, query: str) -> list[Any]:
    db = sqlite3.connect(tmp_path / "s.db")
    found = db.execute(query).fetchall()
    db.close()
    return found


def test_it_acknowledges_what_is_contiguous(file: SinkFile) -> None:
    assert file.store([sent(event(1)), sent(event(2))]) == [(PREFIX, "b1", 2)]
    assert file.store([sent(event(4))]) == [(PREFIX, "b1", 2)]
    assert file.store([sent(event(3))]) == [(PREFIX, "b1", 4)]
    assert file.store([sent(event(3))]) == [(PREFIX, "b1", 4)]
    assert (file.counts.stored, file.counts.repeated) == (4, 1)


def test_a_new_sink_does_not_wait_for_what_was_settled_before(file: SinkFile) -> None:
    assert file.store([sent(event(101), floor=101)]) == [(PREFIX, "b1", 101)]


def test_a_merged_record_replaces_its_parts_whichever_came_first(file: SinkFile, tmp_path: Path) -> None:
    parts = [metrics(1), metrics(2), metrics(4)]
    file.store([sent(parts[0])])
    assert file.store([sent(merge(parts))]) == [(PREFIX, "b1", 2)]
    file.store([sent(parts[1]), sent(event(3))])
    assert rows(tmp_path, "SELECT seq, superseded FROM records ORDER BY seq") == [(1, 1), (2, 1), (3, 0), (4, 0)]


def counted(tmp_path: Path, boot_id: str = "b1") -> int:
    """How many observations the sink's histograms hold of one boot."""
    found = 0
    for (data,) in rows(
        tmp_path, f"SELECT payload FROM records WHERE boot_id = '{boot_id}' AND kind = 'metrics' AND NOT superseded"
    ):
        for metric in orjson.loads(data)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]:
            for point in metric.get("exponentialHistogram", {}).get("dataPoints", ()):
                found += int(point["count"])
    return found


def test_whatever_order_parts_and_what_they_became_come_in_each_interval_counts_once(
    file: SinkFile, tmp_path: Path
) -> None:
    """Acknowledgements were lost, so that parts come, and records that they were merged into, step by step."""
    for chance in range(200):
        choice = random.Random(chance)
        parts = [replace(metrics(seq), boot_id=f"b{chance}") for seq in range(1, 5)]
        pairs = [merge(parts[:2]), merge(parts[2:])]
        told = [*parts, *pairs, merge(pairs)]
        # The last is sent until it is acknowledged; of the others any may be lost, or come twice.
        coming = [r for r in told[:-1] for _ in range(choice.choice((0, 1, 2)))] + [told[-1]]
        choice.shuffle(coming)
        assert file.store([sent(record) for record in coming]) == [(PREFIX, f"b{chance}", 4)]
        assert counted(tmp_path, f"b{chance}") == 4, [(r.seq, str(r.covers)) for r in coming]


def test_a_merged_record_takes_the_place_of_its_last_part(file: SinkFile, tmp_path: Path) -> None:
    parts = [metrics(1), metrics(2)]
    assert file.store([sent(parts[1])]) == []  # the first was lost, and is only in the merged one now
    assert file.store([sent(merge(parts))]) == [(PREFIX, "b1", 2)]
    file.store([sent(parts[1])])
    assert rows(tmp_path, "SELECT seq, covers, superseded FROM records") == [(2, "1", 0)]
    assert counted(tmp_path) == 2


def test_gaps_are_kept_and_let_the_rest_be_acknowledged(file: SinkFile, tmp_path: Path) -> None:
    file.store([sent(event(1)), sent(event(4))])
    gap = Record("b2", 1, "gap", stamp(9), gap_body("b1", Ranges([(2, 3)]), "full"))
    assert sorted(file.store([sent(gap)])) == [(PREFIX, "b1", 4), (PREFIX, "b2", 1)]
    assert rows(tmp_path, "SELECT boot_id, first, last, reason FROM gaps") == [("b1", 2, 3, "full")]


def test_nonsense_and_borrowed_names_are_not_stored(file: SinkFile, tmp_path: Path) -> None:
    file.store([Message(PREFIX + "up/events", b"{", 0), sent(event(1), node="n2"), Message("other", b"x", 0)])
    assert rows(tmp_path, "SELECT * FROM records") == []
    assert file.counts.nonsense == 2


def _told(**more: object) -> bytes:
    fields = {"edge.node": "n1", "edge.boot_id": "b9", "edge.seq": "1", "edge.floor": "1", **more}
    attributes = [{"key": key, "value": {"stringValue": value}} for key, value in fields.items()]
    attributes += [{"key": "empty", "value": {}}] if "empty" in more else []
    resource = {"resource": {"attributes": attributes}, "scopeMetrics": [{"metrics": []}]}
    return orjson.dumps({"resourceMetrics": [resource]})


@pytest.mark.parametrize(
    "document",
    [
        _told(empty="x"),
        _told(**{"edge.seq": "1" + "0" * 30}),
        _told(**{"edge.covers": "2-9" + "0" * 30}),
        _told(**{"edge.boot_id": {"a": 1}}),
        _told(**{"edge.boot_id": "b" * 10_000}),
        b"[]",
        b"5",
        b"[" * 100_000,
    ],
)
def test_one_message_of_nonsense_stops_nothing(file: SinkFile, tmp_path: Path, document: bytes) -> None:
    bad = Message(PREFIX + "up/metrics", document, 0)
    assert file.store([bad, sent(event(1)), bad]) == [(PREFIX, "b1", 1)]
    assert file.counts.nonsense == 2 and rows(tmp_path, "SELECT seq FROM records") == [(1,)]


def test_what_the_database_cannot_hold_costs_itself_alone(file: SinkFile, tmp_path: Path) -> None:
    bad = Message("edge/\ud800/up/state", b"1", 0)
    assert file.store([sent(event(1)), bad, sent(event(2))])[-1] == (PREFIX, "b1", 2)
    assert file.counts.nonsense == 1 and rows(tmp_path, "SELECT seq FROM records") == [(1,), (2,)]


def test_another_level_of_the_topic_is_no_nodes_name(tmp_path: Path) -> None:
    exact = SinkFile(tmp_path / "s.db", node_level=3)
    others = [
        Message("edge/v1/default/n1/up/events", sent(event(1), node=name).payload, 0) for name in ("default", "v1")
    ]
    assert exact.store(others) == [] and exact.counts.nonsense == 2
    own = Message("edge/v1/default/n1/up/events", sent(event(1)).payload, 0)
    assert exact.store([own]) == [("edge/v1/default/n1/", "b1", 1)]
    exact.close()


def test_state_is_kept_as_it_was_said_last(file: SinkFile, tmp_path: Path) -> None:
    file.store([Message(PREFIX + "up/state", b"1", 0), Message(PREFIX + "up/state", b"2", 0)])
    assert rows(tmp_path, "SELECT topic, payload FROM retained") == [(PREFIX + "up/state", b"2")]


def test_a_node_that_names_endless_ranges_is_told_of_once_and_costs_the_others_nothing(
    file: SinkFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sparse = [replace(event(400_001), covers=Ranges((n, n) for n in range(2, 2 * MOST_SPANS + 4, 2)))]
    for seq in range(10**5, 10**6, 10**5):
        sparse.append(replace(event(seq), covers=Ranges((n, n) for n in range(seq - 8000, seq, 2))))
    huge = Message(PREFIX + "up/events", b" " * (LARGEST_BYTES + 1), 0)
    file.store([huge, *(sent(record) for record in sparse)])
    file.store([huge, sent(event(1), node="n1")])
    assert (
        file.counts.nonsense == 3 + 5
    )  # what was too large, one of too many ranges, and those that made too many of all
    assert len([r for r in caplog.records if getattr(r, "event", "") == "sink_nonsense"]) == 1
    ((settled,),) = rows(tmp_path, "SELECT ranges FROM settled")
    assert settled.count(",") <= 4 * MOST_SPANS


def test_what_was_dropped_by_age_is_not_new_when_it_comes_once_more(file: SinkFile, tmp_path: Path) -> None:
    parts = [metrics(seq) for seq in range(1, 5)]
    whole = merge(parts[:2])
    file.store([sent(parts[0]), sent(whole), sent(parts[2])])
    assert file.forget(time.time() + 60, 1000) == 3
    assert rows(tmp_path, "SELECT * FROM merged") == []
    assert file.store([sent(r) for r in (*parts[:3], whole)]) == [(PREFIX, "b1", 3)]
    assert rows(tmp_path, "SELECT * FROM records") == []
    assert file.store([sent(merge(parts[2:]))]) == [(PREFIX, "b1", 4)]  # a part of it was not here yet
    assert counted(tmp_path) == 2


def test_of_a_boot_that_is_long_over_nothing_is_left(file: SinkFile, tmp_path: Path) -> None:
    file.store([sent(merge([metrics(1), metrics(2)]))])
    file.forget(time.time() + 60, 1000)
    file.forget(time.time() + 60, 1000)
    assert rows(tmp_path, "SELECT ranges FROM settled") == [("1-2",)]
    file.forget(time.time() + 366 * 86_400, 1000)
    for table in ("records", "merged", "settled", "forgotten", "gaps"):
        assert rows(tmp_path, f"SELECT * FROM {table}") == []
    assert file.store([sent(metrics(3), floor=3)]) == [(PREFIX, "b1", 3)]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("not a database" * 100)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        SinkFile(tmp_path / "x")


class StrictBroker:
    """Speaks MQTT 5 with one client, as far as a sink needs it: takes at most 10 messages at once, hands it 60 nodes' events, and
    acknowledges each of the sink's only when the next batch is due."""

    LIMIT, NODES = 10, 60

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.most, self.topics = 0, set[str]()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        near, _ = self._listener.accept()
        waiting: list[bytes] = []
        while True:
            near.settimeout(0.2)  # for the look alone: what is sent may take as long as the other side reads
            try:
                head = near.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                near.settimeout(None)
                if len(waiting) < self.LIMIT and len(self.topics) < self.NODES:
                    continue  # a sink on a busy machine is not done with this batch
                for packet in waiting:  # nothing more comes of its own accord
                    near.sendall(b"\x40\x02" + packet)
                waiting = []
                continue
            except OSError:
                return
            if not head:
                return
            near.settimeout(None)
            kind, length, shift = near.recv(1)[0] >> 4, 0, 0
            while True:
                byte = near.recv(1)[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    break
            body = near.recv(length, socket.MSG_WAITALL) if length else b""
            if kind == 1:
                near.sendall(b"\x20\x06\x00\x00\x03\x21" + self.LIMIT.to_bytes(2, "big"))
            elif kind == 8:
                near.sendall(b"\x90\x04" + body[:2] + b"\x00\x01")
                for number in range(1, self.NODES + 1):
                    near.sendall(self._event(number))
            elif kind == 3:
                size = int.from_bytes(body[:2], "big")
                self.topics.add(body[2 : 2 + size].decode())
                waiting.append(body[2 + size : 4 + size])
                self.most = max(self.most, len(waiting))

    def _event(self, number: int) -> bytes:
        topic = f"edge/v1/default/n{number}/up/events".encode()
        data = sent(event(1), node=f"n{number}").payload
        body = len(topic).to_bytes(2, "big") + topic + number.to_bytes(2, "big") + b"\0" + data
        return b"\x32" + bytes([len(body) & 0x7F | 0x80, len(body) >> 7]) + body


def test_a_broker_that_takes_few_messages_at_once_gets_few_and_in_the_end_all(file: SinkFile) -> None:
    broker, stop = StrictBroker(), threading.Event()
    sink = Sink(BrokerAddress(f"mqtt://127.0.0.1:{broker.port}", "s"), "edge/v1/+/+/", file)
    thread = threading.Thread(target=sink.run, args=(stop,))
    thread.start()
    try:
        until(lambda: len(broker.topics) == broker.NODES)
    finally:
        stop.set()
        thread.join()
    assert broker.most == broker.LIMIT
