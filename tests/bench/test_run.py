"""Whole runs against a server on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
import uvloop

from edge.bench.load import Bounds
from edge.bench.report import Report
from edge.bench.run import Plan, measure, turns
from edge.bench.target import Address, Target, find_target
from edge.bench.wire import Connection, RefusedError
from edge.bench.workload import Job, Load, Mix
from tests.bench.server import Body, FakeServer, answer, chunk

BRIEF = Mix(prompt_words=5, shared_prefix_words=3, long_every=2, long_words=9, output_tokens=4)
CLOSED = Load("concurrency", 2)


class Unwatched:
    def progress(self, done: float, doing: str) -> None:
        assert 0 <= done <= 1


def found(server: FakeServer, name: str = "a", **more: object) -> Target:
    fields = {"api": "chat", "model": "", "key": "", "authority": None, "timeout_s": 120.0}
    return find_target(Address(name, server.url), first=Job(0, 2, prompt="x"), **{**fields, **more})  # type: ignore[arg-type]


def run(*targets: Target, load: Load = CLOSED, **more: object) -> Report:
    fields = {
        "loads": (load,),
        "mix": BRIEF,
        "seed": 1,
        "duration_s": 600.0,
        "spin_s": 0.001,
        "bounds": Bounds(requests=6),
    }
    return measure(Plan(**{**fields, **more}), targets, Unwatched())  # type: ignore[arg-type]


def in_any_order(bodies: list[Body]) -> list[str]:
    """Requests that leave close to each other, each on its own connection, may be read in any order."""
    return sorted(json.dumps(body, sort_keys=True) for body in bodies)


def test_a_closed_loop_measures_what_the_server_did() -> None:
    with FakeServer(headers="X-Edge-Class: slo\r\nX-Edge-Route: local\r\n") as server:
        report = run(found(server))
    (result,) = report.results
    assert (result.statuses, result.all.requests, result.tokens, result.tokens_from) == ({"ok": 6}, 6, 24, "usage")
    assert (result.all.ttft.count, result.all.itl.count) == (6, 18)
    assert (result.edge_class, result.edge_route) == ({"slo": 6}, {"local": 6})
    assert result.admitted == result.all
    assert (result.complete, report.interrupted) == (True, None)
    assert server.keys == {""}  # no key is given, so none is sent


def test_an_open_loop_sends_every_server_the_same_requests_in_turns() -> None:
    with FakeServer() as one, FakeServer() as two:
        report = run(found(one, "a"), found(two, "b"), load=Load("rate", 40.0), rounds=2, duration_s=0.3)
    assert in_any_order(one.bodies[1:]) == in_any_order(two.bodies[1:])
    assert len(one.bodies) > 5
    assert [result.target for result in report.results] == ["a", "b"]
    assert [len(result.goodput_rps_by_round) for result in report.results] == [2, 2]
    assert report.results[0].window_s == 0.6
    assert report.results[0].offered_rps == report.results[1].offered_rps


def test_turns_alternate() -> None:
    plan = Plan((Load("rate", 1), Load("rate", 2)), BRIEF, 1, 1.0, rounds=2)
    one, two = (Target(name, "http://127.0.0.1/v1", "m", "chat") for name in "ab")
    assert [turn.target.name for turn in turns(plan, [one, two])] == list("abba" * 2)


def test_a_trace_is_replayed_as_it_stands() -> None:
    jobs = tuple(Job(0.01 * n, 2 + n, messages=({"role": "user", "content": f"m{n}"},)) for n in range(3))
    with FakeServer() as server:
        report = run(found(server), load=Load("trace", 0), trace=jobs)
    came = sorted((body["messages"][0]["content"], body["max_tokens"]) for body in server.bodies[1:])
    assert came == [("m0", 2), ("m1", 3), ("m2", 4)]
    assert [line.tokens for line in report.results[0].requests] == [2, 3, 4]


def test_completions_send_the_prompt_as_text() -> None:
    with FakeServer() as server:
        report = run(found(server, api="completions"))
    assert report.results[0].statuses == {"ok": 6}
    assert all(isinstance(body["prompt"], str) and "messages" not in body for body in server.bodies)


@pytest.mark.parametrize(
    ("refused", "dropped"),
    [({"ignore_eos"}, ["ignore_eos"]), ({"temperature", "ignore_eos"}, ["ignore_eos", "temperature"])],
)
def test_fields_that_a_server_refuses_are_left_out(refused: set[str], dropped: list[str]) -> None:
    def judge(body: Body) -> tuple[int, bytes]:
        found = [name for name in body if name in refused]
        return (400, b'{"error": {"message": "unknown field %b"}}' % found[0].encode()) if found else (200, b"")

    with FakeServer(judge=judge) as server:
        target = found(server)
        report = run(target)
    assert sorted(target.dropped) == dropped
    assert report.results[0].statuses == {"ok": 6}
    assert not refused & server.bodies[-1].keys()
    assert server.bodies[-1]["stream_options"] == {"include_usage": True}


def test_refusals_errors_and_broken_streams_are_told_apart() -> None:
    def judge(body: Body) -> tuple[int, bytes]:
        at = len(server.bodies)
        return {2: (429, b"{}"), 3: (503, b"{}"), 4: (500, b"it broke")}.get(at, (200, b""))

    def events(body: Body) -> list[bytes]:
        broken = {5: [chunk("a")], 6: [chunk("a"), b'data: {"error": {"message": "engine gone"}}\n\n']}
        return broken.get(len(server.bodies), answer(body))

    with FakeServer(judge=judge, events=events) as server:
        (result,) = run(found(server), load=Load("concurrency", 1)).results
    assert result.statuses == {"refused": 2, "error": 3, "ok": 1}
    text = " ".join(result.error_examples)
    for part in ("HTTP 500: it broke", "without [DONE]", "engine gone"):
        assert part in text


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with FakeServer(stall=True) as server:
        (result,) = run(found(server), bounds=Bounds(requests=2, timeout_s=0.3)).results
    assert result.statuses == {"timeout": 2}
    assert result.all.good == 0


def test_what_would_be_too_many_in_flight_is_not_sent_and_counts_as_not_good() -> None:
    with FakeServer(stall=True) as server:
        bounds = Bounds(requests=100, in_flight=1, timeout_s=0.5)
        (result,) = run(found(server), load=Load("rate", 40.0), duration_s=0.3, bounds=bounds).results
    assert result.statuses["unsent"] + result.statuses["timeout"] == result.all.requests
    assert result.statuses["unsent"] > 0


def test_a_server_that_has_gone_is_counted_not_raised() -> None:
    with FakeServer() as server:
        target = found(server)
    (result,) = run(target, bounds=Bounds(requests=2)).results
    assert result.statuses == {"error": 2}


def test_an_answer_may_end_with_its_connection() -> None:
    with FakeServer(framed=False) as server:
        (result,) = run(found(server)).results
    assert result.statuses == {"ok": 6}


def test_the_time_limit_ends_a_run_with_what_there_is() -> None:
    limits_s = iter((2, 20, 200))  # in the first ones a machine that stands still has measured nothing
    measured = False
    while not measured:
        limit_s = next(limits_s)
        with FakeServer(gap_s=0.002) as server:  # so that hundreds would fit into the limit
            report = run(found(server), bounds=Bounds(requests=1_000_000), time_limit_s=limit_s)
        assert report.interrupted == f"--time-limit of {limit_s} s reached"
        measured = any(result.statuses.get("ok") for result in report.results)
    assert not report.results[0].complete


def test_ctrl_c_ends_a_run_with_what_there_is() -> None:
    with FakeServer(gap_s=0.02) as server:
        target = found(server)

        def interrupt() -> None:
            while len(server.bodies) < 6:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        report = run(target, bounds=Bounds())
    assert report.interrupted == "interrupted by Ctrl-C"
    assert report.results[0].statuses["ok"] > 0


def test_tls_works_and_distrust_is_named(tmp_path: Path) -> None:
    authority = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with FakeServer(tls=tls) as server:
        (result,) = run(found(server, authority=tmp_path / "ca.pem", key="k")).results
        assert result.statuses == {"ok": 6}
        assert server.keys == {"bearer k"}
        with pytest.raises(Exception, match="name its CA's file with --ca"):
            found(server)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_time_counts_from_when_the_whole_request_has_left(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """The server reads nothing at first, so a long request leaves the client late."""

    async def go() -> None:
        read_on = asyncio.Event()

        async def lazy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_on.wait()
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.rpartition(b"Content-Length: ")[2]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        server = await asyncio.start_server(lazy, "127.0.0.1", 0)
        connection = await Connection.open(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        exchange = connection.start("/", b"x" * (32 << 20))
        written_s = exchange.sent_s
        await asyncio.sleep(0.05)
        assert exchange.sent_s == written_s
        read_on_s = time.perf_counter()
        read_on.set()
        await asyncio.wait_for(exchange.done, 60)
        assert exchange.sent_s >= read_on_s
        connection.close()
        server.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(go())


def test_post_raises_for_a_refusal() -> None:
    async def go(url: str) -> None:
        connection = await Connection.open(url)
        await connection.post("/v1/chat/completions", b'{"max_tokens": 1}')

    with FakeServer(judge=lambda body: (429, b"busy")) as server, pytest.raises(RefusedError, match="status 429: busy"):
        asyncio.run(go(server.url))
