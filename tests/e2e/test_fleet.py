"""Two real nodes, one of which is the other's fleet: overload, death in the middle of answers, and no circles."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bench.servers import free_port
from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.fleet.upstream import wait_until

F16 = str(Path(__file__).resolve().parents[2] / "models/builtin/edge-builtin-f16.gguf")
PROMPTS = [f"Set the speed of pump {n} to {n * 3} percent." for n in range(1, 13)]
TOKENS = 400
NODE_KEY, CALLERS_KEY = "secret-of-the-node", "secret-of-the-caller"


@pytest.fixture(scope="module")
def central(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    node = start_node(
        tmp_path_factory.mktemp("central"), "--model", F16, EDGE_ADMISSION__MODE="off", EDGE_ENGINE__SLOTS="16"
    )
    yield node
    stop_node(node)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, central: RunningNode) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("edge")
    (home / "fleet.key").write_text(NODE_KEY)
    node = start_node(
        home,
        "--model",
        F16,
        EDGE_FLEET__URL=f"{central.base_url}/v1",
        EDGE_ENGINE__SLOTS="16",
        EDGE_SLO__TTFT_MS="60000",
        EDGE_SLO__ITL_MS="60000",
        EDGE_FLEET__API_KEY_FILE="fleet.key",
        EDGE_LOG__LEVEL="debug",
    )
    yield node
    stop_node(node)


def body_of(prompt: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    fixed = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "cache_prompt": False}
    return {"model": "edge-builtin-f16", "messages": messages, **fixed, **fields}


async def text_of(
    client: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
    begun: asyncio.Event | None = None,
) -> tuple[str, str, str]:
    """(text, finish reason or error code, route) of one stream. `begun` is set at its first word."""
    text, end = "", ""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body, headers=headers) as answer:
        route = answer.headers.get("x-edge-route", "")
        if answer.status_code != httpx.codes.OK:
            return "", str(answer.status_code), route
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return text, event["error"]["code"], route
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                if text and begun is not None:
                    begun.set()
                end = choice["finish_reason"] or end
    return text, end, route


def engine_of(node: RunningNode) -> int:
    """Process id of its engine."""
    children = psutil.Process(node.process.pid).children(recursive=True)
    return next(c.pid for c in children if "edge.engine.worker" in " ".join(c.cmdline()))


def load_of(node: RunningNode) -> dict[str, Any]:
    """What it says of itself."""
    return httpx.get(f"{node.base_url}/edge/v1/load", timeout=60, trust_env=False).json()


def decisions_of(node: RunningNode, most: int) -> list[dict[str, Any]]:
    """Its newest decisions."""
    url = f"{node.base_url}/edge/v1/decisions?limit={most}"
    return list(httpx.get(url, timeout=60, trust_env=False).json()["decisions"])


def ready(node: RunningNode) -> bool:
    """By its own engine."""
    return bool(httpx.get(f"{node.base_url}/health/ready", timeout=60, trust_env=False).json().get("by") == "node")


async def all_of(
    url: str, bodies: list[dict[str, Any]], disturb: Any = None, name: str = "pump"
) -> list[tuple[str, str, str]]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        named = [{"x-request-id": f"{name}-{number}"} for number in range(len(bodies))]
        begun = [asyncio.Event() for _ in bodies]
        given = zip(bodies, named, begun, strict=True)
        tasks = [asyncio.create_task(text_of(client, url, body, headers, event)) for body, headers, event in given]
        if disturb is not None:
            async with asyncio.timeout(60):
                await asyncio.gather(*(event.wait() for event in begun))
            disturb()
        return list(await asyncio.gather(*tasks))


def test_a_killed_engines_answers_are_gone_on_with_by_the_fleet_without_a_seam(
    edge: RunningNode, central: RunningNode
) -> None:
    """At each seam the text is the undisturbed one up to there, and then what the fleet says when asked to go on from there."""
    bodies = [body_of(prompt) for prompt in PROMPTS]
    undisturbed = asyncio.run(all_of(central.base_url, bodies))
    answers = asyncio.run(all_of(edge.base_url, bodies, lambda: os.kill(engine_of(edge), signal.SIGKILL)))
    assert [end for _, end, _ in answers] == ["length"] * len(PROMPTS)
    log = decisions_of(edge, len(PROMPTS))
    seams = {entry["request_id"]: entry["continued_at"] for entry in log if entry["continued"]}
    assert len(seams) >= len(PROMPTS) // 2, "the engine died too late to matter"
    before = after = 0
    for number, (text, _, _) in enumerate(answers):
        seam = seams.get(f"pump-{number}", 0)
        begun, whole = text[:seam], undisturbed[number][0]
        more = {"continue_final_message": True, "add_generation_prompt": False}
        messages = [*bodies[number]["messages"], {"role": "assistant", "content": begun}]
        body = {**bodies[number], **more, "messages": messages} if seam else bodies[number]
        ((asked_alone, _, _),) = asyncio.run(all_of(central.base_url, [body]))
        before += begun == whole[:seam]
        after += text[seam : seam + 20] in (whole[seam : seam + 20], asked_alone[:20])
    # Numbers move a little with how many answers are computed together, so a near-tie may fall the other way; a seam that lost or
    # doubled a character would be wrong every time.
    assert min(before, after) >= 0.75 * len(PROMPTS), (
        f"{before} right before the seam, {after} after it, of {len(PROMPTS)}"
    )
    wait_until(lambda: ready(edge), 60)


def test_no_prompt_and_no_key_is_in_any_log(edge: RunningNode, central: RunningNode) -> None:
    """Whatever happened before; and with the callers' keys and the node's own on the way."""
    headers = {"authorization": f"Bearer {CALLERS_KEY}", "x-edge-policy": "fleet-ok"}

    async def many() -> list[tuple[str, str, str]]:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            asks = [text_of(client, edge.base_url, body_of(PROMPTS[0], max_tokens=100), headers) for _ in range(24)]
            return list(await asyncio.gather(*asks))

    routes = [route for _, _, route in asyncio.run(many())]
    assert "fleet" in routes
    for said in ("speed of pump", CALLERS_KEY, NODE_KEY):
        assert said not in edge.said() + central.said()


def test_two_nodes_that_are_each_others_fleet_send_nothing_in_a_circle(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    nodes: list[RunningNode] = []
    try:
        for own, other in (ports, ports[::-1]):
            home = tmp_path / str(own)
            home.mkdir()
            env = {
                "EDGE_FLEET__URL": f"http://127.0.0.1:{other}/v1",
                "EDGE_ENGINE__SLOTS": "2",
                "EDGE_ADMISSION__OFFLINE": "strict",
            }
            nodes.append(start_node(home, port=own, **env, EDGE_ADMISSION__MAX_WAIT_S="0.5"))
        for node in nodes:
            wait_until(lambda node=node: load_of(node)["fleet"]["available"])
        bodies = [body_of(f"{n} {PROMPTS[0]}", max_tokens=700) | {"model": "edge-builtin"} for n in range(24)]

        async def flood() -> list[list[tuple[str, str, str]]]:
            return list(await asyncio.gather(*(all_of(n.base_url, bodies, name=n.home.name) for n in nodes)))

        answers = asyncio.run(flood())
        seen = [decisions_of(node, 1024) for node in nodes]
    finally:
        for node in nodes:
            stop_node(node)
    ids = [[entry["request_id"] for entry in log] for log in seen]
    for log in ids:
        assert len(log) == len(set(log)), "a request came to the same node twice"
    assert {end for node_answers in answers for _, end, _ in node_answers} <= {"length", "429", "503"}
    assert any(end == "length" for node_answers in answers for _, end, _ in node_answers)
    assert set(ids[0]) & set(ids[1]), "nothing was handed on"
