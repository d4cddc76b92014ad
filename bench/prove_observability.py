"""What telemetry costs: processor time of an idle node, and the gaps between tokens of a loaded one, with and without.

`python -m bench.prove_observability --out FILE`. Exit status 1 if one of the two does not hold. The same node is run in two ways:

- without: `metrics.interval_s` 0, and nobody asks for metrics.
- with: probes at their default interval, /metrics scraped every 5 s, the status page's object asked for every 2 s as an open page
  does, metrics and the trace of every request sent to a collector over HTTP. Who asks and collects is a process of its own that
  yields to all others, as if it stood on another machine (`bench.onlookers`).

Idle: processor seconds of the node's processes over `--idle-s`, as a share of one core. Scraping and asking count as far as the
node does them. Asks: what the front takes to answer each path that machines poll, one at a time, after some load. Load: blocks
in turn, a fresh node each; per pair of blocks the difference of the 99th percentiles of the gaps that clients saw, and the
processor time for each token, apart for the front, where all telemetry is, and the engine's process. The engine's differs between
two nodes of the same way by more than all telemetry takes, also by what a home has kept of earlier passes, so the ways change
homes after every two pairs. It holds if the upper end of the 95 % interval of the differences' mean (bootstrap) is below 2 % of
the target: a machine that is too noisy to tell does not pass.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil

from bench import load, servers
from bench.onlookers import Onlookers, onlookers
from bench.servers import Server
from edge.bench.machine import describe
from edge.bench.outcome import percentile

BUILTIN = Path("models/builtin/edge-builtin-q4_0.gguf")
Way = Literal["without", "with"]
_TARGET_S = 0.05
_MOST_IDLE_SHARE = 0.01
_MOST_WORSE_SHARE = 0.02
_SCRAPE_S, _PAGE_S = 5.0, 2.0
_STREAMS, _TOKENS = 4, 400
_POLLED = ("/metrics", "/edge/v1/load", "/health")
_ROUNDS, _ASKS = 15, 10


@contextlib.contextmanager
def node(way: Way, home: Path, others: Onlookers) -> Iterator[Server]:
    """A node run in that way, asked as that way has it."""
    env = {"EDGE_METRICS__INTERVAL_S": "0"}
    if way == "with":
        env = {"EDGE_OTLP__ENDPOINT": others.endpoint, "EDGE_OTLP__TRACES": "on", "EDGE_OTLP__SAMPLE": "1"}
    with servers.edge(BUILTIN, slots=_STREAMS, context_tokens=1024, threads=1, home=home, env=env) as server:
        base = server.url.removesuffix("/v1")
        if way == "with":
            others.watch(f"{base}/metrics", _SCRAPE_S)
            others.watch(f"{base}/edge/v1/load", _PAGE_S)
        yield server
        others.rest()


@dataclass(frozen=True, slots=True)
class Spent:
    """Processor time in seconds that a node's processes have had."""

    front_s: float
    engine_s: float

    def __sub__(self, before: Spent) -> Spent:
        return Spent(self.front_s - before.front_s, self.engine_s - before.engine_s)


def spent(pid: int) -> Spent:
    """Since they began."""
    front = psutil.Process(pid)
    engine_s = sum(_processor_s(child) for child in front.children(recursive=True))
    return Spent(_processor_s(front), engine_s)


def _processor_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _threads_ns(pid: int) -> int:
    """Processor time of the threads that a process has now; finer than what is kept for the process."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir())


def asks(home: Path, others: Onlookers) -> dict[str, float]:
    """Microseconds of the front's for each polled path: the median of several rounds."""
    found: dict[str, float] = {}
    with node("with", home, others) as server, httpx.Client(trust_env=False, timeout=30) as client:
        others.rest()
        for _ in range(3):
            asyncio.run(load.together(server, [f"start pump {n}" for n in range(_STREAMS)], _TOKENS))
        base = server.url.removesuffix("/v1")
        for path in _POLLED:
            rounds = []
            for _ in range(_ROUNDS + 1):
                before_ns = _threads_ns(server.pid)
                for _ in range(_ASKS):
                    client.get(base + path).raise_for_status()
                rounds.append((_threads_ns(server.pid) - before_ns) / _ASKS / 1000)
            found[path] = statistics.median(rounds[1:])
    return found


def idle_share(way: Way, home: Path, others: Onlookers, seconds: float) -> float:
    """Of one core."""
    with node(way, home, others) as server:
        time.sleep(5)  # what a start leaves behind is over
        before, begun_s = spent(server.pid), time.monotonic()
        time.sleep(seconds)
        had = spent(server.pid) - before
        return (had.front_s + had.engine_s) / (time.monotonic() - begun_s)


@dataclass(frozen=True, slots=True)
class Seen:
    """Of one block."""

    gaps_s: list[float]
    """Between the tokens of several answers at a time, as the client saw them."""
    spent: Spent
    """What the node's processes took for them."""

    def figures(self) -> dict[str, float]:
        """For the record."""
        return {
            "gaps": len(self.gaps_s),
            "p50_ms": percentile(self.gaps_s, 0.5) * 1000,
            "p99_ms": percentile(self.gaps_s, 0.99) * 1000,
            "front_us_a_token": self.spent.front_s / len(self.gaps_s) * 1e6,
            "engine_us_a_token": self.spent.engine_s / len(self.gaps_s) * 1e6,
        }


def block(way: Way, home: Path, others: Onlookers, seconds: float) -> Seen:
    """A fresh node under load."""
    found: list[float] = []
    with node(way, home, others) as server:
        asyncio.run(load.together(server, ["start pump 3"] * _STREAMS, 50))
        before, until_s = spent(server.pid), time.monotonic() + seconds
        while time.monotonic() < until_s:
            prompts = [f"start pump {random.randrange(100)}" for _ in range(_STREAMS)]
            for trace in asyncio.run(load.together(server, prompts, _TOKENS)):
                found += trace.gaps_s
        return Seen(found, spent(server.pid) - before)


def interval(differences: list[float]) -> tuple[float, float]:
    """95 % of the means of samples with replacement."""
    draw = random.Random(1)
    means = sorted(sum(draw.choices(differences, k=len(differences))) / len(differences) for _ in range(5000))
    return means[124], means[4874]


def prove(idle_s: float, block_s: float, pairs: int) -> dict[str, Any]:
    """Both parts."""
    with tempfile.TemporaryDirectory() as scratch, onlookers() as others:
        homes: dict[Way, Path] = {"without": Path(scratch) / "a", "with": Path(scratch) / "b"}
        for home in homes.values():
            home.mkdir()
        idle = {way: idle_share(way, home, others, idle_s) for way, home in homes.items()}
        print(f"idle: {idle['without']:.2%} of a core without, {idle['with']:.2%} with", flush=True)
        polled = asks(homes["with"], others)
        print(", ".join(f"{path} {us:.0f} us" for path, us in polled.items()), flush=True)
        differences: list[float] = []
        blocks: list[dict[Way, dict[str, float]]] = []
        for number in range(pairs):
            order: list[Way] = ["without", "with"] if number % 2 == 0 else ["with", "without"]
            if number and number % 2 == 0:
                homes = {"without": homes["with"], "with": homes["without"]}
            seen = {way: block(way, homes[way], others, block_s) for way in order}
            figures = {way: found.figures() for way, found in seen.items()}
            differences.append((figures["with"]["p99_ms"] - figures["without"]["p99_ms"]) / 1000)
            blocks.append(figures)
            print(f"pair {number + 1}: {_words(figures, 'without')}; {_words(figures, 'with')}", flush=True)
    low_s, high_s = interval(differences)
    mean_s = sum(differences) / len(differences)
    processor = {
        part: {way: statistics.median(b[way][part] for b in blocks) for way in homes}
        for part in ("front_us_a_token", "engine_us_a_token")
    }
    cost = idle["with"] - idle["without"]
    return {
        "idle": {**idle, "cost_share_of_a_core": cost, "seconds": idle_s, "holds": cost < _MOST_IDLE_SHARE},
        "asks_us": polled,
        "load": {
            "streams": _STREAMS,
            "blocks": blocks,
            **processor,
            "p99_difference_ms": mean_s * 1000,
            "p99_difference_95_ms": [low_s * 1000, high_s * 1000],
            "holds": high_s < _MOST_WORSE_SHARE * _TARGET_S,
        },
    }


def _words(figures: dict[Way, dict[str, float]], way: Way) -> str:
    found = figures[way]
    parts = f"{found['front_us_a_token']:.0f} + {found['engine_us_a_token']:.0f} us of processor a token"
    return f"{way} p99 {found['p99_ms']:.2f} ms, {parts}"


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--idle-s", type=float, default=60.0)
    parser.add_argument("--block-s", type=float, default=15.0)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    load_before = os.getloadavg()[0]
    found = {"machine": describe(), "other_load": load_before, **prove(given.idle_s, given.block_s, given.pairs)}
    shown = {name: figure for name, figure in found["load"].items() if name != "blocks"}
    print(json.dumps({"idle": found["idle"], "asks_us": found["asks_us"], "load": shown}, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["idle"]["holds"] and found["load"]["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
