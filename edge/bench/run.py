"""A whole run: every server at every level of load in every round, in turns, and the report of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

import uvloop

from edge.bench.load import Bounds, Client, Stop, closed_loop, open_loop
from edge.bench.machine import describe, largest_gap_s
from edge.bench.outcome import Slo, outcome
from edge.bench.report import Noise, Part, Report, TargetFacts, result
from edge.bench.target import Target
from edge.bench.workload import Job, Load, Mix, closed_jobs, open_jobs

INTERRUPTED = "interrupted by Ctrl-C"
_SETTLE_S = 0.2  # a server notices within this that the last level's clients have gone
_TICK_S = 1.0
_FIRST_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `trace` holds the jobs of a level of kind trace; the others are made from `mix` and `seed`."""

    loads: tuple[Load, ...]
    mix: Mix
    seed: int
    duration_s: float
    rounds: int = 1
    slo: Slo = field(default_factory=Slo)
    bounds: Bounds = field(default_factory=Bounds)
    time_limit_s: float = 3600.0
    trace: tuple[Job, ...] = ()
    spin_s: float = 1.0

    def first_job(self) -> Job:
        """A short request to try a server with. Its prompt is not one that is measured, so no cache is warmed by it."""
        if self.trace:
            return replace(self.trace[0], max_tokens=_FIRST_TOKENS)
        plain = Mix(self.mix.prompt_words, 0, 0, 0, min(self.mix.output_tokens, _FIRST_TOKENS))
        return next(closed_jobs(plain, self.seed, -1, self.loads[0]))

    def jobs(self, load: Load, round_number: int) -> Sequence[Job]:
        """The jobs of an open-loop level or of the trace."""
        if load.kind == "trace":
            return self.trace
        return open_jobs(self.mix, self.seed, round_number, load, self.duration_s)


class Watcher(Protocol):
    """Is told how far a run is."""

    def progress(self, done: float, doing: str) -> None:
        """`done` is 0..1 of the run."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One server's turn at one level."""

    round_number: int
    load: Load
    target: Target


def turns(plan: Plan, targets: Sequence[Target]) -> Iterator[Turn]:
    """Level by level, A B then B A: what drifts on the machine meets all servers alike."""
    flip = False
    for round_number in range(plan.rounds):
        for load in plan.loads:
            for target in targets[::-1] if flip else targets:
                yield Turn(round_number, load, target)
            flip = not flip


def measure(plan: Plan, targets: Sequence[Target], watcher: Watcher) -> Report:
    """Run a plan. Ctrl-C and the time limit end it early, with a report of what was measured until then."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(plan, targets, watcher))


async def _measure(plan: Plan, targets: Sequence[Target], watcher: Watcher) -> Report:
    began, began_s = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"), time.perf_counter()
    stop = Stop()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        loop.remove_signal_handler(signal.SIGINT)  # a second Ctrl-C ends at once
        stop.set(INTERRUPTED)

    loop.add_signal_handler(signal.SIGINT, interrupt)
    limit = loop.call_later(plan.time_limit_s, stop.set, f"--time-limit of {plan.time_limit_s:g} s reached")
    watcher.progress(0.0, "listening to the machine's own noise")
    before_s = largest_gap_s(plan.spin_s)
    parts: dict[tuple[str, Load], list[Part]] = {}
    everything = list(turns(plan, targets))
    for number, turn in enumerate(everything):
        if await stop.wait(_SETTLE_S):
            break
        async with _ticking(watcher, plan, turn, number, len(everything)):
            part = await _take(plan, turn, stop)
        if part.outcomes or part.complete:
            parts.setdefault((turn.target.name, turn.load), []).append(part)
    watcher.progress(1.0, "listening to the machine's own noise")
    after_s = None if stop.reason else largest_gap_s(plan.spin_s)
    limit.cancel()
    return Report(
        started=began,
        seconds=round(time.perf_counter() - began_s, 1),
        interrupted=stop.reason or None,
        machine=describe(),
        noise=Noise(before_ms=round(before_s * 1000, 3), after_ms=after_s and round(after_s * 1000, 3)),
        slo=asdict(plan.slo),
        workload=_workload(plan),
        targets=[
            TargetFacts(name=t.name, url=t.url, model=t.model, api=t.api, dropped_fields=[*t.dropped]) for t in targets
        ],
        results=[
            result(target.name, load.kind, load.value, load.label, parts[target.name, load], plan.slo)
            for load in plan.loads
            for target in targets
            if (target.name, load) in parts
        ],
    )


async def _take(plan: Plan, turn: Turn, stop: Stop) -> Part:
    """One server's turn: measured first, read afterwards."""
    client = Client(turn.target, plan.bounds.timeout_s)
    load = turn.load
    began_s = time.perf_counter()
    try:
        with _no_collector():
            if load.kind == "concurrency":
                jobs = closed_jobs(plan.mix, plan.seed, turn.round_number, load)
                attempts = await closed_loop(client, jobs, int(load.value), plan.duration_s, plan.bounds, stop)
            else:
                attempts = await open_loop(client, plan.jobs(load, turn.round_number), plan.bounds, stop)
    finally:
        client.close()
    window_s = plan.duration_s if load.kind == "rate" else None
    if window_s is not None and stop.reason:
        window_s = min(window_s, time.perf_counter() - began_s)
    outcomes = sorted((outcome(attempt) for attempt in attempts), key=lambda o: o.due_s)
    return Part(outcomes, window_s, complete=not stop.reason)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Python's collector stops everything for milliseconds: once before, not in between."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.asynccontextmanager
async def _ticking(watcher: Watcher, plan: Plan, turn: Turn, number: int, count: int) -> AsyncIterator[None]:
    """Tell the watcher once a second: a bar redrawn more often would cost the figures what it costs the processor."""
    length_s = plan.trace[-1].at_s if turn.load.kind == "trace" else plan.duration_s
    began_s = time.perf_counter()
    doing = f"{turn.load.label}, {turn.target.name}" + (f", round {turn.round_number + 1}" if plan.rounds > 1 else "")

    async def tick() -> None:
        while True:
            share = min(0.99, (time.perf_counter() - began_s) / max(length_s, 0.1))
            watcher.progress((number + share) / count, doing)
            await asyncio.sleep(_TICK_S)

    task = asyncio.create_task(tick())
    try:
        yield
    finally:
        task.cancel()


def _workload(plan: Plan) -> dict[str, object]:
    kind = plan.loads[0].kind
    common: dict[str, object] = {"kind": kind, "rounds": plan.rounds, **asdict(plan.bounds)}
    if kind == "trace":
        return common | {"trace_requests": len(plan.trace), "trace_s": plan.trace[-1].at_s}
    return common | {"duration_s": plan.duration_s, "seed": plan.seed, **asdict(plan.mix)}
