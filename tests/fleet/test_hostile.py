"""Upstreams that are broken or mean harm: they cost little, and nobody hears anything wrong of them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import h2.connection
import pytest
import trustme

from edge.errors import ConfigurationError, FleetUnavailable
from edge.fleet.answer import FleetAnswer
from edge.fleet.central import Central, FleetLimits
from edge.fleet.events import EventCutter
from edge.fleet.member import FleetRefused, Member
from edge.fleet.upstreams import Upstream as Configured
from edge.fleet.upstreams import read_upstreams
from edge.settings import Fleet
from tests.fleet.http2 import Http2Fleet, tls
from tests.fleet.upstream import Upstream, running

LIMITS = FleetLimits(budget_s=60.0, whole_budget_s=60.0, bytes_per_hour=0, cost_per_hour=0.0, retry_share=0.2)
PATIENCE_S = 60.0
"""Below the 300 s that an upstream may be silent: who waits for that waits too long."""
WHOLE = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}}]}).encode()
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def event(text: str, finish: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]}).encode() + b"\n\n"
    )


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def plain(status: str, kind: str, body: bytes, more: str = "") -> Answer:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body
        )

    return answer


@contextlib.asynccontextmanager
async def central_at(answer: Answer, **upstream: Any) -> AsyncIterator[Central]:
    """A client of a server that reads each request and then does this."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length")
                    ),
                    0,
                )
                await reader.readexactly(length)
                await answer(head, writer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url, patient = f"http://127.0.0.1:{port}/v1", {"connect_timeout_s": 300.0, "first_token_timeout_s": 300.0}
    configured = Configured(**{"name": "a", "url": url, **patient, "idle_timeout_s": 300.0, **upstream})
    central = Central([configured], LIMITS)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield central
    finally:
        await central.stop()
        server.close()


async def asked(central: Central, *, stream: bool = True) -> FleetAnswer:
    return await central.ask("chat/completions", {"messages": [], "stream": stream}, model=None, request_id="r")


async def read(central: Central, heard: list[str]) -> None:
    """All of a streamed answer, into `heard`."""
    answer = await asked(central)
    try:
        async for events in answer.events():
            heard += [c["delta"].get("content") or "" for e in events for c in e.choices]
    finally:
        await answer.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad"])
def test_a_compressed_answer_is_refused_unread(stream: bool, status: str) -> None:
    """Twice over a few kilobytes hold gigabytes."""
    heads: list[bytes] = []
    body = gzip.compress(gzip.compress(b" " * (64 << 20)))
    refuse = plain(
        status, "text/event-stream" if stream else "application/json", body, "Content-Encoding: gzip, gzip\r\n"
    )

    async def answer(head: bytes, writer: asyncio.StreamWriter) -> None:
        heads.append(head)
        await refuse(head, writer)

    async def main() -> None:
        async with central_at(answer) as central:
            with pytest.raises(FleetUnavailable, match="compressed"):
                await asked(central, stream=stream)
            await central.start()
            while central.states()[0].state != "open":
                await asyncio.sleep(0.01)
            assert "compressed" in central.states()[0].reason, "a probe is no other"

    asyncio.run(main())
    assert b"accept-encoding: identity" in heads[0].lower()


@pytest.mark.parametrize("wrong", [b"data: {]\n\n", b'data: {"error": {"code": "worker_died"}}\n\n'])
def test_what_goes_wrong_beside_the_first_word_is_not_passed_over(wrong: bytes) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(event("one") + wrong))
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.write(chunk(event(" three", "stop") + DONE) + b"0\r\n\r\n")

    async def main() -> None:
        heard: list[str] = []
        async with central_at(answer) as central:
            with pytest.raises(FleetUnavailable):
                await read(central, heard)
        assert " three" not in heard

    asyncio.run(main())


@pytest.mark.parametrize("more", [b"", b": and on\n\n" * 100])
def test_an_answer_ends_with_its_last_event_whatever_its_body_does(more: bytes) -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(event("all", "stop") + DONE))
        while True:
            await writer.drain()
            if more:
                writer.write(chunk(more))
            await asyncio.sleep(0.01)

    async def main() -> None:
        heard: list[str] = []
        async with central_at(answer) as central:
            await read(central, heard)
            assert heard == ["all"] and central.states()[0].error_share == 0

    asyncio.run(main())


def test_comments_are_no_sign_of_life_in_the_middle_of_an_answer() -> None:
    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + chunk(event("half")))
        while True:
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(chunk(b": ping\n\n"))

    async def main() -> None:
        heard: list[str] = []
        while not heard:  # on a busy machine the first word may be late as well
            async with central_at(answer, idle_timeout_s=0.5) as central:
                with pytest.raises(FleetUnavailable, match="went silent"):
                    await read(central, heard)
        assert heard == ["half"]

    asyncio.run(main())


def test_a_long_event_may_come_in_very_small_pieces() -> None:
    data = event("x" * (1 << 20))
    cutter = EventCutter()
    found = [e for at in range(0, len(data), 50) for e in cutter.feed(data[at : at + 50])]
    assert [len(e.choices[0]["delta"]["content"]) for e in found] == [1 << 20]


class _Liar(Http2Fleet):
    """Ends each answer before the length that it gave, once its first word was heard."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self._heard = heard

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        await super().serve(reader, writer)

    def _answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        head = [(":status", "200"), ("content-type", "text/event-stream"), ("content-length", "5000")]
        connection.send_headers(stream, head)
        connection.send_data(stream, event("one"))
        self._end(connection, stream)

    def _end(self, connection: h2.connection.H2Connection, stream: int) -> None:
        if not self._heard:
            asyncio.get_running_loop().call_later(0.02, self._end, connection, stream)
            return
        connection.end_stream(stream)
        self._writer.write(connection.data_to_send())


def test_what_breaks_http_2_in_the_middle_of_an_answer_is_told_as_ever(tmp_path: Path) -> None:
    authority, heard = trustme.CA(), list[str]()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("n").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "n.pem"))
    files = {"ca_file": tmp_path / "ca.pem", "cert_file": tmp_path / "n.pem", "key_file": tmp_path / "n.pem"}

    async def main() -> None:
        server = await asyncio.start_server(
            _Liar(heard).serve, "127.0.0.1", 0, ssl=tls(authority.issue_cert("localhost"), authority)
        )
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
        patient = {"connect_timeout_s": 60.0, "first_token_timeout_s": 60.0, "idle_timeout_s": 60.0}
        central = Central([Configured(name="a", url=url, **files, **patient)], LIMITS)  # type: ignore[arg-type]
        with pytest.raises(FleetUnavailable, match="InvalidBodyLengthError"):
            await read(central, heard)
        assert heard == ["one"] and central.states()[0].error_share > 0
        await central.stop()
        server.close()

    asyncio.run(main())


HTML = b"<html><title>400 No required SSL certificate was sent</title></html>"


def test_a_gateways_page_is_no_answer_to_the_caller() -> None:
    async def main() -> None:
        async with central_at(plain("400 Bad Request", "text/html", HTML)) as central:
            for _ in range(3):
                with pytest.raises(FleetUnavailable, match="gateway"):
                    await asked(central)
            assert central.states()[0].state == "open"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("status", "kind", "body", "said"),
    [
        ("413 Too Large", "text/html", HTML, b"refused by the fleet"),
        ("400 Bad", "application/json", b'{"error": {"message": "no such tool"}}', b"no such tool"),
        ("422 No", "application/problem+json", b'{"detail": "x"}', b"detail"),
        ("400 Bad", "application/json", b'{"error": "' + b"y" * 9000 + b'"}', b"refused by the fleet"),
    ],
)
def test_the_callers_own_fault_is_told_to_the_caller_in_json(status: str, kind: str, body: bytes, said: bytes) -> None:
    async def main() -> None:
        async with central_at(plain(status, kind, body)) as central:
            with pytest.raises(FleetRefused) as refused:
                await asked(central)
            assert refused.value.status == int(status[:3]) and said in refused.value.body
            assert isinstance(json.loads(refused.value.body), dict)
            assert central.states()[0].state == "closed"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"url": "http://192.168.1.256/v1"}, "192.168.1.256"),
        ({"url": "http://x/v1", "proxy": "proxy.example:3128"}, "proxy.example"),
        ({"url": "http://x/v1", "proxy": "socks5://proxy.example"}, "socks"),
    ],
)
def test_an_address_that_is_none_is_said_and_keeps_nobody_from_starting(wrong: dict[str, str], said: str) -> None:
    async def main() -> None:
        central = Central([Configured(name="a", **wrong)], LIMITS)  # type: ignore[arg-type]
        with pytest.raises(FleetUnavailable, match=re.escape(said)):
            await asked(central)
        await central.start()
        async with asyncio.timeout(PATIENCE_S):
            while central.states()[0].state != "open":
                await asyncio.sleep(0.01)
        assert said in central.states()[0].reason
        await central.stop()

    asyncio.run(main())


def test_a_key_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    (one,) = read_upstreams(Fleet(url="http://x/v1", api_key_file=Path("key")), tmp_path)
    with pytest.raises(ConfigurationError, match="key cannot be read"):
        Central([one], LIMITS)


class _Timed(Central):
    """Notes how long each upstream is waited for."""

    async def _try(self, member: Member, *given: Any) -> FleetAnswer:
        self.left_s = {**getattr(self, "left_s", {}), member.upstream.name: given[-1]}
        return await super()._try(member, *given)


def test_the_last_upstream_has_all_the_time_that_is_left() -> None:
    with running(Upstream(mood="broken")) as one, running(Upstream()) as two:

        async def main() -> None:
            ours = [Configured(name="one", url=one.url), Configured(name="two", url=two.url, priority=2)]
            central, heard = _Timed(ours, LIMITS), list[str]()
            await read(central, heard)
            assert "".join(heard) == "".join(two.words)
            assert central.left_s["one"] <= LIMITS.budget_s / 2 < central.left_s["two"] < LIMITS.budget_s
            await central.stop()

        asyncio.run(main())
