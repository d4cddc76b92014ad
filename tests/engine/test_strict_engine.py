"""Requests that do not want to be late, in a real engine: declined at once, and nothing else is hurt by that."""

import asyncio
import os
import signal
import time

import msgspec

from edge.engine.client import EngineClient
from edge.errors import Declined
from edge.messages import Offer, Sampling, Submit, TextPrompt
from tests.engine.conftest import Q4_0, collect, load_of, run_with_engine

GREEDY = Sampling(temperature=0.0)
WIDE = {"ttft_target_s": 0.2, "itl_target_s": 60.0}
"""Targets so wide that slots alone decide, and answers so long that none of them becomes free in that time."""


def ask(tokens: int) -> Submit:
    return Submit(0, TextPrompt("pump 3"), GREEDY, max_tokens=tokens, ignore_eos=True, late="decline")


def test_more_than_the_slots_are_declined_and_the_admitted_go_on() -> None:
    async def use(client: EngineClient) -> None:
        async def outcome() -> str:
            try:
                return "" if (await collect(client, ask(1800))).finished is not None else "unfinished"
            except Declined as declined:
                assert not declined.hopeless and declined.prompt_tokens > 0
                return declined.reason

        pid = client.status.pid
        assert pid is not None
        met: list[str] = []
        for _ in range(10):  # with what a child that stands still gets to know too late, it is late
            os.kill(pid, signal.SIGSTOP)  # all are there before the first is answered, however slow this process is
            asked = [asyncio.create_task(outcome()) for _ in range(12)]
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGCONT)
            met = await asyncio.gather(*asked)
            assert met.count("") <= 2 and set(met) <= {"", "slots", "slo_ttft"}
            if {"", "slots"} <= set(met):
                break
        assert {"", "slots"} <= set(met)
        assert client.full is None, "answers have ended since"
        unhurried = msgspec.structs.replace(ask(2), arrived_s=time.monotonic() + 60)
        offers = [event async for event in client.submit(unhurried) if isinstance(event, Offer)]
        assert [(offer.outlook.admitted, offer.outlook.reason) for offer in offers] == [(True, "")]
        assert client.status.restarts == 0 and client.in_flight == 0

    run_with_engine(load_of(Q4_0, promises=True, slots=2, **WIDE), use)


def test_a_model_too_slow_for_the_targets_declines_everything_as_hopeless() -> None:
    async def use(client: EngineClient) -> None:
        try:
            await collect(client, ask(2))
        except Declined as declined:
            assert declined.hopeless
        else:
            raise AssertionError("it was admitted")

    run_with_engine(load_of(Q4_0, promises=True, ttft_target_s=1e-5, itl_target_s=1e-5), use)
