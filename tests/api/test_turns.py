"""Long answers in pieces: others have their turn meanwhile."""

from __future__ import annotations

import asyncio
import json
from array import array

import pytest

from edge.api.embeddings import listed
from edge.onnx.messages import Embedded


@pytest.mark.parametrize("coded", [False, True])
def test_many_vectors_hold_up_nobody(coded: bool) -> None:
    numbers = array("f", [n / 7 for n in range(2000 * 384)])
    found, turns = Embedded(0, numbers.tobytes(), 384, 9), 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> bytes:
        beside = asyncio.create_task(others())
        made = await listed(found, coded=coded)
        beside.cancel()
        return made

    data = json.loads(asyncio.run(both()))
    assert [d["index"] for d in data] == list(range(2000))
    assert coded or data[1]["embedding"] == numbers[384:768].tolist()
    assert turns > 2
