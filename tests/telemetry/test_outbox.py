"""The outbox on a real disk: what survives a crash, a full disk, a damaged file, and what gives way when it is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge.errors import ConfigurationError
from edge.telemetry.merging import Outline, groups_at, merge
from edge.telemetry.outboxdisk import FILE
from edge.telemetry.outboxfile import OutboxFile
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.records import Envelope, Record, Sample, payload
from tests.telemetry.conftest import HandClock, NodeSide, small_sample

_S = 1_000_000_000


def records(node: NodeSide) -> list[Record]:
    return [record for _, record in node.outbox.after(0, 1_000_000)]


def gaps(node: NodeSide) -> list[tuple[str, str, int | None, str]]:
    found = [r.body for r in records(node) if r.kind == "gap"]
    return [(b["of"], b["lost"], b["to"], b["reason"]) for b in found]


CRASHING = """
import os, signal, sys
from pathlib import Path
from tests.telemetry.conftest import HandClock, NodeSide, small_sample
node = NodeSide(Path(sys.argv[1]), HandClock())
node.outbox.append_event("start", {})
node.outbox.append_metrics(small_sample(), 15)
node.outbox.append_event("engine_ready", {})
node.outbox.append_metrics(small_sample(), 15)
node.outbox.append_metrics(small_sample(), 15)
print(node.outbox.boot_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_events_and_what_was_before_them_are_there_and_the_rest_is_a_gap(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tmp_path / "o")], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    boot_id = ended.stdout.strip()
    node = NodeSide(tmp_path / "o", HandClock())
    assert [(r.boot_id, r.seq, r.kind) for r in records(node)] == [
        (boot_id, 1, "event"), (boot_id, 2, "metrics"), (boot_id, 3, "event"), (node.outbox.boot_id, 1, "gap"),
    ]  # fmt: skip
    assert gaps(node) == [(boot_id, "4", None, "crash")]
    node.stop()
    again = NodeSide(tmp_path / "o", HandClock())
    assert len(gaps(again)) == 1  # an ordered end is no gap, and an old one is told once
    again.stop()


def test_a_text_that_is_no_text_does_not_stand_in_the_way_of_all_that_comes_after(tmp_path: Path) -> None:
    """A file's name may be any bytes."""
    node = NodeSide(tmp_path / "o", HandClock())
    node.outbox.append_event("engine_ready", {"file": os.fsdecode(b"mod\xe8le.gguf"), "bytes": 1 << 70})
    node.outbox.append_event("engine_down", {})
    assert [r.body["event"] for r in records(node)] == ["engine_ready", "engine_down"]
    assert node.outbox.stats().in_memory == 0
    for record in records(node):
        json.loads(payload(record, Envelope("n", 1, historical=False)))
    node.stop()


def test_metrics_wait_in_memory_and_are_spilled_after_a_while(tmp_path: Path) -> None:
    node = NodeSide(tmp_path / "o", HandClock(), spill_s=0.01)
    node.outbox.append_metrics(small_sample(), 15)
    assert node.outbox.stats().in_memory == 1
    import time

    time.sleep(0.02)
    node.outbox.tick()
    assert node.outbox.stats().in_memory == 0 and len(records(node)) == 1
    node.stop()


def test_acknowledged_metrics_never_touch_the_disk(node: NodeSide) -> None:
    record = node.outbox.append_metrics(small_sample(), 15)
    assert node.outbox.acknowledged(record.boot_id, record.seq)
    assert records(node) == []
    assert not node.outbox.acknowledged(record.boot_id, 99)
    assert not node.outbox.acknowledged("of nobody", 1)


def test_an_acknowledgement_of_an_earlier_boot_reaches_no_further_than_that_boot(tmp_path: Path) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    earlier = [node.outbox.append_event("start", {}) for _ in range(3)]
    node.stop()
    node = NodeSide(tmp_path / "o", HandClock())
    own = node.outbox.append_event("start", {})
    for nonsense in (0, -1, 1 << 40, 1 << 41, 1 << 80):
        assert not node.outbox.acknowledged(earlier[0].boot_id, nonsense)
        node.outbox.append_event("still_there", {})
        node.outbox.spill()
    assert [r.seq for r in records(node) if r.boot_id != own.boot_id] == [1, 2, 3]
    assert node.outbox.acknowledged(earlier[0].boot_id, 9)  # it crashed, perhaps, and what it sent last was not on disk
    node.outbox.spill()
    assert [(r.boot_id, r.seq) for r in records(node)] == [(own.boot_id, seq) for seq in range(1, 7)]
    node.stop()


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    with pytest.raises(ConfigurationError, match="in use"):
        NodeSide(tmp_path / "o", HandClock())
    node.stop()


@pytest.mark.parametrize("how", ["file", "directory", "replaced"])
def test_an_outbox_that_is_removed_while_it_is_open_comes_back_with_all_it_held(tmp_path: Path, how: str) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    boot_id = node.outbox.append_event("start", {}).boot_id
    node.outbox.remember_command("c1", 2e9, "done", 1e9)
    if how == "directory":
        shutil.rmtree(tmp_path / "o")
    elif how == "file":
        (tmp_path / "o" / FILE).unlink()
    else:
        (tmp_path / "other").write_text("something else")
        os.replace(tmp_path / "other", tmp_path / "o" / FILE)
    node.outbox.append_metrics(small_sample(), 15)
    node.outbox.tick()
    assert node.codes() == {"outbox_corrupt"}
    node.outbox.append_event("engine_ready", {})
    assert node.outbox.stats().on_disk and node.outbox.command("c1") == (True, "done")
    with pytest.raises(ConfigurationError, match="in use"):
        NodeSide(tmp_path / "o", HandClock())
    node.stop()
    again = NodeSide(tmp_path / "o", HandClock())
    assert [(r.boot_id, r.seq) for r in records(again)] == [(boot_id, 1), (boot_id, 2), (boot_id, 3)]
    assert {p.name for p in (tmp_path / "o").iterdir() if ".damaged" not in p.name} <= {
        FILE, f"{FILE}-wal", f"{FILE}-shm", "outbox.lock",
    }  # fmt: skip
    again.stop()


def test_a_directory_that_another_process_has_by_now_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    node.outbox.append_event("start", {})
    shutil.rmtree(tmp_path / "o")
    other = NodeSide(tmp_path / "o", HandClock())
    other.outbox.append_event("start", {})
    before = {path.name for path in (tmp_path / "o").iterdir()}
    for _ in range(5):
        node.outbox.append_event("engine_ready", {})
        node.outbox.tick()
        other.outbox.tick()
    assert {path.name for path in (tmp_path / "o").iterdir()} == before and not other.codes()
    assert node.codes() == {"outbox_corrupt"} and len(records(node)) == 6
    assert [getattr(r, "event", "") for r in caplog.records].count("outbox_removed") == 1
    other.stop()
    node.stop()


def test_what_there_is_no_room_to_copy_stays_where_it_can_be_read(tmp_path: Path) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    node.outbox.append_event("start", {})
    shutil.rmtree(tmp_path / "o")
    (tmp_path / "o").write_text("in the way")
    for _ in range(3):
        node.outbox.tick()
    assert node.codes() == {"outbox_corrupt"} and [r.seq for r in records(node)] == [1]
    (tmp_path / "o").unlink()
    node.outbox._disk._place_s = 0.0  # ten seconds later
    node.outbox.tick()
    assert (tmp_path / "o" / FILE).exists() and [r.seq for r in records(node)] == [1]
    node.stop()


def test_a_file_system_without_locks_is_no_second_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    node = NodeSide(tmp_path / "o", HandClock())
    node.outbox.append_event("start", {})
    assert node.outbox.stats().on_disk and not node.codes()
    assert "No locks available" in str([getattr(r, "reason", "") for r in caplog.records])
    node.stop()


def test_a_clock_that_jumps_ahead_and_back_makes_no_command_forgotten(node: NodeSide) -> None:
    node.outbox.remember_command("c1", 1_000_003_000, "done", 1_000_000_000)
    node.outbox.remember_command("c2", 2_000_000_000, "done", 1_999_990_000)
    assert node.outbox.command("c1") == (True, "done")


def test_commands_are_forgotten_long_after_they_expired_and_are_never_too_many(tmp_path: Path) -> None:
    file = OutboxFile(tmp_path / "f", 4 << 20)
    with file.transaction():
        for number in range(1000):
            file.put_command(f"old{number}", 1000.0, "done", 0.0)
        file.put_command("new", 48 * 3600 + 1000.0, "done", 1001.0)
        assert file.command("old0") == (True, "done")  # they expired, but not long ago
        file.put_command("new", 48 * 3600 + 1000.0, "done", 48 * 3600 + 1001.0)
        assert file.command("old0") == (False, None) and file.command("old999") == (True, "done")
        for number in range(6000):
            file.put_command(f"c{number}", 1e12, "done", 48 * 3600 + 1001.0)
        assert file.command("c0") == (False, None) and file.command("c1500") == (True, "done")
    file.close()


def test_when_full_metrics_lose_resolution_and_no_event_goes(tmp_path: Path) -> None:
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock, cap_bytes=4 << 20)
    for number in range(1, 20_001):
        clock.pass_s(15)
        node.outbox.append_metrics(small_sample(float(number % 7 + 1)), 15 * _S)
        if number % 50 == 0:
            node.outbox.append_event("upstream_open", {"number": number, "reason": "x" * 200})
    found = records(node)
    assert sum(r.kind == "event" for r in found) == 400
    assert "outbox_full" in node.codes()
    size = sum(path.stat().st_size for path in (tmp_path / "o").iterdir())
    assert size <= 4 << 20
    covered = Ranges()
    for record in found:
        covered = covered | record.covers | Ranges([(record.seq, record.seq)])
    assert covered == Ranges([(1, node.outbox.newest & ((1 << 40) - 1))])  # nothing was dropped, all is in something
    counted = sum(sum(h[-1][-1]) for r in found if r.kind == "metrics" for h in r.body["h"])
    assert counted == 20_000
    assert max(r.span_ns for r in found) >= 300 * _S
    node.stop()


def test_what_is_dropped_at_last_is_named_in_gaps_and_events_go_last(tmp_path: Path) -> None:
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock, cap_bytes=4 << 20)
    for _ in range(50):
        clock.pass_s(90_000)  # too far apart to be merged
        node.outbox.append_metrics(small_sample(), 15 * _S)
    for number in range(12_000):
        node.outbox.append_event("upstream_open", {"number": number, "reason": "x" * 390})
    found = records(node)
    assert not any(r.kind == "metrics" for r in found)
    lost = Ranges()
    for _, text, _, reason in gaps(node):
        assert reason == "full"
        lost = lost | Ranges.parse(text)
    there = Ranges((r.seq, r.seq) for r in found)
    assert there | lost == Ranges([(1, node.outbox.newest & ((1 << 40) - 1))])
    assert len(there) + len(lost) == len(there | lost)
    assert node.outbox.stats().dropped == {"metrics": 50, "event": len(lost) - 50}
    assert sum(path.stat().st_size for path in (tmp_path / "o").iterdir()) <= 4 << 20
    node.stop()


def sample_of_many() -> Sample:
    """Of some 10 KB, as a node with models on it takes."""
    sample = small_sample()
    for number in range(100):
        labels = (("model", f"m{number}"),)
        sample.counters["edge_count", labels] = sample_value = float(number)
        sample.gauges["edge_gauge", labels] = [sample_value] * 3
    return sample


def test_no_merged_record_stands_for_more_ranges_than_a_sink_takes() -> None:
    outlines = [Outline(1, seq, "metrics", seq * _S, _S, 100, spans=1000) for seq in range(1, 21)]
    groups = groups_at(86_400 * _S, outlines, 1 << 30)
    assert sum(len(group) for group in groups) == 20
    assert max(sum(o.spans + 1 for o in group) for group in groups) <= MOST_SPANS


@pytest.mark.parametrize("by_the_broker", [False, True])
def test_what_was_sent_and_never_acknowledged_gives_way_too_and_no_event_goes(
    tmp_path: Path, by_the_broker: bool
) -> None:
    """A broker that takes everything, and no sink; or one that refuses up/metrics."""
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock, cap_bytes=4 << 20)
    at, events = 0, 0
    for number in range(1, 1201):
        clock.pass_s(15)
        node.outbox.append_metrics(sample_of_many(), 15 * _S)
        if number % 20 == 0:
            node.outbox.append_event("upstream_open", {"number": number})
            events += 1
        for row_id, record in node.outbox.take(at, 100):
            at = row_id
            if by_the_broker and record.kind == "event":
                assert node.outbox.delivered(at, record)
                events -= 1
    node.outbox.spill()
    stats = node.outbox.stats()
    assert "outbox_disk" not in node.codes() and stats.on_disk and stats.in_memory == 0
    assert stats.dropped == {"metrics": 0, "event": 0} and stats.records.get("event", 0) == events
    assert stats.merged > 500
    assert sum(path.stat().st_size for path in (tmp_path / "o").iterdir()) <= 4 << 20
    node.stop()


def test_what_a_session_waits_for_is_merged_after_the_rest(tmp_path: Path) -> None:
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock, cap_bytes=4 << 20)
    for _ in range(100):
        clock.pass_s(15)
        node.outbox.append_metrics(sample_of_many(), 15 * _S)
    sent = [record.seq for _, record in node.outbox.take(0, 20)]
    while not node.outbox.stats().merged:
        clock.pass_s(15)
        node.outbox.append_metrics(sample_of_many(), 15 * _S)
        node.outbox.spill()
    assert [r.seq for r in records(node) if not r.covers][: len(sent)] == sent
    node.stop()


def test_a_late_word_of_the_broker_for_a_part_does_not_delete_the_whole(tmp_path: Path) -> None:
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock, cap_bytes=4 << 20)
    sent: dict[int, Record] = {}
    for _ in range(400):
        clock.pass_s(15)
        record = node.outbox.append_metrics(sample_of_many(), 15 * _S)
        sent[node.outbox.newest] = record
    node.outbox.spill()
    merged = [(i, r) for i, r in node.outbox.after(0, 1000) if r.covers]
    assert merged
    generation = node.outbox.generation
    for row_id, _ in merged:
        assert not node.outbox.delivered(row_id, sent[row_id])
    node.outbox.spill()
    assert [item for item in node.outbox.after(0, 1000) if item[1].covers] == merged
    assert node.outbox.generation > generation  # the session passed it already, and has to come back
    row_id, whole = merged[0]
    assert node.outbox.delivered(row_id, whole)
    assert row_id not in dict(node.outbox.after(0, 1000))
    node.stop()


def test_what_waits_in_memory_for_long_comes_to_a_small_file(tmp_path: Path) -> None:
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock, cap_bytes=4 << 20)
    for _ in range(1000):
        clock.pass_s(3600)
        node.outbox.append_metrics(sample_of_many(), 15 * _S)
    node.outbox.spill()
    stats = node.outbox.stats()
    assert stats.on_disk and stats.in_memory == 0 and "outbox_disk" not in node.codes()
    node.stop()


def test_what_is_too_old_is_dropped_as_a_gap(tmp_path: Path) -> None:
    clock = HandClock()
    node = NodeSide(tmp_path / "o", clock)
    node.outbox.append_event("start", {})
    clock.pass_s(31 * 86_400)
    node.outbox.append_event("stop", {})
    node.outbox.tick()
    assert gaps(node) == [(node.outbox.boot_id, "1", 1, "age")]
    node.stop()


REFUSED_COMMIT = """
import json, sqlite3, sys
from pathlib import Path
import edge.telemetry.outboxdisk as module
from edge.telemetry.outboxfile import OutboxFile
from tests.telemetry.conftest import HandClock, NodeSide, small_sample
module._RETRY_S = 0.0

class Refusing(OutboxFile):
    refuses = False
    def put(self, boot, records):
        super().put(boot, records)
        if Refusing.refuses:  # found out at COMMIT, as a deferred foreign key is
            self._db.execute("INSERT INTO parts VALUES (1)")

module.OutboxFile = Refusing
clock = HandClock()
node = NodeSide(Path(sys.argv[1]), clock)
node.outbox.append_event("start", {})
db = node.outbox._disk.file._db
db.executescript("PRAGMA foreign_keys = ON; CREATE TABLE wholes (id INTEGER PRIMARY KEY);"
    "CREATE TABLE parts (id INTEGER REFERENCES wholes DEFERRABLE INITIALLY DEFERRED)")
clock.pass_s(31 * 86_400)
for _ in range(3):
    node.outbox.append_metrics(small_sample(), 15)
Refusing.refuses = True
node.outbox.tick()
during = [sorted(node.codes()), [r.seq for _, r in node.outbox.after(0, 99)], node.outbox.stats().dropped]
Refusing.refuses = False
node.outbox._aged_s -= 600
node.outbox.tick()
node.outbox.tick()
after = [sorted(node.codes()), [(r.seq, r.kind) for _, r in node.outbox.after(0, 99)], node.outbox.stats().dropped]
node.stop()
print(json.dumps([during, after]))
"""


def test_a_commit_that_fails_while_something_is_dropped_loses_nothing(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", REFUSED_COMMIT, str(tmp_path / "o")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    during, after = json.loads(ended.stdout)
    assert during == [["outbox_disk"], [1, 2, 3, 4], {"metrics": 0, "event": 0}]
    assert after == [[], [[2, "metrics"], [3, "metrics"], [4, "metrics"], [5, "gap"]], {"metrics": 0, "event": 1}]


def test_times_of_an_unset_clock_are_set_right_once_it_is_known(tmp_path: Path) -> None:
    clock = HandClock(wall_s=10.0, mono_s=5.0, synced=False)
    node = NodeSide(tmp_path / "o", clock)
    node.outbox.tick()
    assert "clock_unsynced" in node.codes()
    node.outbox.append_event("start", {})
    assert not records(node)[0].stamp.synced
    clock.pass_s(100)
    clock.wall_s, clock.synced = 1_800_000_100.0, True
    node.outbox.tick()
    assert "clock_unsynced" not in node.codes()
    (record,) = records(node)
    assert record.stamp.synced and record.stamp.wall_ns == 1_800_000_000 * _S
    node.stop()
    clock.kernel_boot, clock.mono_s = "k2", 1.0  # the machine starts again, and still knows
    again = NodeSide(tmp_path / "o", clock)
    assert records(again)[0].stamp.wall_ns == 1_800_000_000 * _S
    again.stop()


@pytest.mark.parametrize("wrong_s", [30.0, 2_090_000_000.0])
def test_counters_began_when_they_did_also_if_the_clock_was_wrong_then(tmp_path: Path, wrong_s: float) -> None:
    clock = HandClock(wall_s=wrong_s, mono_s=20.0, synced=False)
    node = NodeSide(tmp_path / "o", clock)
    began = clock.now()

    def measure() -> None:
        clock.pass_s(15)
        sample = replace(small_sample(), began_ns=began.wall_ns, began_mono_ns=began.mono_ns)
        node.outbox.append_metrics(sample, 15 * _S)

    measure()
    clock.wall_s, clock.synced = 1_800_000_100.0, True
    node.outbox.tick()
    measure()
    measure()
    before = 1_800_000_100 * _S - 15 * _S
    points = [_counter(record) for record in records(node)]
    assert points == [(before, before + 15 * _S * n) for n in (1, 2, 3)]
    (merged,) = [merge(records(node))]
    assert _counter(merged) == points[-1]
    node.stop()


def _counter(record: Record) -> tuple[int, int]:
    """(start, end) of the counter that `small_sample` has."""
    document = json.loads(payload(record, Envelope("n1", 1, False)))
    found = document["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    point = next(metric["sum"]["dataPoints"][0] for metric in found if "sum" in metric)
    return int(point["startTimeUnixNano"]), int(point["timeUnixNano"])


def damage(path: Path, at: int, length: int = 4096) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(os.urandom(length))


@pytest.mark.parametrize("page", [0, 3, 9])
def test_of_a_damaged_file_what_can_be_read_is_saved_and_the_rest_is_a_gap(tmp_path: Path, page: int) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    for number in range(200):
        node.outbox.append_event("upstream_open", {"number": number, "reason": "x" * 300})
    boot_id = node.outbox.boot_id
    node.stop()
    damage(tmp_path / "o" / FILE, page * 4096)
    again = NodeSide(tmp_path / "o", HandClock())
    assert "outbox_corrupt" in again.codes()
    found = records(again)
    there = Ranges((r.seq, r.seq) for r in found if r.boot_id == boot_id)
    missing = Ranges()
    for of, text, _, reason in gaps(again):
        assert (of, reason) == (boot_id, "damage") or reason == "crash"
        missing = missing | Ranges.parse(text) if reason == "damage" else missing
    assert len(there) > 150
    assert (
        there | missing == Ranges([(1, 200)]) or page == 0
    )  # with the first page gone, so may the number of the last be
    told = next(r for r in found if r.body["event"] == "outbox_corrupt")
    assert told.body["fields"]["saved"] == len(there)
    assert len(list((tmp_path / "o").glob("*.damaged-*"))) >= 1
    again.outbox.append_event("start", {})
    again.stop()


def test_a_file_that_is_no_database_at_all_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / FILE).write_text("not a database, " * 1000)
    node = NodeSide(tmp_path / "o", HandClock())
    assert "outbox_corrupt" in node.codes()
    assert node.outbox.append_event("start", {}).seq == len(records(node))
    node.stop()


@pytest.mark.parametrize("body", [b'{"event":', b"[]", b'{"evenu": "start"}'])
def test_a_bit_that_has_turned_over_costs_its_record_and_no_other(tmp_path: Path, body: bytes) -> None:
    """SQLite does not notice: its pages are whole."""
    node = NodeSide(tmp_path / "o", HandClock())
    for number in range(5):
        node.outbox.append_event(f"e{number}", {})
    boot_id = node.outbox.boot_id
    node.stop()
    with contextlib.closing(sqlite3.connect(tmp_path / "o" / FILE)) as db:
        db.execute("UPDATE records SET body = ? WHERE id & 255 = 3", (body,))
        db.commit()
    node = NodeSide(tmp_path / "o", HandClock())
    told = {r.seq: r.body["event"] for r in records(node) if r.boot_id == boot_id}
    told |= {r.seq: r.body["event"] for r in records(node) if r.boot_id == boot_id}
    assert told == {1: "e0", 2: "e1", 4: "e3", 5: "e4"}
    assert (boot_id, "3", 3, "damage") in gaps(node) and node.codes() == {"outbox_corrupt"}
    node.stop()


def test_damage_while_it_runs_loses_nothing_that_can_be_read(tmp_path: Path) -> None:
    node = NodeSide(tmp_path / "o", HandClock())
    for number in range(300):
        node.outbox.append_event("upstream_open", {"number": number, "reason": "x" * 300})
    sqlite3.connect(tmp_path / "o" / FILE).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for page in range(4, 12):
        damage(tmp_path / "o" / FILE, page * 4096)
    os.truncate(tmp_path / "o" / FILE, 20 * 4096)
    for number in range(300, 400):
        node.outbox.append_event("upstream_open", {"number": number, "reason": "x" * 300})
    records(node)
    node.outbox.spill()
    found = records(node)
    missing = Ranges()
    for of, text, _, _ in gaps(node):
        assert of == node.outbox.boot_id
        missing = missing | Ranges.parse(text)
    there = Ranges((r.seq, r.seq) for r in found)
    assert there | missing == Ranges([(1, node.outbox.newest & ((1 << 40) - 1))])
    assert missing
    node.stop()


FULL_DISK = """
import json, sys, time
from pathlib import Path
import edge.telemetry.outboxdisk as module
from tests.telemetry.conftest import HandClock, NodeSide
module._RETRY_S = 0.1
directory, filler = Path(sys.argv[1]) / "o", Path(sys.argv[1]) / "filler"
node = NodeSide(directory, HandClock())
node.outbox.append_event("start", {})
with filler.open("wb", buffering=0) as file:
    try:
        while file.write(bytes(4096)):
            pass
    except OSError:
        pass
for number in range(200):
    node.outbox.append_event("upstream_open", {"number": number, "reason": "x" * 300})
during = [sorted(node.codes()), node.outbox.pending(), node.outbox.stats().on_disk]
filler.unlink()
time.sleep(0.2)
node.outbox.tick()
node.outbox.append_event("stop", {})
after = [sorted(node.codes()), node.outbox.pending(), node.outbox.stats().in_memory]
seqs = [r.seq for _, r in node.outbox.after(0, 1000)]
node.stop()
print(json.dumps([during, after, seqs]))
"""


def test_a_full_disk_is_an_alarm_and_all_comes_to_disk_when_there_is_room(tmp_path: Path) -> None:
    """On a file system of its own, of one MiB, in a mount name space that goes with the process."""
    mount = f'mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec {sys.executable} -c "$CODE" {tmp_path}'
    ended = subprocess.run(
        ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", mount],
        env={**os.environ, "CODE": FULL_DISK}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    during, after, seqs = json.loads(ended.stdout)
    assert "outbox_disk" in during[0] and during[1] == 201
    assert "outbox_disk" not in after[0] and after[1:] == [202, 0]
    assert seqs == list(range(1, 203))
