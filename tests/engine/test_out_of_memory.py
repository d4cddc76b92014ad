"""An engine that cannot get its memory goes on with less: at the start, and in the middle of work."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from edge.engine.client import EngineClient
from edge.errors import DoesNotFit, EngineDown
from edge.messages import Load, Sampling, Submit, TextPrompt
from tests.engine.conftest import LIMITS, Q4_0, collect, load_of

MIB = 1 << 20
ASK = Submit(0, TextPrompt("pump 3"), Sampling(temperature=0.0), max_tokens=4)


@contextlib.asynccontextmanager
async def address_space(client: EngineClient, mebibytes: int) -> AsyncIterator[None]:
    """Each child of the client may map no more than this: allocations then fail for real. It is in force long before the child
    has loaded its libraries."""

    async def bound() -> None:
        bounded = None
        while True:
            if (pid := client.status.pid) not in (None, bounded):
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(pid, resource.RLIMIT_AS, (mebibytes * MIB, mebibytes * MIB))
                bounded = pid
            await asyncio.sleep(0.002)

    task = asyncio.create_task(bound())
    try:
        yield
    finally:
        task.cancel()


async def idle_size_mib() -> int:
    """Address space of an engine with almost nothing in it."""
    client = EngineClient(load_of(Q4_0, slots=1, context_tokens=64, cache_bytes=0), LIMITS)
    await client.start()
    try:
        await client.wait_ready()
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
        client = EngineClient(load, LIMITS, smaller=smaller)
        async with address_space(client, limit):  # the cells of 64 slots take 320 MiB
            await client.start()
            try:
                facts = await asyncio.wait_for(client.wait_ready(), 60)
                assert facts.slots == smaller.given[-1] < 64
                assert client.status.reduced == len(smaller.given)
                assert (await collect(client, ASK)).finished is not None
            finally:
                await client.stop()

    asyncio.run(body())


def test_without_a_smaller_layout_the_first_load_is_refused_for_want_of_memory() -> None:
    async def body() -> None:
        limit = await idle_size_mib() + 150
        client = EngineClient(load_of(Q4_0, slots=64), LIMITS)
        async with address_space(client, limit):
            await client.start()
            try:
                with pytest.raises(DoesNotFit, match="no memory for 64 slots of 2048 tokens"):
                    await asyncio.wait_for(client.wait_ready(), 60)
                assert client.status.phase == "down"
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
            while client.status.reduced == 0 or client.status.phase != "ready":
                await asyncio.wait_for(client.changed(), 60)
            assert client.facts is not None and client.facts.slots == 2 and smaller.given == [2]
            assert (await collect(client, ASK)).finished is not None

    asyncio.run(body())


def test_an_engine_that_is_killed_for_other_reasons_keeps_its_layout() -> None:
    async def body() -> None:
        async with at_work() as (client, smaller, pid):
            os.kill(pid, signal.SIGKILL)
            while client.status.restarts == 0 or client.status.phase != "ready":
                await asyncio.wait_for(client.changed(), 60)
            assert client.facts is not None and client.facts.slots == 4 and not smaller.given

    asyncio.run(body())
