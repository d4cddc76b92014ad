"""An engine that cannot get its memory goes on with less: at the start, and in the middle of work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable

import msgspec
import psutil
import pytest

from edge.engine.client import EngineClient
from edge.errors import DoesNotFit, EngineDown, ModelUnusable
from edge.messages import Load, Sampling, Submit, TextPrompt
from tests.engine.bounded_child import BOUND
from tests.engine.conftest import LIMITS, Q4_0, collect, load_of

MIB = 1 << 20
ASK = Submit(0, TextPrompt("pump 3"), Sampling(temperature=0.0), max_tokens=4)


class BoundedClient(EngineClient):
    """Each of its children may map no more than `ADDRESS_SPACE_BYTES` of its environment says."""

    module = "tests.engine.bounded_child"


def bounded(load: Load, mebibytes: int, smaller: Smaller | None = None) -> BoundedClient:
    return BoundedClient(load, LIMITS, smaller=smaller, environment={BOUND: str(mebibytes * MIB)})


async def idle_size_mib() -> int:
    """Address space of an engine with almost nothing in it, all of whose threads run."""
    client = EngineClient(load_of(Q4_0, slots=1, context_tokens=64, cache_bytes=0), LIMITS)
    await client.start()
    try:
        await client.wait_ready()
        await collect(client, ASK)
        return psutil.Process(client.status.pid).memory_info().vms // MIB
    finally:
        await client.stop()


@contextlib.asynccontextmanager
async def at_work() -> AsyncIterator[tuple[EngineClient, Smaller, int]]:
    """An engine of four slots that has answered once, so that all its threads run; what it may shrink to; its process."""
    load = load_of(Q4_0, slots=4)
    smaller = Smaller(load)
    client = EngineClient(load, LIMITS, smaller=smaller)
    await client.start()
    try:
        await client.wait_ready()
        await collect(client, ASK)
        assert client.status.pid is not None
        yield client, smaller, client.status.pid
    finally:
        await client.stop()


async def ready_when(client: EngineClient, what: Callable[[], bool]) -> None:
    """Look and wait in one task: of a change between the two nobody would be told."""
    while client.status.phase != "ready" or not what():
        await client.changed()


class Smaller:
    """Halves the slots each time, down to one; remembers what it gave."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.given: list[int] = []

    async def __call__(self) -> Load | None:
        if self.load.slots == 1:
            return None
        self.load = msgspec.structs.replace(self.load, slots=self.load.slots // 2)
        self.given.append(self.load.slots)
        return self.load


def test_a_model_that_does_not_fit_is_loaded_with_a_smaller_layout() -> None:
    async def body() -> None:
        load = load_of(Q4_0, slots=64, cache_bytes=0)
        smaller = Smaller(load)
        limit = await idle_size_mib() + 150
        client = bounded(load, limit, smaller)  # the cells of 64 slots take 320 MiB
        await client.start()
        try:
            facts = await asyncio.wait_for(client.wait_ready(), 120)
            assert facts.slots == smaller.given[-1] < 64
            assert client.status.reduced == len(smaller.given)
            assert (await collect(client, ASK)).finished is not None
        finally:
            await client.stop()

    asyncio.run(body())


def test_without_a_smaller_layout_the_first_load_is_refused_for_want_of_memory() -> None:
    async def body() -> None:
        limit = await idle_size_mib() + 150
        client = bounded(load_of(Q4_0, slots=64), limit)
        await client.start()
        try:
            with pytest.raises(DoesNotFit, match="no memory for 64 slots of 2048 tokens"):
                await asyncio.wait_for(client.wait_ready(), 120)
            assert client.status.phase == "down"
        finally:
            await client.stop()

    asyncio.run(body())


class StarvingClient(EngineClient):
    """Its children get no memory for grammars."""

    module = "tests.engine.starving_child"


def test_memory_that_the_grammars_library_misses_is_given_by_a_smaller_layout_too() -> None:
    async def body() -> None:
        load = load_of(Q4_0, slots=4)
        smaller = Smaller(load)
        client = StarvingClient(load, LIMITS, smaller=smaller)
        await client.start()
        try:
            with pytest.raises(ModelUnusable):
                await asyncio.wait_for(client.wait_ready(), 120)
            assert smaller.given == [2, 1]
        finally:
            await client.stop()

    asyncio.run(body())


def test_an_engine_that_runs_out_of_memory_at_work_comes_back_smaller() -> None:
    async def body() -> None:
        async with at_work() as (client, smaller, pid):
            resource.prlimit(pid, resource.RLIMIT_AS, (psutil.Process(pid).memory_info().vms,) * 2)
            with pytest.raises(EngineDown):
                await collect(
                    client, Submit(0, TextPrompt("pump " * 900), Sampling(temperature=0.0), n=4, max_tokens=64)
                )
                for _ in range(200):  # the heap's spare room is used up at last
                    await collect(client, Submit(0, TextPrompt("x " * 1500), Sampling(temperature=0.0), max_tokens=200))
            await asyncio.wait_for(ready_when(client, lambda: client.status.reduced > 0), 120)
            assert client.facts is not None and client.facts.slots == 2 and smaller.given == [2]
            assert (await collect(client, ASK)).finished is not None

    asyncio.run(body())


def test_an_engine_that_is_killed_for_other_reasons_keeps_its_layout() -> None:
    async def body() -> None:
        async with at_work() as (client, smaller, pid):
            os.kill(pid, signal.SIGKILL)
            await asyncio.wait_for(ready_when(client, lambda: client.status.restarts > 0), 120)
            assert client.facts is not None and client.facts.slots == 4 and not smaller.given

    asyncio.run(body())
