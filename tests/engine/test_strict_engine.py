"""Mode strict in a real engine: what would miss the targets is refused, and nothing else is hurt by that."""

import asyncio

from edge.engine.client import EngineClient
from edge.errors import Overloaded
from edge.messages import FirstToken, Sampling, Submit, TextPrompt
from tests.engine.conftest import Q4_0, collect, load_of, run_with_engine

GREEDY = Sampling(temperature=0.0)


def ask(tokens: int) -> Submit:
    return Submit(0, TextPrompt("pump 3"), GREEDY, max_tokens=tokens, ignore_eos=True)


def test_more_than_the_slots_are_refused_and_the_admitted_go_on() -> None:
    async def use(client: EngineClient) -> None:
        async def outcome() -> bool:
            try:
                return (await collect(client, ask(300))).finished is not None
            except Overloaded:
                return False

        done = await asyncio.gather(*(outcome() for _ in range(12)))
        assert 0 < sum(done) <= 2
        first = [event async for event in client.submit(ask(2)) if isinstance(event, FirstToken)]
        assert [event.admitted for event in first] == [True]
        assert client.status.restarts == 0

    # Targets so wide that the slots alone decide: no machine is too slow for this test.
    wide = {"ttft_target_s": 60.0, "itl_target_s": 60.0}
    run_with_engine(load_of(Q4_0, admission="strict", slots=2, **wide), use)
