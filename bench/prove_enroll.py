"""A fleet of simulated nodes enrolls and reports; revocations are timed; the server is killed while boxes come in.

`python -m bench.prove_enroll storm revoke kills steps --out FILE`. Server, broker and sink are the real ones (`edge fleet serve`,
mosquitto with the configuration that was written for it), all on this machine. Nodes are threads that speak EST, fetch their
bootstrap and report through the node's own outbox and uplink. Each part prints its figures and whether what is promised held; the
exit status is 1 if something did not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from bench.dying_server import deaths, died, start_dying
from bench.fleet_side import Box, FleetSide
from bench.held import Held, chosen, parser, prove, until
from bench.telemetry_node import sample_of
from edge.control.database import Database, Node, NodeStatus
from edge.identity.wire import Bootstrap
from edge.telemetry.alarms import Alarms
from edge.telemetry.clock import SystemClock
from edge.telemetry.mqtt import NOT_AUTHORIZED, Connection, ConnectionFailed, Handlers
from edge.telemetry.node import NodePresence
from edge.telemetry.outbox import Outbox, OutboxLimits
from edge.telemetry.session import UplinkConfig
from edge.telemetry.uplink import Uplink

MIB = 1 << 20
S = 1_000_000_000
SOON_S = 5.0


@contextlib.contextmanager
def fleet_side(*, serve: bool = True) -> Iterator[tuple[Path, FleetSide]]:
    """A fleet, and a directory for its boxes."""
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        fleet = FleetSide(root / "fleet")
        fleet.start_broker()
        if serve:
            fleet.start()
        try:
            yield root, fleet
        except BaseException:
            print(fleet.log.read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            fleet.end()


class Reporter:
    """A node after its enrollment: the real outbox and uplink."""

    def __init__(self, box: Box, told: Bootstrap) -> None:
        assert told.mqtt is not None
        self.name = told.node
        alarms, clock = Alarms(), SystemClock(trusted=True)
        self._outbox = Outbox(box.directory / "outbox", OutboxLimits(4 * MIB, 86_400, 3600), clock, alarms)
        self._outbox.open()
        presence = NodePresence(told.node, self._outbox.boot_id)
        presence.change(facts={"model": "trial"})
        prefix = told.mqtt.prefix.replace("{group}", told.group).replace("{node}", told.node)
        self._uplink = Uplink(
            self._outbox, alarms, UplinkConfig(box.address(), prefix, told.node, "sink", 10_000.0, 5.0), presence
        )
        self._uplink.start()

    def report(self, number: int) -> None:
        """One interval's metrics and an event."""
        self._outbox.append_metrics(sample_of([0.01, 0.02, 0.03], number), S)
        self._outbox.append_event("trial", {"number": number})
        self._outbox.tick()

    def pending(self) -> int:
        """What is not yet acknowledged."""
        return self._outbox.pending()

    def stop(self) -> None:
        """End it."""
        self._uplink.stop(5)
        self._outbox.close()


def storm(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """All boxes enroll at once, then report; the page is asked meanwhile, and with 5,000 nodes."""
    with fleet_side() as (root, fleet):
        token = fleet.token(uses=a.nodes, label="node")
        boxes = [Box(root / "boxes" / f"b{n}", fleet) for n in range(a.nodes)]
        with ThreadPoolExecutor(a.at_once) as pool:
            begun_s = time.monotonic()
            enrolled = list(pool.map(lambda box: _timed(lambda: box.enroll(token).status_code), boxes))
            enroll_s = time.monotonic() - begun_s
            begun_s = time.monotonic()
            told = list(pool.map(lambda box: Bootstrap.model_validate(box.bootstrap().json()), boxes))
            bootstrap_s = time.monotonic() - begun_s
            begun_s = time.monotonic()
            reporters = list(pool.map(Reporter, boxes, told))
        page = _Page(fleet)
        for number in range(a.reports):
            for reporter in reporters:
                reporter.report(number)
        until(lambda: sum(r.pending() for r in reporters) == 0, 300, "what nodes told is not acknowledged")
        report_s = time.monotonic() - begun_s
        records = _count(fleet, "SELECT COUNT(*) FROM records")
        twice = _count(
            fleet, "SELECT COUNT(*) FROM (SELECT 1 FROM records GROUP BY node, boot_id, seq HAVING COUNT(*) > 1)"
        )
        shown = until(lambda: page.online() == a.nodes and page.online(), 30, "the page does not show all nodes")
        page.stop()
        for reporter in reporters:
            reporter.stop()
        crowd = _crowd(fleet, a.crowd)
    times_s = sorted(seconds for _, seconds in enrolled)
    held.check("boxes that were refused", sum(c != 200 for c, _ in enrolled), all(c == 200 for c, _ in enrolled))
    held.check("identities", len({t.node for t in told}), len({t.node for t in told}) == a.nodes)
    held.check("records that came", records, records >= 2 * a.nodes * a.reports)
    held.check("records that are there twice", twice, twice == 0)
    held.check("nodes that the page shows as online", shown, shown == a.nodes)
    return {
        "nodes": a.nodes, "at once": a.at_once, "enrollments per second": round(a.nodes / enroll_s, 1),
        "enrollment p50, ms": round(1000 * statistics.median(times_s), 1), "enrollment max, ms": round(1000 * times_s[-1], 1),
        "bootstraps per second": round(a.nodes / bootstrap_s, 1), "records": records,
        "records per second": round(records / report_s, 1), "page while they report": page.figures(), **crowd,
    }  # fmt: skip


class _Page:
    """Asks what the page asks, once a second, in a thread."""

    def __init__(self, fleet: FleetSide) -> None:
        self._client, self._stop, self._times_s = fleet.people(), threading.Event(), list[float]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            self._times_s.append(_timed(self._ask)[1])

    def _ask(self) -> None:
        for path in ("overview", "nodes?limit=50"):
            self._client.get(f"/fleet/v1/{path}").raise_for_status()

    def online(self) -> int:
        """As the page says."""
        found: int = self._client.get("/fleet/v1/overview").json()["online"]
        return found

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join()

    def figures(self) -> dict[str, Any]:
        """How long the page waited."""
        ms = sorted(1000 * t for t in self._times_s)
        return {"asked": len(ms), "p50, ms": round(statistics.median(ms), 1), "max, ms": round(ms[-1], 1)}


def _crowd(fleet: FleetSide, nodes: int) -> dict[str, Any]:
    """Page, list and access list with very many nodes, which are rows only."""
    database = Database(fleet.home.database)
    now_s = time.time()
    with database.write() as session:
        for n in range(nodes):
            name = f"crowd-{n:05}"
            session.add(
                Node(
                    id=name, label=name, group="crowd", state="active", key_sha256=f"{n:064}", token_id=None,
                    created_s=now_s, approved_s=now_s, approved_by="trial", revoked_s=None, revoked_by=None,
                    not_after_s=now_s + 86_400,
                )
            )  # fmt: skip
        session.flush()
        for n in range(nodes):
            info = json.dumps({"version": "1", "model": "m"})
            session.add(NodeStatus(node_id=f"crowd-{n:05}", last_seen_s=now_s, state="online", info=info, figures="{}"))
    database.close()
    acl = fleet.home.broker / "acl"
    until(lambda: f"crowd-{nodes - 1:05}" in acl.read_text(), 30, "the access list is not written")
    with fleet.people() as client:

        def first() -> None:
            client.get("/fleet/v1/overview").raise_for_status()
            client.get("/fleet/v1/nodes?limit=50").raise_for_status()

        page_ms = sorted(1000 * _timed(first)[1] for _ in range(20))
    listed_s = _timed(lambda: fleet.cli("nodes", "--json"))[1]
    reload_s = _reload_s(fleet, 5)
    return {
        "with a crowd of": nodes, "page p50, ms": round(statistics.median(page_ms), 1), "page max, ms": round(page_ms[-1], 1),
        "`edge fleet nodes`, s": round(listed_s, 2), "access list, KiB": round(acl.stat().st_size / 1024),
        "broker stands still while it reads it, ms of processor time": round(1000 * reload_s),
    }  # fmt: skip


def _processor_s(pid: int) -> float:
    """What a process has used up to now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _reload_s(fleet: FleetSide, times: int) -> float:
    """Processor time that the broker, which does nothing else meanwhile, takes to read its lists."""
    assert fleet.broker is not None
    before_s = _processor_s(fleet.broker.pid)
    for _ in range(times):
        fleet.broker.send_signal(signal.SIGHUP)
        time.sleep(1.5)
    return (_processor_s(fleet.broker.pid) - before_s) / times


def revoke(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """How soon a revoked node's publish is refused and its session ended, and whether it can come back or renew."""
    refused_s, ended_s, back = [], [], 0
    with fleet_side() as (root, fleet):
        for n in range(a.revocations):
            box = Box(root / f"r{n}", fleet, f"r{n}")
            box.enroll(fleet.token())
            box.bootstrap()
            refused, ended = _until_out(fleet, box)
            refused_s.append(refused)
            ended_s.append(ended)
            with contextlib.suppress(ConnectionFailed):
                Connection(box.address(), Handlers()).open()
                back += 1
            back += box.renew().status_code == 200
    held.check("longest until nothing can be published, s", max(refused_s), max(refused_s) < SOON_S)
    held.check("longest until the session is ended, s", max(ended_s), max(ended_s) < SOON_S)
    held.check("revoked nodes that came back or renewed", back, back == 0)
    return {
        "revocations": a.revocations, "publish refused p50, s": round(statistics.median(refused_s), 3),
        "publish refused max, s": round(max(refused_s), 3), "session ended p50, s": round(statistics.median(ended_s), 3),
        "session ended max, s": round(max(ended_s), 3),
    }  # fmt: skip


def _until_out(fleet: FleetSide, box: Box) -> tuple[float, float]:
    """Seconds from the call of the API until (no publish is taken, the session is over)."""
    codes: list[int] = []
    connection = Connection(box.address(), Handlers(published=lambda _, code: codes.append(code)))
    connection.open()
    with fleet.people() as people, ThreadPoolExecutor(1) as pool:
        begun_s = time.monotonic()
        asked = pool.submit(people.post, f"/fleet/v1/nodes/{box.name}/revoke")
        refused_s = 0.0
        try:
            while time.monotonic() - begun_s < 4 * SOON_S:
                before = len(codes)
                connection.publish(f"edge/v1/default/{box.name}/up/events", b"{}")
                while len(codes) == before:
                    connection.turn(0.01)
                if codes[-1] == NOT_AUTHORIZED and not refused_s:
                    refused_s = time.monotonic() - begun_s
        except ConnectionFailed:
            ended_s = time.monotonic() - begun_s
            asked.result().raise_for_status()
            return refused_s or ended_s, ended_s
    return 4 * SOON_S, 4 * SOON_S


def kills(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """The server is killed again and again while boxes enroll; each box asks with its one token and key until it is in."""
    draw = random.Random(a.seed)
    with fleet_side() as (root, fleet):
        boxes = [Box(root / f"k{n}", fleet, f"k{n}") for n in range(a.kill_boxes)]
        tokens = [fleet.token() for _ in boxes]
        tries = [0] * len(boxes)

        def come_in(n: int) -> None:
            give_up_s = time.monotonic() + 600
            while time.monotonic() < give_up_s:
                tries[n] += 1
                with contextlib.suppress(httpx.HTTPError):
                    answer = boxes[n].enroll(tokens[n])
                    if answer.status_code == 200:
                        return
                    if answer.status_code != 503:
                        raise RuntimeError(f"{answer.status_code}: {answer.text}")
                time.sleep(0.2)

        killed = 0
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(come_in, n) for n in range(len(boxes))]
            while not all(w.done() for w in waiting):
                time.sleep(draw.uniform(0.01, 0.5))
                fleet.kill()
                killed += 1
                fleet.start()
            for w in waiting:
                w.result()
        named = {box.name for box in boxes}
        stored = _rows(fleet.home.database, "SELECT id FROM nodes")
        keys = _rows(
            fleet.home.database,
            "SELECT key_sha256 FROM certificates GROUP BY key_sha256 HAVING COUNT(DISTINCT node_id) > 1",
        )
        boot = [box.bootstrap().status_code for box in boxes]
    held.check("boxes that are in under their one name", len(named), named == {f"k{n}" for n in range(len(boxes))})
    held.check("nodes in the database", len(stored), len(stored) == len(boxes))
    held.check("keys with two identities", len(keys), not keys)
    held.check("boxes that get their bootstrap", boot.count(200), boot.count(200) == len(boxes))
    return {"boxes": len(boxes), "kills": killed, "tries": sum(tries)}


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    begun_s = time.monotonic()
    return work(), time.monotonic() - begun_s


def _rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as db:
        return db.execute(query).fetchall()


def _count(fleet: FleetSide, query: str) -> int:
    return int(_rows(fleet.home.telemetry, query)[0][0])


def steps(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """The server is killed at the first thing that an enrollment makes it do, then at the second, until there is none left."""
    with fleet_side(serve=False) as (root, fleet):
        boxes = []
        for number in range(1, 100):
            box, token = Box(root / f"s{number}", fleet, f"s{number}"), fleet.token()
            boxes.append((box, token))
            start_dying(fleet, str(number))
            with contextlib.suppress(httpx.HTTPError):
                box.enroll(token)
            if not died(fleet):
                break
        at = deaths(fleet)
        fleet.start()
        codes = [box.enroll(token).status_code for box, token in boxes]
        named = [box.bootstrap().json().get("node") for box, _ in boxes]
        stored = _rows(fleet.home.database, "SELECT id FROM nodes")
    held.check("steps at which it was killed", len(at), len(at) >= 10)
    held.check("boxes that are in afterwards", codes.count(200), codes.count(200) == len(boxes))
    held.check(
        "boxes under their one name",
        len(stored),
        named == [box.label for box, _ in boxes] and len(stored) == len(boxes),
    )
    return {"died at": [re.sub(r"\.[0-9a-f]{8}$", "", step) for step in at]}


PARTS: dict[str, Callable[[argparse.Namespace, Held], dict[str, Any]]] = {
    "storm": storm,
    "revoke": revoke,
    "kills": kills,
    "steps": steps,
}


def main() -> int:
    """Command line."""
    given = parser(__doc__, tuple(PARTS))
    given.add_argument("--nodes", type=int, default=200, help="that enroll and report")
    given.add_argument("--at-once", type=int, default=16, help="boxes that enroll at one time")
    given.add_argument("--reports", type=int, default=10, help="metrics and events of each node")
    given.add_argument("--crowd", type=int, default=5000, help="further rows for the page")
    given.add_argument("--revocations", type=int, default=20)
    given.add_argument("--kill-boxes", type=int, default=60)
    given.add_argument("--seed", type=int, default=1)
    a = given.parse_args()
    parts = {name: partial(PARTS[name], a) for name in chosen(given, a, tuple(PARTS))}
    return prove(parts, {"seed": a.seed}, a.out)


if __name__ == "__main__":
    sys.exit(main())
