"""Several models on one node, under load: that no request fails and no stream is cut, whoever is loaded and unloaded meanwhile.

`python -m bench.prove_models among beside instead fleet behind --out FILE`. Each part runs a real node with models of random
weights, prints its figures and whether what is promised held; the exit status is 1 if something did not.

- among: three further models in room for two, beside the main one; clients pick at random.
- beside: a new version of a model, again and again, with memory for both versions.
- instead: the same without: the old one leaves first, and requests wait.
- fleet: the same for the main model, with a fleet that answers meanwhile.
- behind: what a further model under load costs the main one's times, with and without its lower priority.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench import make_gguf, servers
from bench.held import Held, chosen, parser, prove
from bench.prove_fleet import stand_in
from bench.servers import Server
from edge.bench.machine import largest_gap_s
from edge.bench.outcome import percentile

BUILTIN = Path("models/builtin/edge-builtin-q4_0.gguf")
FURTHER = ("larch", "maple", "rowan")
SHAPE = "15m"
CONTEXT_TOKENS, SLOTS, FURTHER_SLOTS = 1024, 8, 4
PROMPTS = ("Check the pump and write it down.", "Which valve is open?", "Say when the shift ends and who comes next.")
MIB = 1 << 20


@dataclass
class Tally:
    """Owner of what clients met."""

    requests: int = 0
    streams: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    by_model: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """By route, class and reason."""
    first_s: dict[str, list[float]] = field(default_factory=dict)
    gaps_s: dict[str, list[float]] = field(default_factory=dict)
    fingerprints: list[tuple[float, float, str, str]] = field(default_factory=list)
    """(sent, first text, model, fingerprint) of what was answered here: of which version an answer was."""

    def account(self) -> dict[str, Any]:
        """The figures."""
        return {
            "requests": self.requests,
            "streams": self.streams,
            "failed": dict(self.failed),
            "cut streams": self.cut,
            "by model": dict(sorted(self.by_model.items())),
            "answered": dict(sorted(self.answered.items())),
            "first token, ms": {m: _spread(times) for m, times in sorted(self.first_s.items())},
            "gap, ms": {m: _spread(gaps) for m, gaps in sorted(self.gaps_s.items())},
        }


def _spread(times_s: list[float]) -> dict[str, float]:
    return {f"p{round(q * 100)}": round(percentile(times_s, q) * 1000, 1) for q in (0.5, 0.99)} if times_s else {}


class Load:
    """Clients that ask one after the other, each for a model that it picks, until `stop`."""

    def __init__(
        self,
        server: Server,
        clients: int,
        pick: Callable[[random.Random], str],
        seed: int,
        tally: Tally | None = None,
    ) -> None:
        self.tally = tally if tally is not None else Tally()
        self._server, self._clients, self._pick, self._seed = server, clients, pick, seed
        self._over = asyncio.Event()

    async def __aenter__(self) -> Load:
        limits = httpx.Limits(max_connections=None)
        self._http = httpx.AsyncClient(base_url=self._server.url, trust_env=False, timeout=180, limits=limits)
        self._tasks = [asyncio.create_task(self._client(random.Random(self._seed + n))) for n in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._tasks)  # every answer that was begun is read to its end
        await self._http.aclose()

    async def _client(self, chance: random.Random) -> None:
        while not self._over.is_set():
            model, tokens = self._pick(chance), chance.randint(8, 96)
            body = {
                "model": model, "max_tokens": tokens, "ignore_eos": True, "temperature": 0.8, "seed": chance.getrandbits(31),
                "messages": [{"role": "user", "content": chance.choice(PROMPTS)}],
            }  # fmt: skip
            self.tally.requests += 1
            self.tally.by_model[model] += 1
            try:
                if chance.random() < 0.6:
                    self.tally.streams += 1
                    await self._streamed(body, tokens)
                else:
                    await self._whole(body, tokens)
            except (httpx.HTTPError, ValueError, KeyError) as error:
                self.tally.failed[f"{type(error).__name__}: {error}"[:120]] += 1
            await asyncio.sleep(chance.expovariate(20))

    def _note(self, answer: httpx.Response) -> None:
        headers = answer.headers
        where = " ".join(headers.get(f"x-edge-{name}", "") for name in ("route", "class", "reason"))
        self.tally.answered[" ".join(where.split())] += 1

    async def _whole(self, body: dict[str, Any], tokens: int) -> None:
        sent_s = time.monotonic()
        answer = await self._http.post("chat/completions", json=body)
        if answer.status_code != httpx.codes.OK:
            self.tally.failed[f"{answer.status_code} {answer.json()['error']['code']}"] += 1
            return
        self._note(answer)
        found = answer.json()
        if answer.headers["x-edge-route"] != "local":
            return
        self.tally.fingerprints.append((sent_s, time.monotonic(), body["model"], str(found["system_fingerprint"])))
        if found["usage"]["completion_tokens"] != tokens or found["model"] != body["model"]:
            self.tally.failed["an answer that is not whole, or of another model"] += 1

    async def _streamed(self, body: dict[str, Any], tokens: int) -> None:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        sent_s, last_s, done, finish, usage = time.monotonic(), 0.0, False, "", 0
        async with self._http.stream("POST", "chat/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                code = json.loads(await answer.aread())["error"]["code"]
                self.tally.failed[f"{answer.status_code} {code}"] += 1
                return
            self._note(answer)
            local = answer.headers["x-edge-route"] == "local"
            async for line in answer.aiter_lines():
                done = done or line == "data: [DONE]"
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    break
                usage = (event.get("usage") or {}).get("completion_tokens", usage)
                for choice in event["choices"]:
                    finish = choice["finish_reason"] or finish
                    if choice["delta"].get("content") and local:
                        last_s = self._text(body["model"], sent_s, last_s, str(event["system_fingerprint"]))
        if not done or not finish or (local and usage != tokens):
            self.tally.cut += 1

    def _text(self, model: str, sent_s: float, last_s: float, fingerprint: str) -> float:
        now_s = time.monotonic()
        if last_s:
            self.tally.gaps_s.setdefault(model, []).append(now_s - last_s)
        else:
            self.tally.first_s.setdefault(model, []).append(now_s - sent_s)
            self.tally.fingerprints.append((sent_s, now_s, model, fingerprint))
        return now_s


class Watch:
    """Looks at a node while it is under load: its room, its memory, its readiness."""

    def __init__(self, server: Server) -> None:
        self._base = server.url.removesuffix("/v1")
        self._process = psutil.Process(server.pid)
        self.looks = self.unready = self.most_engines = 0
        self.most_planned = self.most_resident = self.room = 0

    async def __aenter__(self) -> Watch:
        self._http = httpx.AsyncClient(base_url=self._base, trust_env=False, timeout=30)
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._http.aclose()

    async def _look(self) -> None:
        while True:
            memory = (await self._http.get("/edge/v1/models")).json()["memory"]
            self.room = memory["room_bytes"]
            self.most_planned = max(self.most_planned, memory["planned_bytes"])
            engines = [c for c in self._process.children() if "edge.engine.worker" in _command(c)]
            self.most_engines = max(self.most_engines, len(engines))
            self.most_resident = max(self.most_resident, sum(_resident(c) for c in engines))
            ready = await self._http.get("/health/ready")
            self.looks += 1
            self.unready += ready.status_code != httpx.codes.OK
            await asyncio.sleep(0.25)

    def account(self) -> dict[str, Any]:
        """The figures."""
        return {
            "room, MiB": self.room // MIB,
            "most planned, MiB": self.most_planned // MIB,
            "most resident, MiB": self.most_resident // MIB,
            "most engines": self.most_engines,
            "looks": self.looks,
            "looks at which the node was not ready": self.unready,
        }


def _command(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


# --- nodes ------------------------------------------------------------------------------------------------------------


class Models:
    """Files of random weights in a directory: two versions of each model."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for number, name in enumerate(FURTHER):
            for version in (1, 2):
                make_gguf.write_model(
                    self.file(name, version), make_gguf.SHAPES[SHAPE], kind="q4_0", seed=10 * number + version
                )
            self.put(name, 1)

    def file(self, name: str, version: int) -> Path:
        """One version's file, which no node is told of."""
        return self.directory / f"{name}-{version}.gguf"

    def path(self, name: str) -> Path:
        """Where a node looks for a model."""
        return self.directory / f"{name}.gguf"

    def put(self, name: str, version: int) -> None:
        """Put a version where nodes look, in one step, as anything that downloads does."""
        draft = self.directory / "draft"
        shutil.copyfile(self.file(name, version), draft)
        draft.replace(self.path(name))

    def tables(self, names: tuple[str, ...]) -> str:
        """Settings for these as further models."""
        return "".join(
            f'[models.{n}]\nsource = "{self.path(n)}"\nslots = {FURTHER_SLOTS}\ncontext_tokens = {CONTEXT_TOKENS}\n'
            for n in names
        )


@contextlib.contextmanager
def node(main: Path, tables: str, *, budget_mib: int = 0, **env: str) -> Iterator[Server]:
    """A node that promises something, with these further models."""
    given = {
        "EDGE_ADMISSION__MODE": "best-effort",
        "EDGE_ADMISSION__MAX_WAIT_S": "300",  # on a small box with others on it: what waits long has not failed
        "EDGE_CACHE__HOST_MIB": "64",
        "EDGE_MEMORY__BUDGET_MIB": str(budget_mib),
        **env,
    }

    def prepare(home: Path) -> None:
        (home / "edge.toml").write_text(tables)

    with servers.edge(
        main, slots=SLOTS, context_tokens=CONTEXT_TOKENS, threads=0, env=given, prepare=prepare
    ) as server:
        yield server


def planned_mib(models: Models, main: Path, names: tuple[str, ...]) -> dict[str, int]:
    """What a node plans for each of them, asked of one that has room for all."""
    with node(main, models.tables(names)) as server:
        base = server.url.removesuffix("/v1")
        with httpx.Client(base_url=base, trust_env=False, timeout=120) as http:
            for name in names:
                http.post(f"/edge/v1/models/{name}/load").raise_for_status()
            found = http.get("/edge/v1/models").json()["models"]
    return {m["name"]: -(-m["bytes_planned"] // MIB) for m in found}


async def operate(server: Server, name: str, verb: str) -> float:
    """Load or unload a model; the seconds that it took."""
    begun_s = time.monotonic()
    async with httpx.AsyncClient(base_url=server.url.removesuffix("/v1"), trust_env=False, timeout=180) as http:
        (await http.post(f"/edge/v1/models/{name}/{verb}")).raise_for_status()
    return time.monotonic() - begun_s


def counts(server: Server) -> dict[str, dict[str, int]]:
    """Loads and unloads of each model."""
    found = httpx.get(f"{server.url.removesuffix('/v1')}/edge/v1/models", trust_env=False, timeout=30).json()["models"]
    return {m["name"]: {key: m[key] for key in ("loads", "unloads", "failures")} for m in found}


def judge(held: Held, part: str, tally: Tally) -> None:
    """What is promised in every part."""
    failed = sum(tally.failed.values())
    held.check(f"{part}: failed requests of {tally.requests}", failed, failed == 0)
    held.check(f"{part}: cut streams of {tally.streams}", tally.cut, tally.cut == 0)


# --- parts ------------------------------------------------------------------------------------------------------------


def among(a: argparse.Namespace, models: Models, held: Held) -> dict[str, Any]:
    """Three further models in room for two, beside the main one."""
    plan = planned_mib(models, BUILTIN, FURTHER)
    main, most = plan[BUILTIN.stem], max(plan[name] for name in FURTHER)

    async def run(server: Server) -> tuple[Load, Watch]:
        names = (server.model, *FURTHER)
        async with Watch(server) as watch, Load(server, a.clients, lambda chance: chance.choice(names), 1) as load:
            await asyncio.sleep(a.seconds)
        return load, watch

    with node(BUILTIN, models.tables(FURTHER), budget_mib=main + 2 * most + most // 2) as server:
        load, watch = asyncio.run(run(server))
        swaps = counts(server)
    judge(held, "three models in room for two", load.tally)
    loads = sum(swaps[name]["loads"] for name in FURTHER)
    held.check("three models in room for two: loads under load", loads, loads > 2 * len(FURTHER))
    held.check("most planned memory beside the room", watch.most_planned / watch.room, watch.most_planned <= watch.room)
    held.check(
        "most resident memory beside the room", watch.most_resident / watch.room, watch.most_resident <= watch.room
    )
    held.check("looks at which the node was not ready", watch.unready, watch.unready == 0)
    return {"planned, MiB": plan, **load.tally.account(), "swaps": swaps, "memory": watch.account()}


async def _versions(
    a: argparse.Namespace, server: Server, name: str, swap: Callable[[int], Awaitable[float]]
) -> tuple[Load, Watch, list[float], int]:
    """Load goes on while one version replaces the other. Gives also how many answers, of those that were asked for when a swap
    was done, came from the version before."""
    stale, took_s = 0, []
    names = tuple(dict.fromkeys((server.model, name)))
    async with Watch(server) as watch, Load(server, a.clients, lambda chance: chance.choice(names), 2) as load:
        await asyncio.sleep(3)
        for number in range(a.swaps):
            begun_s = time.monotonic()
            took_s.append(await swap(number))
            done_s = time.monotonic()
            await asyncio.sleep(2)
            seen = [(sent, first, print_) for sent, first, model, print_ in load.tally.fingerprints if model == name]
            before = {print_ for _, first, print_ in seen if first < begun_s}
            stale += sum(sent > done_s and print_ in before for sent, _, print_ in seen)
            load.tally.fingerprints.clear()
    return load, watch, took_s, stale


def _swap(models: Models, server: Server, name: str) -> Callable[[int], Awaitable[float]]:
    async def swap(number: int) -> float:
        models.put(name, 2 - number % 2)
        return await operate(server, name, "load")

    return swap


def beside(a: argparse.Namespace, models: Models, held: Held) -> dict[str, Any]:
    """A new version of the main model, with memory for both."""
    models.put(FURTHER[0], 1)  # other parts may have left another
    main = models.path(FURTHER[0])
    with node(main, "") as server:
        load, watch, took_s, stale = asyncio.run(
            _versions(a, server, server.model, _swap(models, server, server.model))
        )
        swaps = counts(server)
    judge(held, "swap with memory for both", load.tally)
    _judge_swaps(a, held, "swap with memory for both", swaps[main.stem]["loads"], stale)
    held.check("swap with memory for both: looks at which the node was not ready", watch.unready, watch.unready == 0)
    return {**load.tally.account(), "a swap took, s": _seconds(took_s), "swaps": swaps, "memory": watch.account()}


def instead(a: argparse.Namespace, models: Models, held: Held) -> dict[str, Any]:
    """A new version of a further model, without memory for both and without a fleet."""
    name = FURTHER[0]
    models.put(name, 1)
    plan = planned_mib(models, BUILTIN, (name,))
    budget = plan[BUILTIN.stem] + plan[name] + plan[name] // 2
    with node(BUILTIN, models.tables((name,)), budget_mib=budget) as server:
        load, watch, took_s, stale = asyncio.run(_versions(a, server, name, _swap(models, server, name)))
        swaps = counts(server)
    judge(held, "swap without memory for both", load.tally)
    _judge_swaps(a, held, "swap without memory for both", swaps[name]["loads"], stale)
    held.check(
        "swap without memory: most planned beside the room",
        watch.most_planned / watch.room,
        watch.most_planned <= watch.room,
    )
    return {**load.tally.account(), "a swap took, s": _seconds(took_s), "swaps": swaps, "memory": watch.account()}


def fleet(a: argparse.Namespace, models: Models, held: Held) -> dict[str, Any]:
    """A new version of the main model, without memory for both; a fleet answers meanwhile."""
    models.put(FURTHER[0], 1)  # other parts may have left another
    main = models.path(FURTHER[0])
    plan = planned_mib(models, main, ())
    with (
        stand_in() as url,
        node(
            main, "", budget_mib=plan[main.stem] * 3 // 2, EDGE_ADMISSION__MODE="fleet", EDGE_FLEET__URL=url
        ) as server,
    ):
        load, watch, took_s, stale = asyncio.run(
            _versions(a, server, server.model, _swap(models, server, server.model))
        )
        swaps = counts(server)
        log = httpx.get(
            f"{server.url.removesuffix('/v1')}/edge/v1/decisions?limit=1024", trust_env=False, timeout=30
        ).json()
    waited = [e for e in log["decisions"] if (e["route"], e["reason"]) == ("late", "loading")]
    judge(held, "swap of the main model through the fleet", load.tally)
    _judge_swaps(a, held, "swap of the main model through the fleet", swaps[main.stem]["loads"], stale)
    meanwhile = load.tally.answered["fleet loading"]
    held.check("swap of the main model: answered by the fleet meanwhile", meanwhile, meanwhile > 0)
    return {
        **load.tally.account(),
        "waited here, by what was with the fleet": dict(Counter(e["fleet_reason"] for e in waited)),
        "a swap took, s": _seconds(took_s),
        "swaps": swaps,
        "memory": watch.account(),
    }


def _judge_swaps(a: argparse.Namespace, held: Held, part: str, loads: int, stale: int) -> None:
    held.check(f"{part}: versions loaded under load", loads - 1, loads - 1 >= a.swaps)
    held.check(f"{part}: answers of the old version to what was asked after the swap", stale, stale == 0)


def _seconds(took_s: list[float]) -> list[float]:
    return [round(s, 2) for s in took_s]


def behind(a: argparse.Namespace, models: Models, held: Held) -> dict[str, Any]:
    """The main model's times: alone, beside a further model under load, and beside one that has the usual priority. Turn by turn,
    since the machine may have others to serve too."""
    name = FURTHER[0]
    seen: dict[str, Tally] = {"alone": Tally(), "beside": Tally(), "beside, at equal priority": Tally()}
    others: dict[str, Tally] = {"beside": Tally(), "beside, at equal priority": Tally()}

    async def turn(server: Server, how: str) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if how in others:
                await stack.enter_async_context(Load(server, FURTHER_SLOTS, lambda _: name, 5, others[how]))
                await asyncio.sleep(1)
            async with Load(server, 2, lambda _: server.model, 3, seen[how]):
                await asyncio.sleep(a.behind_seconds / _TURNS)

    with node(BUILTIN, models.tables((name,))) as server:
        asyncio.run(operate(server, name, "load"))
        other = _in_the_background(server)
        for _ in range(_TURNS):
            for how in seen:
                _set_policy(other, os.SCHED_OTHER if "equal" in how else os.SCHED_IDLE)
                asyncio.run(turn(server, how))
        gap_ms = largest_gap_s(1.0) * 1000
    found = {how: _main_times(tally, server.model) for how, tally in seen.items()}
    for how, tally in seen.items():
        judge(held, f"main model {how}", tally)
    for how, tally in others.items():
        judge(held, f"the other model {how}", tally)
        found[how]["the other's tokens/s, streamed"] = round(len(tally.gaps_s.get(name, ())) / a.behind_seconds, 1)
    alone_ms, beside_ms = (found[how]["gap, ms"]["p99"] for how in ("alone", "beside"))
    near = beside_ms <= max(50.0, 1.5 * alone_ms)
    held.check(f"main model's gap p99 beside another under load, ms (alone {alone_ms:g})", beside_ms, near)
    return {**found, "spin_loop_largest_gap_ms": round(gap_ms, 2)}


_TURNS = 4


def _main_times(tally: Tally, model: str) -> dict[str, Any]:
    gaps = tally.gaps_s[model]
    return {
        "requests": tally.requests,
        "first token, ms": _spread(tally.first_s[model]),
        "gap, ms": _spread(gaps),
        "gaps over 50 ms, share": round(sum(g > 0.05 for g in gaps) / len(gaps), 4),
        "answered": dict(tally.answered),
    }


def _in_the_background(server: Server) -> psutil.Process:
    """The engine that takes only the processor time that others leave."""
    engines = [c for c in psutil.Process(server.pid).children() if "edge.engine.worker" in _command(c)]
    return next(c for c in engines if os.sched_getscheduler(c.pid) == os.SCHED_IDLE)


def _set_policy(engine: psutil.Process, policy: int) -> None:
    """For every thread of an engine, to see what another priority would cost."""
    for thread in engine.threads():
        with contextlib.suppress(OSError):
            os.sched_setscheduler(thread.id, policy, os.sched_param(0))


PARTS = {"among": among, "beside": beside, "instead": instead, "fleet": fleet, "behind": behind}


def main() -> int:
    """Command line."""
    given = parser(__doc__, tuple(PARTS))
    given.add_argument("--seconds", type=float, default=120.0, help="of the load among three models")
    given.add_argument("--behind-seconds", type=float, default=40.0)
    given.add_argument("--clients", type=int, default=24)
    given.add_argument("--swaps", type=int, default=8)
    a = given.parse_args()
    wanted = chosen(given, a, tuple(PARTS))
    with tempfile.TemporaryDirectory() as scratch:
        models = Models(Path(scratch))
        return prove(
            {name: partial(PARTS[name], a, models) for name in wanted}, {"shape of the further models": SHAPE}, a.out
        )


if __name__ == "__main__":
    sys.exit(main())
