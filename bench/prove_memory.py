"""What a plan says a model takes is what it takes, and a node in a small control group is never killed for want of memory.

`python -m bench.prove_memory real limits trials --out FILE`. `real`: eight models are loaded as planned, every slot is filled to
its end, and the engine's memory is held against the plan. `limits`: a node in a control group with 1.0, 0.75, 0.5 and 0.3 of what
its default plan wants. `trials`: random models, limits and loads. The exit status is 1 if something did not hold. Needs root, for
control groups.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from bench.control_group import ControlGroup, limited
from bench.servers import free_port
from edge.bench.machine import describe
from edge.engine.child import ChildProcess
from edge.engine.client import EngineClient
from edge.fitting import Fitter
from edge.loading import engine_limits, load_message
from edge.memory.host import proportional_bytes
from edge.memory.layout import Plan, Wishes
from edge.messages import KvType, Submit, TokenPrompt
from edge.registry.gguf import read_header
from edge.registry.resolve import ResolvedModel
from edge.settings import Settings

MIB = 1 << 20
BUILTIN = Path("models/builtin")
TOLERANCE, LEAST_BYTES = 0.03, 16 * MIB
CACHE_BYTES = 16 * MIB
LEVELS = (1.0, 0.75, 0.5, 0.3)
FRONT_BYTES = 90 * MIB
"""What the node's own process takes before it has a model."""
START_S = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """A model and how it is laid out."""

    shape: str
    kind: str
    slots: int
    context_tokens: int
    kv_type: KvType

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.shape}-{self.kind}"


CASES = (
    Case("builtin", "f16", 8, 2048, "f16"),
    Case("builtin", "q4_0", 8, 2048, "q8_0"),
    Case("tiny", "f16", 4, 1024, "q8_0"),
    Case("15m", "q4_0", 8, 1024, "f16"),
    Case("tiny152k", "f16", 4, 2048, "f16"),
    Case("135m", "q4_0", 4, 512, "q8_0"),
    Case("135m", "q4_0", 4, 512, "f16"),
    Case("500m", "q4_k_m", 2, 512, "f16"),
    Case("500m", "f16", 2, 512, "q8_0"),
    Case("1.5b", "q4_0", 2, 256, "f16"),
    Case("1.5b", "q4_k_m", 1, 512, "q8_0"),
)


class Models:
    """Owner of the files, made once and kept in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, shape: str, kind: str) -> Path:
        """The file of a shape; made when it is first asked for."""
        if shape == "builtin":
            return BUILTIN / f"edge-builtin-{kind}.gguf"
        path = self._directory / f"{shape}-{kind}.gguf"
        if not path.exists():
            print(f"making {path.name} ...", flush=True)
            draft = path.with_suffix(".draft")
            command = [sys.executable, "-m", "bench.make_gguf", shape, "--type", kind, "--out", str(draft)]
            subprocess.run(command, check=True, capture_output=True)  # the library says much about each tensor
            draft.rename(path)
        return path


# --- planned against real ----------------------------------------------------------------------------------------------


async def _empty_bytes() -> int:
    """The engine's process before it knows a model."""
    child = await ChildProcess.spawn("edge.engine.worker", {})
    await asyncio.sleep(2.0)
    found = proportional_bytes(child.pid)
    child.kill()
    await child.end(quietly=False)
    return found


async def _filled(path: Path, plan: Plan, settings: Settings) -> tuple[int, int]:
    """Memory of an engine when it is ready, and after every slot was full and the prefix cache too."""
    model = ResolvedModel(path.stem, path.absolute(), read_header(path), None)
    with tempfile.TemporaryDirectory() as home:
        client = EngineClient(load_message(model, plan.layout, settings, Path(home)), engine_limits(settings.engine))
        await client.start()
        try:
            facts = await client.wait_ready()
            pid = client.status.pid
            assert pid is not None
            ready = proportional_bytes(pid)
            source = random.Random(7)

            async def fill() -> None:
                prompt = [source.randrange(20, min(facts.vocabulary, 1000)) for _ in range(facts.context_tokens - 8)]
                async for _ in client.submit(Submit(0, TokenPrompt(prompt), max_tokens=8, ignore_eos=True)):
                    pass

            for _ in range(
                2 if plan.layout.cache_bytes else 1
            ):  # the second round saves what the first left in the slots
                await asyncio.gather(*(fill() for _ in range(facts.slots)))
            return ready, proportional_bytes(pid)
        finally:
            await client.stop()


def real(models: Models) -> list[dict[str, Any]]:
    """Each case's plan against the engine's memory."""
    empty = asyncio.run(_empty_bytes())
    rows = []
    print(
        f"{'model':18}{'slots':>6}{'context':>8} {'kv':5}{'planned':>10}{'real':>10}{'off':>9}   MiB less an empty engine's"
    )
    for case in CASES:
        path = models.path(case.shape, case.kind)
        cells = {"slots": case.slots, "context_tokens": case.context_tokens, "kv_type": case.kv_type}
        settings = Settings.model_validate({"engine": {**cells, "threads": 2}})
        wishes = Wishes(slots=case.slots, context_tokens=case.context_tokens, kv_type=case.kv_type, cache_bytes=0)
        plan = Fitter(settings).fit(read_header(path), wishes).plan
        if next(part.host_bytes for part in plan.parts if part.name == "attention") > 2 * CACHE_BYTES:  # can fill it
            plan = Fitter(settings).fit(read_header(path), replace(wishes, cache_bytes=CACHE_BYTES)).plan
        ready, full = asyncio.run(_filled(path, plan, settings))
        planned = plan.total_bytes - _base(plan, path, settings)
        off = full - empty - planned
        held = -max(TOLERANCE * planned, LEAST_BYTES) <= off <= max(TOLERANCE * planned, LEAST_BYTES)
        rows.append(
            {
                "model": case.name, **cells, "planned_bytes": planned, "ready_bytes": ready - empty,
                "full_bytes": full - empty, "empty_bytes": empty, "held": held,
            }
        )  # fmt: skip
        print(
            f"{case.name:18}{case.slots:6}{case.context_tokens:8} {case.kv_type:5}{planned / MIB:10.1f}"
            f"{(full - empty) / MIB:10.1f}{off / MIB:+9.1f}   {'held' if held else 'NOT HELD'}",
            flush=True,
        )
    return rows


def _base(plan: Plan, path: Path, settings: Settings) -> int:
    """The part of a plan that stands for the empty process."""
    from edge.engine.probe import LayoutProbe

    with LayoutProbe(path, cores=2, gpu_layers=0) as probe:
        return probe.model().process_bytes


# --- in a control group ------------------------------------------------------------------------------------------------


@contextmanager
def _node(group: ControlGroup, model: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    with tempfile.TemporaryDirectory() as home, log.open("wb") as out:
        env = {**os.environ, "EDGE_HOME": home, "EDGE_LOG__FORMAT": "json"}
        process = subprocess.Popen(
            [sys.executable, "-m", "edge", "serve", "--model", str(model), "--port", str(port)],
            env=env, preexec_fn=group.enter(), stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _came_up(process: subprocess.Popen[bytes], url: str) -> bool:
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/ready", timeout=2).status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    return False


async def _load(url: str, clients: int, requests: int, words: int, seed: int) -> dict[str, int]:
    """Some clients at a time, each with prompts of its own. Counts answers by status; a smaller plan may make a prompt too long,
    which is refused by name."""
    seen: dict[str, int] = {}
    source = random.Random(seed)

    async def client(http: httpx.AsyncClient) -> None:
        for _ in range(requests):
            text = " ".join(
                source.choice(("pump", "valve", "fan", "door", "alarm")) for _ in range(source.randrange(4, words))
            )
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "stream": source.random() < 0.5}
            try:
                answer = await http.post(f"{url}/v1/chat/completions", json=body, timeout=120)
                status = "too long" if "context_length_exceeded" in answer.text else str(answer.status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            seen[status] = seen.get(status, 0) + 1

    async with httpx.AsyncClient() as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return seen


def _in_group(limit_bytes: int, model: Path, clients: int, requests: int, words: int, seed: int) -> dict[str, Any]:
    """One node under a limit: it starts and answers, or says why not; and how many processes the kernel killed."""
    with tempfile.NamedTemporaryFile(suffix=".log") as log, limited(limit_bytes, f"prove-{seed}") as group:
        with _node(group, model, Path(log.name)) as (process, url):
            up = _came_up(process, url)
            seen = asyncio.run(_load(url, clients, requests, words, seed)) if up else {}
            state = httpx.get(f"{url}/edge/v1/load", timeout=10).json() if up and process.poll() is None else {}
        said = Path(log.name).read_text("utf-8", "replace").strip().splitlines()
        return {
            "limit_mib": limit_bytes // MIB,
            "started": up,
            "slots": state.get("slots"),
            "kv_cells": state.get("kv_cells"),
            "restarts": state.get("restarts"),
            "answers": seen,
            "killed": group.kills(),
            "peak_mib": group.peak_bytes() // MIB,
            "said": "" if up else (said[-1] if said else ""),
        }


def _well(row: dict[str, Any]) -> bool:
    """Nobody was killed; a node that started answered everything; one that did not said why and what would fit."""
    if row["killed"] or row["restarts"]:
        return False
    if row["started"]:
        return bool(row["answers"]) and set(row["answers"]) <= {"200", "429", "too long"}
    return "does not fit" in row["said"]


def _line(name: str, row: dict[str, Any]) -> str:
    outcome = (
        f"{row['slots']} slots, {row['kv_cells']} cells, {row['answers']}" if row["started"] else row["said"][:150]
    )
    verdict = "held" if _well(row) else "NOT HELD"
    return f"{name:18}{row['limit_mib']:6} MiB, peak {row['peak_mib']:5}, killed {row['killed']}: {outcome}   {verdict}"


def _wanted(path: Path) -> int:
    """What a node with this model wants when there is room for all: its plan, its own process, and what it keeps back."""
    settings = Settings()
    plan = Fitter(settings).fit(read_header(path), Wishes()).plan
    return plan.total_bytes + FRONT_BYTES + (settings.memory.reserve_mib << 20)


def limits(models: Models) -> list[dict[str, Any]]:
    """A node with less and less of what it wants."""
    rows = []
    for shape, kind in (("builtin", "q4_0"), ("135m", "q4_0"), ("500m", "q4_0")):
        path = models.path(shape, kind)
        wanted = _wanted(path)
        for level in LEVELS:
            row = _in_group(int(wanted * level), path, clients=6, requests=2, words=40, seed=int(level * 100))
            rows.append({"model": f"{shape}-{kind}", "level": level, **row, "held": _well(row)})
            print(_line(f"{shape}-{kind} x{level}", row), flush=True)
    return rows


def trials(models: Models, count: int, seed: int) -> list[dict[str, Any]]:
    """Random models, limits and loads."""
    source = random.Random(seed)
    kinds = (
        ("builtin", "q4_0"),
        ("builtin", "f16"),
        ("tiny", "f16"),
        ("15m", "q4_0"),
        ("tiny152k", "f16"),
        ("135m", "q4_0"),
    )
    wants = {pair: _wanted(models.path(*pair)) for pair in kinds}
    rows = []
    for number in range(count):
        pair = source.choice(kinds)
        limit = int(wants[pair] * source.uniform(0.25, 1.1))
        load = {
            "clients": source.randrange(1, 17),
            "requests": source.randrange(1, 4),
            "words": source.randrange(8, 400),
        }
        row = _in_group(limit, models.path(*pair), **load, seed=number)
        rows.append({"model": "-".join(pair), **load, **row, "held": _well(row)})
        print(_line(f"{number:3} {'-'.join(pair)}", row), flush=True)
    started = sum(row["started"] for row in rows)
    print(f"{count} trials: {started} started, {count - started} refused, {sum(row['killed'] for row in rows)} killed")
    return rows


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["real", "limits", "trials"], choices=["real", "limits", "trials"])
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "edge-bench-models")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    models = Models(a.models)
    found: dict[str, Any] = {"machine": describe()}
    for part in a.parts:
        print(f"== {part}", flush=True)
        if part == "real":
            found[part] = real(models)
        else:
            found[part] = limits(models) if part == "limits" else trials(models, a.trials, a.seed)
    if a.out is not None:
        a.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if all(row["held"] for part in a.parts for row in found[part]) else 1


if __name__ == "__main__":
    sys.exit(main())
