"""The HTTP surface of a real node where the official client does not look: bytes, headers, vanishing clients, dead engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import RunningNode

MODEL = "edge-builtin"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
LONG = {"model": MODEL, "prompt": "pump 3", "max_tokens": 1500, "ignore_eos": True, "stream": True, "temperature": 0}
JSON = {"content-type": "application/json"}


def post(base_url: str, path: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{base_url}{path}", timeout=60, trust_env=False, **options)


def metric(base_url: str, name: str) -> float:
    page = httpx.get(f"{base_url}/metrics", timeout=60, trust_env=False).text
    found = re.search(rf"^{name}(?:\{{[^}}]*\}})? ([\d.e+-]+)$", page, re.MULTILINE)
    assert found is not None, page
    return float(found[1])


def eventually(condition: Callable[[], bool], within_s: float = 240.0) -> None:
    """Wait for something that must come about; how fast is not judged here."""
    give_up = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up, "it never came about"
        time.sleep(0.05)


def idle(base_url: str) -> bool:
    names = ("edge_requests_in_flight", "edge_answers_running", "edge_answers_waiting", "edge_kv_cells_used")
    return metric(base_url, "edge_engine_ready") == 1 and all(metric(base_url, n) == 0 for n in names)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b"[" * 200_000,
        b"9" * 6000,
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "\xed\xa0\x80"}]}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "edge-builtin", "messages": "hello"}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": {"a": 1}}]}',
        b'{"model": "edge-builtin", "messages": [{"role": "user"}]}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "x"}], "n": 99999999999999999999}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "x"}], "seed": 1e999}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "x"}], "stop": [""]}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"-1": 1}}',
        b'{"model": "edge-builtin", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]}',
        b'{"model": 3, "messages": [{"role": "user", "content": "x"}]}',
    ],
    ids=lambda b: b[:60].decode("ascii", "replace"),
)
def test_a_malformed_body_is_a_400_with_a_sentence(base_url: str, body: bytes) -> None:
    answer = post(base_url, "/v1/chat/completions", content=body, headers=JSON)
    assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    assert "Traceback" not in answer.text


def test_a_large_body_is_413_declared_or_not(base_url: str) -> None:
    body = b"x" * 10_000_000
    assert post(base_url, "/v1/chat/completions", content=body, headers=JSON).status_code == 413

    def pieces() -> Any:
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    with contextlib.suppress(httpx.WriteError):  # the node may hang up before it has read what it will not take
        assert post(base_url, "/v1/chat/completions", content=pieces(), headers=JSON).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/health", 405)],
)
def test_wrong_paths_and_methods_are_error_objects(base_url: str, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{base_url}{path}", timeout=60, trust_env=False)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_answers_say_who_answered_and_how_long_the_engine_took(base_url: str) -> None:
    for body in (CHAT, {**CHAT, "stream": True}):
        answer = post(base_url, "/v1/chat/completions", json=body, headers={"x-request-id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        assert answer.headers["x-edge-route"] == "local"
        assert re.fullmatch(r"queue;dur=[\d.]+, prefill;dur=[\d.]+", answer.headers["server-timing"])
    foreign = post(base_url, "/v1/chat/completions", json=CHAT, headers={"x-request-id": "bad id, with spaces"})
    assert re.fullmatch(r"req-[0-9a-f]{24}", foreign.headers["x-request-id"])


def test_a_stream_is_well_formed_server_sent_events(base_url: str) -> None:
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    answer = post(base_url, "/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-2]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert all(c["usage"] is None for c in chunks[:-1])
    assert chunks[-1]["choices"] == []
    bare = post(base_url, "/v1/chat/completions", json={**CHAT, "stream": True})
    assert '"usage"' not in bare.text


def test_tokens_go_out_and_come_back(base_url: str) -> None:
    text = "Pump 3: 71.5 °C 🙂"
    tokens = post(base_url, "/tokenize", json={"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"])
    assert post(base_url, "/detokenize", json={"tokens": tokens["tokens"]}).json()["content"] == text
    pieces = post(base_url, "/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    raw = b"".join(p["piece"].encode() if isinstance(p["piece"], str) else bytes(p["piece"]) for p in pieces)
    assert raw.decode() == text
    chat = post(base_url, "/tokenize", json={"messages": CHAT["messages"]}).json()["count"]
    usage = post(base_url, "/v1/chat/completions", json=CHAT).json()["usage"]
    assert usage["prompt_tokens"] == chat
    assert post(base_url, "/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert post(base_url, "/tokenize", json={}).status_code == 400


def test_the_metrics_page_counts_requests(base_url: str) -> None:
    before = metric(base_url, "edge_answer_tokens_total")
    used = post(
        base_url, "/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    )
    tokens = json.loads(used.text.split("\n\n")[-3].removeprefix("data: "))["usage"]["completion_tokens"]
    assert metric(base_url, "edge_answer_tokens_total") == before + tokens
    assert metric(base_url, "edge_ttft_seconds_count") >= 1
    assert metric(base_url, "edge_slots") == 8


async def _vanish(base_url: str, count: int) -> None:
    host, port = base_url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    lines = ("POST /v1/completions HTTP/1.1", f"Host: {host}", "Content-Type: application/json")
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + body)
        await writer.drain()
        if number % 4:  # some wait for the first bytes of their answer, some leave before
            await reader.read(100)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        writer.close()

    for start in range(0, count, 50):
        await asyncio.gather(*(one(n) for n in range(start, start + 50)))


def test_two_hundred_clients_that_vanish_leave_nothing_behind(base_url: str) -> None:
    asyncio.run(_vanish(base_url, 200))
    eventually(lambda: idle(base_url))
    assert post(base_url, "/v1/chat/completions", json=CHAT).status_code == httpx.codes.OK


async def _kill_in_streams(base_url: str, pid: int) -> list[tuple[int, str]]:
    """Start eight streams, kill the engine when some run, as many as a busy machine has at a time; what each client got."""
    async with httpx.AsyncClient(base_url=base_url, timeout=60, trust_env=False) as client:
        running = asyncio.Semaphore(0)

        async def one() -> tuple[int, str]:
            text = ""
            async with client.stream("POST", "/v1/completions", json=LONG) as answer:
                async for piece in answer.aiter_text():
                    if not text:
                        running.release()
                    text += piece
            return answer.status_code, text

        tasks = [asyncio.create_task(one()) for _ in range(8)]
        for _ in range(3):
            await running.acquire()
        os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)


def test_a_killed_engine_ends_every_stream_with_one_error_and_comes_back(node: RunningNode) -> None:
    base_url = node.base_url
    for _ in range(3):
        eventually(lambda: idle(base_url))
        for status, text in asyncio.run(_kill_in_streams(base_url, node.engine.pid)):
            if status != httpx.codes.OK:  # it waited for its turn
                assert json.loads(text)["error"]["code"] == "engine_down"
                continue
            last = json.loads(text.rstrip().split("\n\n")[-1].removeprefix("data: "))
            assert last["error"]["code"] == "engine_down"
            assert text.count('"error"') == 1
            assert "[DONE]" not in text
    eventually(lambda: httpx.get(f"{base_url}/health/ready", timeout=60, trust_env=False).status_code == httpx.codes.OK)
    assert post(base_url, "/v1/chat/completions", json=CHAT).status_code == httpx.codes.OK


def test_while_the_engine_is_gone_ready_says_so_and_requests_are_told_to_come_back(node: RunningNode) -> None:
    eventually(lambda: idle(node.base_url))
    seen: dict[str, httpx.Response] = {}

    def gone() -> bool:
        for engine in node.children("edge.engine.worker"):  # on a busy machine it may be back between the two
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()
        seen["health"] = httpx.get(f"{node.base_url}/health/ready", timeout=60, trust_env=False)
        seen["chat"] = post(node.base_url, "/v1/chat/completions", json=CHAT)
        return seen["health"].status_code == seen["chat"].status_code == 503

    eventually(gone)
    assert seen["health"].json()["code"] == "engine_down"
    why = seen["health"].json()["reason"]  # for a moment it is known only that it is gone
    assert any(word in why for word in ("signal 9", "loading", "the process ended")), why
    assert seen["chat"].json()["error"]["code"] == "engine_down"
    assert int(seen["chat"].headers["retry-after"]) >= 1
    assert httpx.get(f"{node.base_url}/health/live", timeout=60, trust_env=False).status_code == httpx.codes.OK
    eventually(lambda: idle(node.base_url))


def test_the_log_holds_no_prompt(node: RunningNode) -> None:
    secret = "xyzzy-plugh"
    post(node.base_url, "/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": secret}]})
    post(
        node.base_url, "/v1/chat/completions", json={**CHAT, "messages": [{"role": "user", "content": secret}], "n": -1}
    )
    assert secret not in node.said()


def test_schemathesis_finds_no_5xx(base_url: str, tmp_path: Path) -> None:
    """Generated requests over /openapi.json: whatever comes, no server error and no undocumented status."""
    run = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{base_url}/openapi.json",
            "--checks=not_a_server_error,status_code_conformance,content_type_conformance",
            "--max-examples=25",
            "--seed=1",
            "--generation-deterministic",
            "--request-timeout=120",
            "--exclude-path=/metrics",
        ],
        capture_output=True,
        text=True,
        timeout=1800,
        cwd=tmp_path,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
