"""What a node does under more load than it can bear: with a fleet, without one, and when its engine is killed.

`python -m bench.prove_fleet overload strict late kill --out FILE`. Each part prints its figures and whether what is promised
held; the exit status is 1 if something did not. The fleet is `bench.stand_in`, on this machine too; for `kill` it is a second
node with the same model. The load is `edge bench`'s mixed one, on the built-in model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
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
import psutil

from bench import servers
from bench.held import Held, chosen, parser, prove
from bench.servers import Server
from edge.bench.machine import largest_gap_s
from edge.bench.outcome import percentile

MODEL = Path("models/builtin/edge-builtin-q4_0.gguf")
SLO_MS = 50.0
REFUSED_WITHIN_MS = 10.0
SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
SLOTS, CONTEXT_TOKENS = 8, 2048


@contextlib.contextmanager
def node(threads: int, **env: str) -> Iterator[Server]:
    """A node with the built-in model that keeps its promise."""
    with servers.edge(MODEL, slots=SLOTS, context_tokens=CONTEXT_TOKENS, threads=threads, env=env) as server:
        yield server


@contextlib.contextmanager
def stand_in() -> Iterator[str]:
    """A fleet that answers from memory. Gives its URL."""
    port = servers.free_port()
    process = subprocess.Popen([sys.executable, "-m", "bench.stand_in", str(port)], stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def bench(server: Server, rates: list[float], seconds: float) -> list[dict[str, Any]]:
    """`edge bench` at each rate; one result each."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "edge", "bench", server.url, "--rate", ",".join(map(str, rates))]
        command += [
            "--duration",
            str(seconds),
            "--json",
            file.name,
            "--max-requests",
            "100000",
            "--max-in-flight",
            "1024",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return list(json.loads(Path(file.name).read_text())["results"])


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """Of one level, what is worth keeping."""
    admitted = [r for r in result["requests"] if r["edge_class"] == "slo"]
    gaps = [r["itl_p99_ms"] for r in admitted if r["itl_p99_ms"] is not None]
    return {
        "offered/s": round(result["offered_rps"], 2),
        "good/s": round(result["goodput_rps"], 2),
        "requests": len(result["requests"]),
        "statuses": result["statuses"],
        "routes": dict(Counter(r["edge_route"] for r in result["requests"])),
        "admitted": len(admitted),
        "admitted and good": sum(r["good"] for r in admitted),
        "admitted: TTFT p99, ms": round(percentile([r["ttft_ms"] for r in admitted], 0.99), 2) if admitted else None,
        "admitted: ITL p99 of all gaps, ms": _p99(result.get("admitted")),
        "admitted: share whose own ITL p99 is in time": sum(g <= SLO_MS for g in gaps) / len(gaps) if gaps else None,
        "late: TTFT p99, ms": _late(result["requests"]),
    }


def _p99(judged: dict[str, Any] | None) -> float | None:
    found = (judged or {}).get("itl") or {}
    value = found.get("p99_ms")
    return round(value, 2) if value is not None else None


def _late(requests: list[dict[str, Any]]) -> float | None:
    times = [r["ttft_ms"] for r in requests if r["edge_class"] == "best-effort" and r["ttft_ms"] is not None]
    return round(percentile(times, 0.99), 2) if times else None


def good_share(level: dict[str, Any]) -> float:
    """Of the admitted, those that came within both bounds."""
    return float(level["admitted and good"] / max(1, level["admitted"]))


# --- parts ------------------------------------------------------------------------------------------------------------


def overload(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """Saturation, then five times as much for two minutes, with a fleet."""
    with stand_in() as fleet, node(a.threads, EDGE_ADMISSION__MODE="fleet", EDGE_FLEET__URL=fleet) as server:
        once = summary(bench(server, [a.saturation], a.seconds)[0])
        five = summary(bench(server, [5 * a.saturation], a.overload_seconds)[0])
        gap_ms = largest_gap_s(1.0) * 1000
    answered = five["statuses"].get("ok", 0) / five["requests"]
    held.check("five times overload with a fleet: answered", answered, answered == 1.0)
    held.check("the admitted that came within both bounds", good_share(five), good_share(five) >= 0.99)
    itl = five["admitted: ITL p99 of all gaps, ms"]
    held.check("inter-token p99 of the admitted, ms", itl, itl <= SLO_MS)
    local = five["good/s"] / once["good/s"]
    held.check("goodput beside that at saturation", local, local >= 0.9)
    return {"saturation": once, "five times": five, "spin_loop_largest_gap_ms": round(gap_ms, 2)}


def strict(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """No fleet, mode strict, from a quarter of saturation to five times."""
    rates = [a.saturation * share for share in (*SHARES, 5.0)]
    levels, decided = [], []
    with node(a.threads, EDGE_ADMISSION__MODE="strict") as server:
        for rate in rates:
            levels.append(summary(bench(server, [rate], a.seconds)[0]))
            log = httpx.get(f"{server.url.removesuffix('/v1')}/edge/v1/decisions?limit=1024", trust_env=False).json()
            decided += [e["decided_s"] * 1000 for e in log["decisions"] if e["route"] == "refuse"]
    _flat(levels, held, "strict")
    within = sum(d <= REFUSED_WITHIN_MS for d in decided) / len(decided)
    held.check("refused within 10 ms, share", within, within >= 0.99)
    return {"levels": levels, "refusals, ms": {"p50": percentile(decided, 0.5), "p99": percentile(decided, 0.99)}}


def late(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """No fleet, mode best-effort: the same for the admitted; late answers are marked, the queue is bounded."""
    rates = [a.saturation * share for share in (*SHARES, 5.0)]
    with node(a.threads, EDGE_ADMISSION__MODE="best-effort") as server:
        results = [bench(server, [rate], a.seconds)[0] for rate in rates]
    levels = [summary(result) for result in results]
    _flat(levels, held, "best-effort")
    unmarked = sum(r["edge_class"] == "" for result in results for r in result["requests"] if r["status"] == "ok")
    held.check("answers without a mark", unmarked, unmarked == 0)
    return {"levels": levels}


def _flat(levels: list[dict[str, Any]], held: Held, mode: str) -> None:
    saturated = levels[SHARES.index(1.0) :]
    least = min(level["good/s"] for level in saturated[1:]) / saturated[0]["good/s"]
    held.check(f"{mode}: least goodput past saturation beside that at saturation", least, least >= 0.9)
    total = sum(level["admitted"] for level in levels)
    share = sum(level["admitted and good"] for level in levels) / total
    held.check(f"{mode}: the admitted that came within both bounds, all levels", share, share >= 0.99)


async def _story(client: httpx.AsyncClient, server: Server, number: int) -> tuple[str, str]:
    """(text, how it ended) of one long greedy answer."""
    body = {
        "model": server.model, "stream": True, "temperature": 0, "max_tokens": 600, "ignore_eos": True, "cache_prompt": False,
        "messages": [{"role": "user", "content": f"Set the speed of pump {number} to {number} percent."}],
    }  # fmt: skip
    text, end = "", "broken off"
    headers = {"x-request-id": f"s-{number}"}
    async with client.stream("POST", f"{server.url}/chat/completions", json=body, headers=headers) as answer:
        if answer.status_code != httpx.codes.OK:
            return "", str(answer.status_code)
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return text, str(event["error"]["code"])
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                end = choice["finish_reason"] or end
    return text, end


def kill(a: argparse.Namespace, held: Held) -> dict[str, Any]:
    """The engine is killed in the middle of eight answers, again and again, until a hundred were gone on with by the fleet."""
    f16 = MODEL.with_name("edge-builtin-f16.gguf")
    common: dict[str, Any] = {"slots": SLOTS, "context_tokens": CONTEXT_TOKENS, "threads": a.threads}
    seams = whole = same = rounds = 0
    took_s: list[float] = []
    with contextlib.ExitStack() as stack:
        central = stack.enter_context(servers.edge(f16, **common))
        slo = {"EDGE_SLO__TTFT_MS": "60000", "EDGE_SLO__ITL_MS": "60000"}
        fleet = {"EDGE_ADMISSION__MODE": "fleet", "EDGE_FLEET__URL": central.url}
        edge = stack.enter_context(servers.edge(f16, **common, env={**slo, **fleet}))
        base = edge.url.removesuffix("/v1")
        while seams < a.kills:
            numbers = range(rounds * SLOTS + 1, rounds * SLOTS + SLOTS + 1)
            undisturbed = asyncio.run(_all(central, list(numbers), None))
            begun_s = time.monotonic()
            answers = asyncio.run(_all(edge, list(numbers), edge.pid))
            took_s.append(time.monotonic() - begun_s)
            log = httpx.get(f"{base}/edge/v1/decisions?limit={SLOTS}", trust_env=False).json()["decisions"]
            at = {e["request_id"]: e["continued_at"] for e in log if e["continued"]}
            for number, (text, end), (expected, _) in zip(numbers, answers, undisturbed, strict=True):
                if (seam := at.get(f"s-{number}")) is not None:
                    seams += 1
                    whole += end == "length"
                    # A seam is clean if what was sent before it is the undisturbed text; what follows is the fleet's own.
                    same += text[:seam] == expected[:seam] and len(text) > seam
            rounds += 1
            _until_ready(base)
    held.check("answers gone on with that are complete", whole / seams, whole == seams)
    held.check("seams with the undisturbed text before them", same / seams, same == seams)
    return {"kills": rounds, "seams": seams, "complete": whole, "a round took, s": round(statistics.median(took_s), 2)}


async def _all(server: Server, numbers: list[int], pid: int | None) -> list[tuple[str, str]]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        tasks = [asyncio.create_task(_story(client, server, number)) for number in numbers]
        if pid is not None:
            await asyncio.sleep(0.15)
            children = psutil.Process(pid).children(recursive=True)
            os.kill(next(c.pid for c in children if "edge.engine.worker" in " ".join(c.cmdline())), signal.SIGKILL)
        return list(await asyncio.gather(*tasks))


def _until_ready(base: str) -> None:
    while httpx.get(f"{base}/health/ready", trust_env=False).json().get("by") != "node":
        time.sleep(0.05)


PARTS = {"overload": overload, "strict": strict, "late": late, "kill": kill}


def main() -> int:
    """Command line."""
    given = parser(__doc__, tuple(PARTS))
    given.add_argument("--saturation", type=float, default=25.0, help="requests a second that just saturate the node")
    given.add_argument("--seconds", type=float, default=20.0)
    given.add_argument("--overload-seconds", type=float, default=120.0)
    given.add_argument("--kills", type=int, default=100)
    given.add_argument("--threads", type=int, default=1)
    a = given.parse_args()
    parts = {name: partial(PARTS[name], a) for name in chosen(given, a, tuple(PARTS))}
    return prove(parts, {"model": MODEL.stem, "threads": a.threads}, a.out)


if __name__ == "__main__":
    sys.exit(main())
