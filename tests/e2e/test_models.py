"""A real node with real engines: its own model, and two further ones in room for one of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bench.make_gguf import SHAPES, write_model
from tests.conftest import RunEdge
from tests.e2e.conftest import BACKGROUND_S, RunningNode, start_node, stop_node
from tests.fleet.upstream import wait_until

TOKENS = 120
NAMES = ("edge-builtin", "ash", "elm")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ash`, its second version, and `elm`: small files with random weights."""
    directory = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("ash", "ash-2", "elm")):
        write_model(directory / f"{name}.gguf", SHAPES["tiny"], kind="f16", seed=seed)
    return directory


def tables(files: Path) -> str:
    small = "slots = 4\ncontext_tokens = 512\n"
    return (
        f'[models.ash]\nsource = "{files / "ash.gguf"}"\naliases = ["tree"]\n{small}'
        f'[models.elm]\nsource = "{files / "elm.gguf"}"\n{small}'
    )


def started(home: Path, files: Path, *, further_in_memory: float) -> RunningNode:
    """A node with room for its own model and so many others."""
    (home / "edge.toml").write_text(tables(files))
    env = {"EDGE_ENGINE__SLOTS": "4", "EDGE_ENGINE__CONTEXT_TOKENS": "1024", "EDGE_CACHE__HOST_MIB": "32"}
    trial = start_node(home, **env)
    try:
        act(trial, "ash", "load")
        planned = {m["name"]: m["bytes_planned"] for m in models(trial)}
    finally:
        stop_node(trial)
    room = planned["edge-builtin"] + further_in_memory * planned["ash"]
    return start_node(home, EDGE_MEMORY__BUDGET_MIB=str(int(room) >> 20), **env)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Iterator[RunningNode]:
    running = started(tmp_path_factory.mktemp("home"), files, further_in_memory=1.5)
    yield running
    stop_node(running)


def models(node: RunningNode) -> list[dict[str, Any]]:
    found = httpx.get(f"{node.base_url}/edge/v1/models", trust_env=False, timeout=BACKGROUND_S).json()
    assert found["memory"]["planned_bytes"] <= found["memory"]["room_bytes"]
    return list(found["models"])


def state(node: RunningNode, name: str) -> dict[str, Any]:
    return next(m for m in models(node) if m["name"] == name)


def act(node: RunningNode, name: str, verb: str) -> httpx.Response:
    return httpx.post(f"{node.base_url}/edge/v1/models/{name}/{verb}", trust_env=False, timeout=BACKGROUND_S)


def engines(node: RunningNode) -> dict[int, int]:
    """Process ids of the engines, with their scheduling policies."""
    return {engine.pid: os.sched_getscheduler(engine.pid) for engine in node.children("edge.engine.worker")}


@contextlib.contextmanager
def standing_still(node: RunningNode) -> Iterator[list[psutil.Process]]:
    """Its engines, none of which ends an answer meanwhile."""
    found = node.children("edge.engine.worker")
    for engine in found:
        engine.suspend()
    try:
        yield found
    finally:
        for engine in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.resume()


async def stream(client: httpx.AsyncClient, model: str, tokens: int = TOKENS) -> tuple[str, str, int, str]:
    """(model, finish reason or error code, tokens, fingerprint) of one answer."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Set pump 3 to 40 percent."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    end, counted, name, print_, done = "", 0, "", "", False
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != httpx.codes.OK:
            return "", json.loads(await answer.aread())["error"]["code"], 0, ""
        async for line in answer.aiter_lines():
            done = done or line == "data: [DONE]"
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    return "", event["error"]["code"], counted, ""
                name, print_ = event["model"], event["system_fingerprint"]
                counted = (event.get("usage") or {}).get("completion_tokens", counted)
                end = next((c["finish_reason"] for c in event["choices"] if c["finish_reason"]), end)
    return name, end if done else "cut", counted, print_


def client_of(node: RunningNode) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S)


async def until_asked(client: httpx.AsyncClient, name: str, count: int = 1) -> None:
    """Wait until so many requests for a model are answered or wait for it to be loaded."""
    async with asyncio.timeout(BACKGROUND_S):
        while True:
            found = (await client.get("/edge/v1/models")).json()["models"]
            if any(m["name"] == name and m["in_flight"] + m["waiting"] >= count for m in found):
                return
            await asyncio.sleep(0.01)


def test_three_models_in_room_for_two_answer_everybody(node: RunningNode) -> None:
    async def run() -> list[tuple[str, str, int, str]]:
        async with client_of(node) as client:
            return list(await asyncio.gather(*(stream(client, NAMES[n % 3]) for n in range(18))))

    answers = asyncio.run(run())
    assert [(name, end, tokens) for name, end, tokens, _ in answers] == [
        (NAMES[n % 3], "length", TOKENS) for n in range(18)
    ]
    assert sum(m["loads"] for m in models(node)) >= 3
    assert len(engines(node)) <= 2


def test_further_models_take_only_the_processor_time_that_the_main_one_leaves(node: RunningNode) -> None:
    assert act(node, "elm", "load").status_code == 200
    assert sorted(engines(node).values()) == [os.SCHED_OTHER, os.SCHED_IDLE]


@pytest.mark.parametrize("path", ["tokenize", "detokenize"])
def test_tokens_belong_to_a_model(node: RunningNode, path: str) -> None:
    """The files have vocabularies of their own."""
    given = {"tokenize": {"content": "pump"}, "detokenize": {"tokens": [70, 71, 300]}}[path]
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as client:
        said = [client.post(f"/{path}", json={"model": m, **given}).json() for m in ("edge-builtin", "tree")]
    assert said[0] != said[1] and "error" not in said[0] | said[1]


def test_a_new_version_takes_over_without_a_failed_request(node: RunningNode, files: Path) -> None:
    """There is no room for both: the old one leaves first, and requests wait for the new one."""
    assert act(node, "ash", "load").status_code == 200

    async def run() -> list[tuple[str, str, int, str]]:
        async with client_of(node) as client:
            with standing_still(node):
                tasks = [asyncio.create_task(stream(client, "ash")) for _ in range(3)]
                await until_asked(client, "ash", 3)
                shutil.copy(files / "ash-2.gguf", files / "draft")
                (files / "draft").replace(files / "ash.gguf")
                loading = asyncio.create_task(client.post("/edge/v1/models/ash/load"))
            tasks += [asyncio.create_task(stream(client, "tree")) for _ in range(3)]
            assert (await loading).json()["state"] == "ready"
            tasks += [asyncio.create_task(stream(client, "ash")) for _ in range(2)]
            return list(await asyncio.gather(*tasks))

    answers = asyncio.run(run())
    assert [(name, end, tokens) for name, end, tokens, _ in answers] == [("ash", "length", TOKENS)] * 8
    prints = [print_ for *_, print_ in answers]
    assert prints[0] != prints[-1] and prints[-1] == prints[-2]


def test_a_killed_engine_touches_no_other_and_comes_back_when_it_is_asked(node: RunningNode) -> None:
    assert act(node, "ash", "load").status_code == 200
    further = next(pid for pid, policy in engines(node).items() if policy == os.SCHED_IDLE)

    async def run() -> list[tuple[str, str, int, str]]:
        async with client_of(node) as client:
            with standing_still(node):
                mine = asyncio.create_task(stream(client, "edge-builtin", 400))
                theirs = asyncio.create_task(stream(client, "ash", 400))
                await until_asked(client, "ash")
                await until_asked(client, "edge-builtin")
                os.kill(further, signal.SIGKILL)
            return [await mine, await theirs]

    main, killed = asyncio.run(run())
    assert main[:3] == ("edge-builtin", "length", 400)
    assert killed[1] == "engine_down"
    with httpx.Client(base_url=node.base_url, trust_env=False, timeout=BACKGROUND_S) as client:
        body = {"model": "ash", "prompt": "pump", "max_tokens": 4}
        wait_until(lambda: client.post("/v1/completions", json=body).status_code == httpx.codes.OK, BACKGROUND_S)
    assert state(node, "edge-builtin")["loads"] == 1 and state(node, "ash")["failures"] >= 1


def test_a_stop_lets_answers_of_every_model_finish(tmp_path: Path, files: Path) -> None:
    (tmp_path / "edge.toml").write_text(tables(files))
    node = start_node(tmp_path, EDGE_ENGINE__SLOTS="4")

    async def run() -> list[tuple[str, str, int, str]]:
        async with client_of(node) as client:
            tasks = [asyncio.create_task(stream(client, name, 300)) for name in NAMES]  # two of them are being loaded
            async with asyncio.timeout(BACKGROUND_S):
                while {d["model"] for d in (await client.get("/edge/v1/decisions")).json()["decisions"]} != set(NAMES):
                    await asyncio.sleep(0.01)
            node.process.send_signal(signal.SIGTERM)
            return list(await asyncio.gather(*tasks))

    answers = asyncio.run(run())
    assert [(name, end, tokens) for name, end, tokens, _ in answers] == [(name, "length", 300) for name in NAMES]
    assert node.process.wait(240) == 0
    assert "Traceback" not in node.said()


def test_a_budget_that_is_too_small_stops_the_start_with_figures(run_edge: RunEdge) -> None:
    done = run_edge("serve", "--port", "0", "--set", "memory.budget_mib=40")
    assert done.returncode == 1
    assert re.search(r"takes \d+ MiB of the 40 MiB that memory.budget_mib allows", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_command_line_loads_and_unloads(node: RunningNode, run_edge: RunEdge) -> None:
    loaded = run_edge("models", "load", "tree", "--url", node.base_url)
    assert (loaded.returncode, loaded.stderr) == (0, "") and loaded.stdout.startswith("ash is loaded, ")
    assert state(node, "ash")["state"] == "ready"
    unloaded = run_edge("models", "unload", "ash", "--url", node.base_url)
    assert (unloaded.returncode, unloaded.stdout) == (0, "ash is not loaded any more\n")
    assert state(node, "ash")["state"] == "unloaded"


def test_the_command_line_says_why_not(node: RunningNode, run_edge: RunEdge) -> None:
    unknown = run_edge("models", "load", "oak", "--url", node.base_url)
    assert unknown.returncode == 1 and "oak" in unknown.stderr and "ash" in unknown.stderr
    own = run_edge("models", "unload", "edge-builtin", "--url", node.base_url)
    assert own.returncode == 1 and own.stderr.startswith("edge: ")
    assert state(node, "edge-builtin")["state"] == "ready"
