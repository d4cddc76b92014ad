"""What no request slips past: authority, room, the form of the path; and errors that take no other request with them."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge.api import KeyStore
from edge.api.polled import POLLED
from edge.errors import Overloaded
from edge.messages import ModelFacts
from tests.api.conftest import Serve
from tests.api.fake_engine import FakeEngine, answer, says, whole
from tests.waiting import until

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
CHAT_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
CHAT_HEAD += b"content-length: %d\r\n\r\n"
JSON = {"content-type": "application/json"}
NO_PATHS = ["/v1/chat/completions%0A", "/metrics%0a", "/v1/models%0D", "/tokenize%00", "/v1/models/%E2%80%A8"]


def raw(
    connection: socket.socket, path: str, body: bytes = b"", key: str = "none"
) -> tuple[int, dict[str, str], bytes]:
    """One exchange on an open connection: status, headers, body."""
    method = b"POST" if body else b"GET"
    head = b"%s %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nauthorization: Bearer %s\r\n"
    head %= (method, path.encode(), key.encode())
    connection.sendall(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
    stream = connection.makefile("rb")
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.decode().partition(": ")
        headers[name.lower()] = value
    return status, headers, stream.read(int(headers["content-length"]))


@pytest.mark.parametrize("path", NO_PATHS)
def test_a_path_with_a_line_end_is_no_path(serve: Serve, keys: KeyStore, path: str) -> None:
    """A router's `$` also matches before a line end; whoever compares paths would be slipped past."""
    key = keys.create("metrics only", scopes=("metrics",), requests_per_minute=None, created="2026-01-01")
    node = serve(keys_required=True)
    with node.connect() as connection:
        status, _, body = raw(connection, path, json.dumps(CHAT).encode() if "chat" in path else b"", key)
    assert (status, json.loads(body)["error"]["code"]) == (404, "not_found")
    assert node.engine.streams == []


@pytest.mark.parametrize("path", POLLED)
def test_polled_paths_are_like_all_others_although_the_gate_answers(serve: Serve, keys: KeyStore, path: str) -> None:
    """Described, counted, named; closed to who has no key unless it is health; and of one method."""
    keys.create("speaks only", scopes=("inference",), requests_per_minute=None, created="2026-01-01")
    with serve().http() as client:
        answer = client.get(path, params={"x": "1"}, headers={"x-request-id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
        assert path == "/metrics" or answer.json()
        assert "get" in client.get("/openapi.json").json()["paths"][path]
        refused = client.put(path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
    with serve(keys_required=True).http() as client:
        assert client.get(path).status_code == (200 if path.startswith("/health") else 401)


def test_an_error_of_our_own_in_a_polled_path_is_answered_as_one(serve: Serve) -> None:
    node = serve()
    node.front.pool.roster.states = lambda: 1 / 0  # type: ignore[method-assign, assignment]
    with node.http() as client:
        assert [client.get(path).status_code for path in ("/edge/v1/load", "/health/live")] == [500, 200]


def test_an_error_of_our_own_leaves_the_connection_and_the_next_request_alone(serve: Serve) -> None:
    class Broken(FakeEngine):
        def submit(self, work: Any) -> Any:
            self.submit = super().submit  # type: ignore[method-assign]
            raise RuntimeError("a bug")

    node = serve(Broken())
    with node.connect() as connection:
        status, headers, body = raw(connection, "/v1/chat/completions", json.dumps(CHAT).encode())
        assert (status, json.loads(body)["error"]["type"]) == (500, "server_error")
        assert headers["x-request-id"]
        assert raw(connection, "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
    counted = node.http().get("/metrics").text
    assert 'status="500"' in counted


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_end_together_when_one_meets_an_error_of_our_own(serve: Serve, stream: bool) -> None:
    asked: list[int] = []

    def script(work: Any) -> Any:
        asked.append(1)
        return [RuntimeError("a bug")] if len(asked) == 2 else says("a", "b")(work)

    node = serve(FakeEngine(script))
    answer = node.http().post("/v1/completions", json={"model": "fake", "prompt": ["x", "y", "z"], "stream": stream})
    assert answer.status_code == 500 or "server_error" in answer.text
    until(lambda: node.engine.in_flight == 0)  # a stream's end may be read before the server gets so far
    assert "[DONE]" not in answer.text


def test_a_stream_that_just_stops_is_an_error_and_no_empty_answer(serve: Serve) -> None:
    asked: list[int] = []

    def script(work: Any) -> Any:
        asked.append(1)
        return [] if len(asked) == 2 else says("a", "b")(work)

    answer = serve(FakeEngine(script)).http().post("/v1/completions", json={"model": "fake", "prompt": ["x", "y"]})
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


def test_a_full_node_refuses_before_it_reads_the_body_as_json(serve: Serve) -> None:
    node = serve(FakeEngine(refusal=Overloaded("full", retry_after_s=2.5)))
    answer = node.http().post("/v1/chat/completions", content=b"{no JSON at all")
    assert answer.status_code == 429
    assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2500")


def test_an_error_within_a_stream_is_an_event_and_no_end(serve: Serve) -> None:
    def script(work: Any) -> Any:
        return [*says("a", "b")(work)[:-1], RuntimeError("a bug")]

    with serve(FakeEngine(script)).http().stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as got:
        text = got.read().decode()
    last = [line for line in text.split("\n") if line.startswith("data: ")][-1]
    assert json.loads(last[6:])["error"]["type"] == "server_error"


def test_a_client_that_leaves_before_the_answer_frees_its_place(serve: Serve) -> None:
    never = threading.Event()
    node = serve(FakeEngine(lambda work: [never]))
    body = json.dumps(CHAT).encode()
    with node.connect() as leaving:
        leaving.sendall(CHAT_HEAD % len(body) + body)
        until(lambda: node.engine.in_flight)
    until(lambda: not node.engine.in_flight)


def test_facts_of_no_model_are_a_503(serve: Serve) -> None:
    engine = FakeEngine()
    engine.facts = None
    assert isinstance(FakeEngine().facts, ModelFacts)
    assert serve(engine).http().post("/v1/chat/completions", json=CHAT).status_code == 503


@pytest.mark.parametrize("path", [*POLLED, "/v1/models", "/v2/health/ready", "/"])
def test_head_is_get_without_a_body(serve: Serve, keys: KeyStore, path: str) -> None:
    """Monitors ask so."""
    with serve().http() as client:
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
        assert int(head.headers["content-length"]) > 0
        assert client.head("/v1/chat/completions").status_code == 405
    with serve(keys_required=True).http() as client:
        assert client.head(path).status_code == client.get(path).status_code


def test_who_is_refused_while_he_sends_reads_why(serve: Serve) -> None:
    """To close at once would take the answer from him."""
    node = serve(keys_required=True)
    body = json.dumps({**CHAT, "user": "x" * 900_000}).encode()
    for _ in range(10):
        with node.connect() as connection:
            assert raw(connection, "/v1/chat/completions", body)[0] == 401
            assert raw(connection, "/v1/chat/completions", body)[0] == 401  # on the same one


def test_a_compressed_body_is_refused_in_words(serve: Serve) -> None:
    answer = serve().http().post("/v1/chat/completions", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, "Content-Encoding" in answer.json()["error"]["message"]) == (400, True)


def test_large_bodies_share_their_room_and_small_ones_always_have_some(serve: Serve) -> None:
    node = serve(max_body_bytes=1 << 20, body_timeout_s=300.0)
    body = json.dumps({**CHAT, "user": "x" * 900_000}).encode()
    senders: list[socket.socket] = []

    def send_all_but_one_byte() -> None:
        senders.append(node.connect())
        senders[-1].sendall(CHAT_HEAD % 1_048_576 + b"x" * 1_048_575)

    for _ in range(32):
        send_all_but_one_byte()
    with node.http() as client:
        deadline = time.monotonic() + 300
        while (answer := client.post("/v1/chat/completions", content=body, headers=JSON)).status_code == 200:
            send_all_but_one_byte()  # this one may have taken the room from one of them
            assert time.monotonic() < deadline
        assert (answer.status_code, answer.headers["x-edge-reason"]) == (429, "bodies")
        assert "retry-after" in answer.headers
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        for sender in senders:
            sender.close()
        while client.post("/v1/chat/completions", content=body, headers=JSON).status_code != 200:
            assert time.monotonic() < deadline


def test_a_client_that_sent_more_and_leaves_is_no_fault_of_ours(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def endless(_: Any) -> Any:  # what the buffers of a connection hold differs from machine to machine
        offer, first, token, *_ = whole(*answer("x" * 4000, ""))
        return itertools.chain([offer, first], itertools.repeat(token))

    gc.collect()  # else what other tests left might complain in this one
    caplog.clear()
    node = serve(FakeEngine(endless))
    body = json.dumps({**CHAT, "stream": True}).encode()
    connection = node.connect()
    connection.sendall(CHAT_HEAD % len(body) + body + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
    connection.recv(1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    until(lambda: not node.engine.in_flight)
    assert node.engine.streams[0].aborted.is_set() and not node.engine.streams[0].over
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_keys_that_cannot_be_read_are_for_the_log_and_not_for_clients(
    serve: Serve, keys: KeyStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = keys.create("one", scopes=("inference",), requests_per_minute=None, created="2026-01-01")
    file, headers = tmp_path / "keys.json", {"authorization": f"Bearer {secret}"}
    good = file.read_bytes()
    with serve(keys_required=True).http(headers=headers) as client:
        for content, status in ((b"{", 503), (b"{", 503), (good, 200), (b"{", 503)):
            file.write_bytes(content)
            answer = client.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == status
            assert str(tmp_path) not in answer.text
    said = [record for record in caplog.records if getattr(record, "event", "") == "keys_unreadable"]
    assert len(said) == 2 and str(file) in vars(said[0])["reason"]
