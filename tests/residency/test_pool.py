"""The pool in a storm of requests, loads, unloads, crashes, and clients that leave. Engines are fakes, time is real and short."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from edge.engine.port import EngineStatus
from edge.errors import CannotUnload, EdgeError, EngineDown, ModelLoading, Overloaded
from edge.messages import ModelFacts
from edge.residency import Fitted, Pool, PoolLimits, Spec
from tests.api.fake_engine import FakeEngine, facts
from tests.residency.fake_planner import MIB, FakePlanner

SPECS = [
    Spec("main", "main", main=True),
    *(Spec(name, name) for name in "abc"),
    Spec("pinned", "pinned", pinned=True),
]
SIZES = {"main": 2 * MIB, "a": 2 * MIB, "b": 3 * MIB, "c": 4 * MIB, "pinned": MIB}
ROOM = 8 * MIB


@dataclass
class Counting(FakeEngine):
    """Takes a while to load, counts who uses it, and complains when it is ended under somebody."""

    load_s: float = 0.0
    users: int = 0
    complaints: list[str] = field(default_factory=list)
    path: str = ""
    crashes: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def in_flight(self) -> int:
        return self.users

    async def start(self) -> None:
        assert self.status.phase == "ready" and not self.stopped

    async def wait_ready(self) -> ModelFacts:
        await asyncio.sleep(self.load_s)
        return facts()

    async def ended(self) -> str:
        await self.crashes.wait()
        return "killed by the test"

    async def stop(self) -> None:
        if self.users and not self.crashes.is_set():
            self.complaints.append(f"{self.path} was ended while {self.users} used it")
        self.stopped = True
        await asyncio.sleep(0.002)


class Storm:
    """A pool and what is seen of it."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.engines: list[Counting] = []
        self.planner = FakePlanner(sizes=SIZES)
        self.pool = Pool(SPECS, self.planner, self._start, PoolLimits(ROOM, max_waiting=50, backoff_max_s=0.02))
        self.met: Counter[str] = Counter()
        self.over: list[int] = []

    def _start(self, fitted: Fitted, restarts: bool) -> Counting:
        assert restarts == fitted.load.path.startswith("main")
        engine = Counting(load_s=self.chance.uniform(0.001, 0.02), path=fitted.load.path)
        self.engines.append(engine)
        return engine

    async def client(self, count: int) -> None:
        for _ in range(count):
            name = self.chance.choice(list(SIZES))
            try:
                lease = await self.pool.acquire(name, self.chance.choice([0.001, 20.0, 20.0, 20.0]))
            except ModelLoading:
                self.met["gave up"] += 1
                continue
            except EngineDown:
                self.met["crashed lately"] += 1
                await asyncio.sleep(0.02)
                continue
            engine = lease.engine
            assert isinstance(engine, Counting)
            with lease:
                await asyncio.sleep(self.chance.choice([0, 0.001, 0.005]))
                assert not engine.stopped or engine.crashes.is_set(), "ended between being let in and being counted"
                engine.users += 1
            try:
                await asyncio.sleep(self.chance.uniform(0, 0.01))
            finally:
                engine.users -= 1
            self.met[name] += 1

    async def operator(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(self.chance.uniform(0, 0.02))
            name = self.chance.choice(list(SIZES))
            if self.chance.random() < 0.3:
                self.planner.versions[name] = self.planner.versions.get(name, 1) + 1
            try:
                if self.chance.random() < 0.5:
                    await self.pool.load(name, wait=self.chance.random() < 0.5)
                else:
                    await self.pool.unload(name, wait=False)
            except (CannotUnload, EngineDown, ModelLoading):
                self.met["refused to the operator"] += 1

    async def misfortune(self) -> None:
        while True:
            await asyncio.sleep(0.03)
            alive = [e for e in self.engines if not e.stopped and e.path[0] in "abc"]
            if alive and self.chance.random() < 0.3:
                self.chance.choice(alive).crashes.set()

    async def watch(self) -> None:
        while True:
            if self.pool.planned_bytes > ROOM:
                self.over.append(self.pool.planned_bytes)
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(4))
def test_in_a_storm_nobody_is_cut_off_nobody_starves_and_the_room_is_kept(seed: int) -> None:
    async def main() -> Storm:
        storm = Storm(seed)
        await storm.pool.start()
        await storm.pool.wait_main()
        beside = [asyncio.create_task(storm.watch())]
        if seed % 2:
            beside.append(asyncio.create_task(storm.misfortune()))
        clients = [asyncio.create_task(storm.client(12)) for _ in range(12)]
        leaving = [asyncio.create_task(storm.client(30)) for _ in range(4)]
        operator = asyncio.create_task(storm.operator(40))
        await asyncio.sleep(0.2)
        for task in leaving:
            task.cancel()
        async with asyncio.timeout(300):
            await asyncio.gather(*clients, operator)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, *leaving, return_exceptions=True)
        for name in SIZES:  # whatever happened: each of them answers in the end
            for _ in range(20):
                try:
                    (await storm.pool.acquire(name, 20.0)).release()
                    break
                except EdgeError:
                    await asyncio.sleep(0.03)
            else:
                pytest.fail(f"{name} does not come back")
        await storm.pool.stop()
        return storm

    storm = asyncio.run(main())
    assert [c for e in storm.engines for c in e.complaints] == []
    assert storm.over == []
    assert all(storm.met[name] for name in SIZES)
    assert all(engine.stopped for engine in storm.engines)


LATE_S = 600.0


class Standing(asyncio.SelectorEventLoop):
    """A loop that can find that it stood still, and for how long."""

    stood_s = 0.0

    def time(self) -> float:
        return super().time() + self.stood_s


class Late(Counting):
    """The loop stands still as it gets ready, so that somebody's patience ends in the same turn."""

    async def wait_ready(self) -> ModelFacts:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Standing)
        ready = loop.create_future()

        def late() -> None:
            loop.stood_s += LATE_S
            ready.set_result(None)

        loop.call_soon(late)
        await ready
        return facts()


def test_a_model_that_comes_as_patience_ends_is_not_held_for_ever() -> None:
    async def main() -> None:
        pool = Pool(
            SPECS, FakePlanner(sizes=SIZES), lambda fitted, restarts: Late(path=fitted.load.path),
            PoolLimits(ROOM, max_waiting=2, backoff_max_s=0.02),
        )  # fmt: skip
        await pool.start()
        await pool.wait_main()
        (await pool.acquire("a", LATE_S / 2)).release()  # it came in time: that counts
        serving = pool.roster["a"].serving
        assert serving is not None and not serving.busy
        await pool.stop()

    with asyncio.Runner(loop_factory=Standing) as runner:
        runner.run(main())


def test_the_line_for_one_model_is_bounded() -> None:
    async def main() -> None:
        pool = Pool(
            SPECS, FakePlanner(sizes=SIZES), lambda fitted, restarts: Counting(load_s=0.05, path=fitted.load.path),
            PoolLimits(ROOM, max_waiting=2, backoff_max_s=0.02),
        )  # fmt: skip
        await pool.start()
        await pool.wait_main()
        waiting = [asyncio.create_task(pool.acquire("a", 20.0)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.acquire("a", 20.0)
        assert all([await w for w in waiting])
        await pool.stop()

    asyncio.run(main())


def test_before_it_was_ready_once_the_main_model_says_how_far_it_is() -> None:
    async def main() -> None:
        engine = Counting(load_s=0.05, status=EngineStatus("loading", "reading the weights", 0.5, 0, None))
        engine.start = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
        pool = Pool(SPECS, FakePlanner(), lambda load, restarts: engine, PoolLimits(ROOM, 2, 0.02))
        await pool.start()
        while not pool.roster.engine("main"):
            await asyncio.sleep(0.001)
        assert not pool.roster.waits("main")
        with pytest.raises(ModelLoading, match="50%"):
            pool.lease("main")
        await pool.wait_main()
        assert pool.roster.waits("main")
        await pool.stop()

    asyncio.run(main())
