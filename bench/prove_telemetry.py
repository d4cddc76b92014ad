"""What nodes tell arrives, whatever is killed, cut off, refused, full or damaged.

`python -m bench.prove_telemetry kills fullkills blackhole deadsink refused serving histograms --out FILE`. The broker is a real
mosquitto with TLS, client certificates and an access list; the sink is `edge fleet sink`. Each part prints its figures and
whether what is promised held; the exit status is 1 if something did not. `serving` needs root, for a file system of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson

from bench import servers
from bench.broker import ACCESS, Broker, Relay
from bench.held import Held, chosen, parser, prove, until
from bench.telemetry_node import INTERVAL_S, S, sample_of, trial_node
from edge.telemetry.histogram import Histogram, merged
from edge.telemetry.ranges import Ranges

MODEL = Path("models/builtin/edge-builtin-q4_0.gguf")
MIB = 1 << 20
TOLERANCE = 0.05


class SinkProcess:
    """`edge fleet sink` in a process of its own."""

    def __init__(self, broker: Broker, home: Path, port: int) -> None:
        self.db = home / "sink.db"
        pem = str(broker.identity("fleet"))
        self._command = [sys.executable, "-m", "edge", "fleet", "sink", "--url", f"mqtts://localhost:{port}"]
        self._command += ["--ca", str(broker.home / "ca.pem"), "--cert", pem, "--key", pem, "--db", str(self.db)]
        self._log = home / "sink.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def said(self) -> str:
        """The last lines of its log."""
        return self._log.read_text()[-3000:]

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Of its database, empty while there is none."""
        with contextlib.closing(sqlite3.connect(self.db, timeout=30)) as db:
            try:
                return db.execute(query, values).fetchall()
            except sqlite3.OperationalError:
                return []


@contextlib.contextmanager
def fleet_side(access: str = ACCESS) -> Iterator[tuple[Path, Broker, Relay, SinkProcess]]:
    """A broker, a relay that the sink connects through, and the sink."""
    with tempfile.TemporaryDirectory() as text:
        home = Path(text)
        broker = Broker(home, access=access)
        broker.start()
        relay = Relay(broker.port)
        sink = SinkProcess(broker, home, relay.port)
        sink.start()
        try:
            yield home, broker, relay, sink
        except BaseException:
            print(sink.said(), (home / "broker.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            sink.kill()
            broker.kill()
            relay.close()


# --- parts ------------------------------------------------------------------------------------------------------------


class NodeProcess:
    """`bench.telemetry_node`, to be killed and started again."""

    def __init__(
        self,
        home: Path,
        broker: Broker,
        cap_bytes: int,
        *,
        port: int = 0,
        event_share: float = 0.3,
        turn_s: float = 0.03,
    ) -> None:
        self.journal = home / "journal"
        self.journal.touch()
        self._config = {
            "journal": str(self.journal), "directory": str(home / "outbox"), "name": "n1", "cap_bytes": cap_bytes,
            "url": f"mqtts://localhost:{port or broker.port}", "ca": str(home / "ca.pem"), "pem": str(broker.identity("n1")),
            "event_share": event_share, "turn_s": turn_s,
        }  # fmt: skip
        self._log = home / "node.log"
        self._starts = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, and wait until it has made something."""
        before = self.journal.stat().st_size
        self._starts += 1
        config = json.dumps({**self._config, "wall_s": 1_800_000_000.0 + 100_000 * self._starts})
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.telemetry_node", config], stdout=log, stderr=log
            )
        until(
            lambda: self.journal.stat().st_size > before, 60, f"the node makes nothing: {self._log.read_text()[-2000:]}"
        )

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def taken(self) -> list[tuple[str, str, int, str]]:
        """(kind, boot, seq, uid) of all that the outbox took."""
        lines = (line.split() for line in self.journal.read_text().splitlines())
        return [(line[0], line[1], int(line[2]), line[3]) for line in lines if len(line) == 4]


def kills(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """Node, broker and sink are killed at random moments; the sink is slow."""
    draw = random.Random(a.seed)
    with fleet_side() as (home, broker, relay, sink):
        relay.delay_s = 0.02
        node = NodeProcess(home, broker, 64 * MIB)
        node.start()
        victims = ["node"] * a.kills + ["broker"] * a.kills + ["sink"] * (a.kills // 4)
        draw.shuffle(victims)
        for victim in victims:
            time.sleep(draw.uniform(0.1, 2.0))
            if victim == "node":
                node.kill()
                node.start()
            elif victim == "broker":
                broker.kill()
                time.sleep(draw.uniform(0.0, 0.5))
                broker.start()
            else:
                sink.kill()
                sink.start()
        assert node.process is not None
        begun_s = time.monotonic()
        node.process.send_signal(signal.SIGUSR1)
        ended = node.process.wait(240)
        took_s = time.monotonic() - begun_s
        found = _compare(node, sink)
    held.check("after the kills, all was acknowledged", ended, ended == 0)
    held.check("events that the sink does not have", found["events missing"], found["events missing"] == 0)
    held.check("events that the sink has twice", found["events twice"], found["events twice"] == 0)
    held.check("sequence numbers that nothing accounts for", found["unaccounted"], found["unaccounted"] == 0)
    return {"killed": dict(Counter(victims)), **found, "until all was acknowledged, s": round(took_s, 1)}


def fullkills(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """The link is away, the outbox small and full, and the node is killed while it merges, again and again."""
    draw = random.Random(a.seed)
    with fleet_side() as (home, broker, _, sink):
        relay = Relay(broker.port)
        relay.mode = "black hole"
        node = NodeProcess(home, broker, 4 * MIB, port=relay.port, event_share=0.02, turn_s=0.0)
        node.start()
        for _round in range(a.kills // 2):
            time.sleep(draw.uniform(1.0, 4.0))
            node.kill()
            node.start()
        assert node.process is not None
        node.process.send_signal(signal.SIGUSR1)
        relay.mode = "open"
        relay.reset()
        ended = node.process.wait(400)
        relay.close()
        found = _compare(node, sink)
        counted = sum(
            int(point["count"])
            for (payload,) in sink.rows("SELECT payload FROM records WHERE kind = 'metrics' AND NOT superseded")
            for point in _points(orjson.loads(payload))
        )
        covered = _intervals(sink)
        twice = sink.rows("SELECT COUNT(*) FROM records WHERE superseded")[0][0]
    held.check("full outbox, killed: all was acknowledged", ended, ended == 0)
    held.check(
        "full outbox, killed: events that the sink does not have", found["events missing"], found["events missing"] == 0
    )
    held.check("full outbox, killed: sequence numbers unaccounted for", found["unaccounted"], found["unaccounted"] == 0)
    held.check("full outbox, killed: records that were merged", covered, covered > 2 * found["records at the sink"])
    held.check("latencies counted twice or not at all", counted - covered, counted == covered)
    return {**found, "metrics that came, merged or not": covered, "superseded": twice, "latencies counted": counted}


def _intervals(sink: SinkProcess) -> int:
    """How many intervals the sink's metrics stand for."""
    found: dict[str, Ranges] = {}
    query = (
        "SELECT boot_id, seq, seq FROM records WHERE kind = 'metrics' UNION ALL SELECT boot_id, first, last FROM merged"
    )
    for boot, first, last in sink.rows(query):
        found.setdefault(boot, Ranges()).add(first, last)
    return sum(len(ranges) for ranges in found.values())


def _compare(node: NodeProcess, sink: SinkProcess) -> dict[str, Any]:
    """What the node's outbox took beside what the sink has."""
    taken = node.taken()
    stored = {(boot, seq): payload for boot, seq, payload in sink.rows("SELECT boot_id, seq, payload FROM records")}
    uids: Counter[str] = Counter()
    for payload in stored.values():
        document = orjson.loads(payload)
        if document.get("event") == "trial":
            uids[document["fields"]["uid"]] += 1
    events = [(boot, seq, uid) for kind, boot, seq, uid in taken if kind == "event"]
    missing = [uid for boot, seq, uid in events if (boot, seq) not in stored or uids[uid] < 1]
    accounted: dict[str, Ranges] = {}
    for boot, seq in stored:
        accounted.setdefault(boot, Ranges()).add(seq)
    in_records = sum(len(r) for r in accounted.values())
    for table in ("merged", "gaps"):
        for boot, first, last in sink.rows(f"SELECT boot_id, first, last FROM {table}"):
            accounted.setdefault(boot, Ranges()).add(first, (1 << 39) if last is None else last)
    highest: dict[str, int] = {}
    for _, boot, seq, _ in taken:
        highest[boot] = max(seq, highest.get(boot, 0))
    unaccounted = sum(
        1 for boot, last in highest.items() for seq in range(1, last + 1) if seq not in accounted.get(boot, Ranges())
    )
    in_gaps = sum(1 for kind, boot, seq, _ in taken if kind == "metrics" and (boot, seq) not in stored)
    return {
        "boots": len(highest), "events": len(events), "metrics": len(taken) - len(events), "records at the sink": in_records,
        "events missing": len(missing), "events twice": sum(count > 1 for count in uids.values()), "unaccounted": unaccounted,
        "metrics merged or in a gap": in_gaps, "gaps": len(sink.rows("SELECT 1 FROM gaps")),
    }  # fmt: skip


def blackhole(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """The link swallows everything for seven days, with a small outbox; then it is there again, and life goes on."""
    with fleet_side() as (home, broker, _, sink):
        relay = Relay(broker.port)
        relay.mode = "black hole"
        cap_bytes = a.outbox_mib * MIB
        node = trial_node(home / "outbox", "n1", broker.address("n1", port=relay.port), cap_bytes)
        intervals, events, largest = 7 * 86_400 // INTERVAL_S, 0, 0
        draw = random.Random(a.seed)
        for number in range(1, intervals + 1):
            node.clock.pass_s(INTERVAL_S)
            node.outbox.append_metrics(
                sample_of([draw.lognormvariate(-3, 1) for _ in range(8)], number), INTERVAL_S * S
            )
            if number % 40 == 0:
                events += 1
                node.outbox.append_event("trial", {"uid": f"dark-{events}", "reason": "x" * 200})
            if number % 50 == 0:
                node.outbox.tick()
                largest = max(largest, sum(p.stat().st_size for p in (home / "outbox").iterdir()))
        node.outbox.spill()
        before = node.outbox.stats()
        alarms = [alarm["code"] for alarm in node.alarms.active()]
        relay.mode = "open"
        relay.reset()
        begun_s, sent_s = time.monotonic(), {}
        until(lambda: node.uplink.connected, 60, "no session")
        live = 0
        while node.outbox.pending() > 5 and time.monotonic() - begun_s < a.recovery_s:
            live += 1
            sent_s[f"live-{live}"] = time.time()
            node.clock.pass_s(1)
            node.outbox.append_event("trial", {"uid": f"live-{live}"})
            node.outbox.tick()
            time.sleep(0.2)
        until(lambda: node.outbox.pending() == 0, 60, "the backlog does not end")
        took_s = time.monotonic() - begun_s
        delays_s, dark, counted, spans = _recovered(sink, sent_s)
        node.uplink.stop(5)
        node.outbox.close()
        relay.close()
    held.check("most that the outbox took, MiB", largest / MIB, largest <= cap_bytes)
    held.check("events of the dark days that are missing", events - dark, dark == events)
    held.check("latencies that the merged histograms lack", 8 * intervals - counted, counted == 8 * intervals)
    held.check("metrics came back coarser: longest interval, s", max(spans), max(spans) > INTERVAL_S)
    held.check("greatest delay of live data while the backlog is sent, s", max(delays_s), max(delays_s) <= 5.0)
    return {
        "simulated days": 7, "outbox MiB": a.outbox_mib, "intervals": intervals, "events": events, "live": live,
        "records before the link was back": before.records, "merged": before.merged, "dropped": before.dropped,
        "alarms": alarms, "recovery, s": round(took_s, 1), "live delay p50, s": round(sorted(delays_s)[len(delays_s) // 2], 3),
        "live delay max, s": round(max(delays_s), 3), "metrics records": len(spans),
        "intervals, s": dict(Counter(spans).most_common(6)),
    }  # fmt: skip


def deadsink(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """For days the broker takes all that is sent, and nobody acknowledges it; then there is a sink again."""
    with fleet_side() as (home, broker, _, sink):
        sink.kill()
        node = trial_node(home / "outbox", "n1", broker.address("n1"), a.outbox_mib * MIB)
        until(lambda: node.uplink.connected, 60, "no session")
        intervals, events, largest, seen = a.dead_days * 86_400 // INTERVAL_S, 0, 0, set[str]()
        for number in range(1, intervals + 1):
            node.clock.pass_s(INTERVAL_S)
            node.outbox.append_metrics(sample_of([0.05] * 8, number), INTERVAL_S * S)
            if number % 20 == 0:
                events += 1
                node.outbox.append_event("trial", {"uid": f"dark-{events}", "reason": "x" * 200})
            if number % 50 == 0:
                node.outbox.tick()
                largest = max(largest, sum(p.stat().st_size for p in (home / "outbox").iterdir()))
                seen |= {alarm["code"] for alarm in node.alarms.active()}
                time.sleep(0.1)  # for the session
        node.outbox.spill()
        before = node.outbox.stats()
        begun_s = time.monotonic()
        sink.start()
        while node.outbox.pending() and time.monotonic() - begun_s < a.recovery_s:
            node.outbox.tick()
            time.sleep(0.1)
        left, took_s = node.outbox.pending(), time.monotonic() - begun_s
        _, dark, counted, spans = _recovered(sink, {})
        superseded = sink.rows("SELECT COUNT(*) FROM records WHERE superseded")[0][0]
        node.uplink.stop(5)
        node.outbox.close()
    held.check("dead sink: most that the outbox took, MiB", largest / MIB, largest <= a.outbox_mib * MIB)
    held.check("dead sink: records in memory alone", before.in_memory, before.in_memory == 0)
    held.check("dead sink: the disk is blamed", "outbox_disk" in seen, "outbox_disk" not in seen)
    held.check("dead sink: it was full, and merged", before.merged, before.merged > 0 and "outbox_full" in seen)
    held.check("dead sink: not acknowledged in the end", left, left == 0)
    held.check("dead sink: events that are missing", events - dark, dark == events)
    lacking = 8 * intervals - counted
    held.check("dead sink: latencies that are missing, or there twice", lacking, lacking == 0)
    return {
        "simulated days": a.dead_days, "outbox MiB": a.outbox_mib, "intervals": intervals, "events": events,
        "records before the sink was back": before.records, "merged": before.merged, "dropped": before.dropped,
        "alarms": sorted(seen), "recovery, s": round(took_s, 1), "metrics records": len(spans), "superseded": superseded,
    }  # fmt: skip


def _recovered(sink: SinkProcess, sent_s: dict[str, float]) -> tuple[list[float], int, int, list[int]]:
    """(delays of live events, events of the dark days, latencies counted, lengths of intervals) as the sink has them."""
    delays_s, dark, counted, spans = [], set(), 0, []
    for received, payload in sink.rows("SELECT received, payload FROM records WHERE NOT superseded"):
        document = orjson.loads(payload)
        uid = document.get("fields", {}).get("uid", "")
        if uid in sent_s:
            delays_s.append(received - sent_s[uid])
        elif uid:
            dark.add(uid)
        for point in _points(document):
            counted += int(point["count"])
            spans.append(round((int(point["timeUnixNano"]) - int(point["startTimeUnixNano"])) / S))
    return delays_s, len(dark), counted, spans


def _points(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in document.get("resourceMetrics", ()):
        for scope in resource["scopeMetrics"]:
            for metric in scope["metrics"]:
                yield from metric.get("exponentialHistogram", {}).get("dataPoints", ())


def refused(_: argparse.Namespace, held: Held) -> dict[str, Any]:
    """The broker's access list forbids a topic: kept, reported, an alarm; sent when it is allowed."""
    allowed = "".join(f"pattern write edge/v1/+/%u/up/{topic}\n" for topic in ("state", "info", "metrics"))
    with fleet_side(ACCESS.replace("pattern write edge/v1/+/%u/up/#\n", allowed)) as (home, broker, _relay, sink):
        node = trial_node(home / "outbox", "n1", broker.address("n1"), 8 * MIB)
        event = node.outbox.append_event("trial", {"uid": "refused"})
        until(lambda: any(x["code"] == "uplink_refused" for x in node.alarms.active()), 30, "no alarm")
        metrics = node.outbox.append_metrics(sample_of([0.1], 1), INTERVAL_S * S)
        query = "SELECT seq FROM records WHERE boot_id = ?"
        until(lambda: (metrics.seq,) in sink.rows(query, event.boot_id), 30, "metrics were allowed, and did not come")
        kept, text = node.outbox.pending(), node.alarms.active()[0]["text"]
        broker.allow(ACCESS)
        broker.reload()
        until(lambda: node.outbox.pending() == 0, 120, "the event was not sent although it is allowed now")
        still = [x["code"] for x in node.alarms.active()]
        there = sink.rows(query, event.boot_id)
        node.uplink.stop(5)
        node.outbox.close()
    held.check("a refused event is kept, others go on", kept, kept == 2)
    held.check("it came when it was allowed", len(there), (event.seq,) in there)
    held.check("alarms afterwards", len(still), not still)
    return {"alarm": text}


def serving(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """A real node: broker dead, then its disk full, then its outbox damaged. It answers all the time."""
    with tempfile.TemporaryDirectory() as text, fleet_side() as (home, broker, _, sink):
        small = Path(text) / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=True)
        try:
            return _served(small, home, broker, sink, a, held)
        finally:
            subprocess.run(["umount", "-l", str(small)], check=False)


def _served(
    small: Path, home: Path, broker: Broker, sink: SinkProcess, a: argparse.Namespace, held: Held
) -> dict[str, Any]:
    pem = str(broker.identity("n1"))
    env = {
        "EDGE_MQTT__URL": f"mqtts://localhost:{broker.port}", "EDGE_MQTT__NODE": "n1", "EDGE_MQTT__CA_FILE": str(home / "ca.pem"),
        "EDGE_MQTT__CERT_FILE": pem, "EDGE_MQTT__KEY_FILE": pem, "EDGE_MQTT__INTERVAL_S": "1", "EDGE_MQTT__OUTBOX_MIB": "8",
        "EDGE_MQTT__BACKOFF_MAX_S": "1", "EDGE_MQTT__SPILL_S": "1", "EDGE_MQTT__TRUST_CLOCK": "true",
    }  # fmt: skip
    said: dict[str, Any] = {}
    broker.kill()
    node_home = small / "home"
    options: dict[str, Any] = {"slots": 2, "context_tokens": 512, "threads": a.threads, "home": node_home, "env": env}
    with servers.edge(MODEL, **options) as server:
        base = server.url.removesuffix("/v1")
        said["broker dead"] = _answers(server, 3)
        with (small / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(bytes(4096)):
                pass
        said["disk full"] = _answers(server, 20)
        until(lambda: "outbox_disk" in _alarms(base), 30, "no alarm although the disk is full")
        (small / "filler").unlink()
        until(lambda: "outbox_disk" not in _alarms(base), 30, "the alarm does not end")
        until(lambda: _load(base)["outbox"]["records"].get("metrics", 0) >= 15, 60, "the outbox does not fill")
        os.kill(server.pid, signal.SIGKILL)
    _damage(node_home / "outbox" / "outbox.db")
    with servers.edge(MODEL, **options) as server:
        base = server.url.removesuffix("/v1")
        said["outbox damaged"] = _answers(server, 5)
        until(lambda: "outbox_corrupt" in _alarms(base), 60, "no alarm although the outbox is damaged")
        broker.start()
        until(lambda: _load(base)["outbox"]["connected"], 60, "no session with the broker")
        told = "SELECT 1 FROM records WHERE kind = 'event' AND instr(CAST(payload AS TEXT), 'outbox_corrupt')"
        until(lambda: sink.rows(told), 120, "the sink is not told")
        until(lambda: sum(_load(base)["outbox"]["records"].values()) < 10, 90, "the outbox does not empty")
    gaps = sink.rows("SELECT first, last, reason FROM gaps")
    names = Counter(
        orjson.loads(p).get("event") for (p,) in sink.rows("SELECT payload FROM records WHERE kind != 'metrics'")
    )
    total, good = sum(t for t, _ in said.values()), sum(g for _, g in said.values())
    held.check("answers while broker, disk and outbox failed", good / total, good == total)
    held.check("damage is told: event", names["outbox_corrupt"], names["outbox_corrupt"] >= 1)
    return {
        "answers": {k: f"{g} of {t}" for k, (t, g) in said.items()},
        "events at the sink": dict(names),
        "gaps": len(gaps),
    }


def _damage(outbox: Path) -> None:
    """Every third page but the first two becomes noise."""
    with contextlib.closing(sqlite3.connect(outbox)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with outbox.open("r+b") as file:
        for page in range(3, os.path.getsize(outbox) // 4096, 3):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


def _answers(server: servers.Server, count: int) -> tuple[int, int]:
    body = {"model": server.model, "messages": [{"role": "user", "content": "Start pump 3."}], "max_tokens": 8}
    good = 0
    for _ in range(count):
        answer = httpx.post(f"{server.url}/chat/completions", json=body, timeout=30, trust_env=False)
        good += answer.status_code == httpx.codes.OK
        time.sleep(0.3)
    return count, good


def _load(base: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{base}/edge/v1/load", trust_env=False).json()
    return found


def _alarms(base: str) -> list[str]:
    return [alarm["code"] for alarm in _load(base)["alarms"]]


def histograms(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """Fifty nodes, each with latencies of its own kind, over the broker to the sink; merged there."""
    draw = random.Random(a.seed)
    exact: list[float] = []
    with fleet_side() as (home, broker, _, sink):
        for number in range(50):
            name = f"h{number}"
            node = trial_node(home / name, name, broker.address(name), 8 * MIB)
            middle, width = draw.uniform(-5, 0), draw.uniform(0.2, 1.5)
            for interval in range(4):
                values = [draw.lognormvariate(middle, width) for _ in range(500)]
                exact += values
                node.outbox.append_metrics(sample_of(values, interval), INTERVAL_S * S)
            until(lambda box=node.outbox: box.pending() == 0, 30, "not acknowledged")  # type: ignore[misc]
            node.uplink.stop(5)
            node.outbox.close()
        payloads = sink.rows("SELECT payload FROM records WHERE kind = 'metrics' AND NOT superseded")
    whole = merged(Histogram.from_otlp(point) for (p,) in payloads for point in _points(orjson.loads(p)))
    exact.sort()
    result: dict[str, Any] = {"nodes": 50, "values": len(exact), "scale": whole.scale, "buckets": len(whole.buckets)}
    held.check("latencies that the merged histogram lacks", len(exact) - whole.count, whole.count == len(exact))
    for share in (0.5, 0.99):
        true = exact[math.ceil(share * len(exact)) - 1]
        error = whole.quantile(share) / true - 1
        result[f"p{share * 100:g}"] = {"exact, s": round(true, 5), "merged, s": round(whole.quantile(share), 5)}
        held.check(f"error of the merged p{share * 100:g}", error, abs(error) <= TOLERANCE)
    return result


PARTS = {
    "kills": kills,
    "fullkills": fullkills,
    "blackhole": blackhole,
    "deadsink": deadsink,
    "refused": refused,
    "serving": serving,
    "histograms": histograms,
}


def main() -> int:
    """Command line."""
    given = parser(__doc__, tuple(PARTS))
    given.add_argument("--kills", type=int, default=20, help="of the node, and of the broker")
    given.add_argument("--outbox-mib", type=int, default=4, help="the outbox's cap in `blackhole` and `deadsink`")
    given.add_argument("--dead-days", type=int, default=4, help="how long `deadsink` has no sink")
    given.add_argument("--recovery-s", type=float, default=300.0, help="longest time that the backlog is given")
    given.add_argument("--threads", type=int, default=1)
    given.add_argument("--seed", type=int, default=4)
    a = given.parse_args()
    parts = {name: partial(PARTS[name], a) for name in chosen(given, a, tuple(PARTS))}
    return prove(parts, {"seed": a.seed}, a.out)


if __name__ == "__main__":
    sys.exit(main())
