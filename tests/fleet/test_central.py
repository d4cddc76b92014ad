"""The fleet's client by itself: HTTP/2 with client certificates, priorities, retries, caps, and what a settings file may say."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from edge.errors import ConfigurationError, FleetUnavailable
from edge.fleet.central import Central, FleetLimits
from edge.fleet.learned import Learned
from edge.fleet.upstreams import Upstream as Configured
from edge.fleet.upstreams import read_upstreams
from edge.settings import Fleet
from tests.fleet.http2 import WORDS, Http2Fleet, tls
from tests.fleet.upstream import Upstream, running

LIMITS = FleetLimits(budget_s=60.0, whole_budget_s=60.0, bytes_per_hour=0, cost_per_hour=0.0, retry_share=0.2)
BODY = {"messages": [], "stream": True}
PATIENT = {"connect_timeout_s": 60.0, "first_token_timeout_s": 60.0, "idle_timeout_s": 60.0}


async def text_of(central: Central, **fields: Any) -> str:
    answer = await central.ask("chat/completions", {**BODY, **fields}, model=None, request_id="r")
    try:
        events = [event async for batch in answer.events() for event in batch]
    finally:
        await answer.close()
    return "".join(c["delta"].get("content") or "" for e in events for c in e.choices)


def test_http_2_with_a_client_certificate_keeps_its_connection(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    client = authority.issue_cert("node-7", common_name="node-7")
    client.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    client.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    fleet = Http2Fleet()

    async def main() -> list[str]:
        context = tls(authority.issue_cert("localhost"), authority)
        server = await asyncio.start_server(fleet.serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        paths = {"ca_file": tmp_path / "ca.pem", "cert_file": tmp_path / "cert.pem", "key_file": tmp_path / "key.pem"}
        central = Central([Configured(name="a", url=f"https://localhost:{port}/v1", **paths, **PATIENT)], LIMITS)  # type: ignore[arg-type]
        texts = [await text_of(central)]
        for _ in range(10):
            texts.append(await text_of(central))
        texts += await asyncio.gather(*(text_of(central) for _ in range(5)))
        await central.stop()
        server.close()
        return texts

    assert asyncio.run(main()) == ["".join(WORDS)] * 16
    assert fleet.requests == 16 and fleet.connections <= 5
    assert set(fleet.subjects) == {"node-7"}


def test_a_fleet_whose_certificate_nobody_vouches_for_is_not_asked(tmp_path: Path) -> None:
    authority = trustme.CA()

    async def main() -> None:
        context = tls(authority.issue_cert("localhost"), authority)
        server = await asyncio.start_server(Http2Fleet().serve, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        central = Central([Configured(name="a", url=f"https://localhost:{port}/v1", **PATIENT)], LIMITS)
        with pytest.raises(FleetUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await text_of(central)
        await central.stop()
        server.close()

    asyncio.run(main())


def test_weights_share_requests_among_upstreams_of_one_priority() -> None:
    with running(Upstream()) as one, running(Upstream()) as two, running(Upstream()) as later:
        upstreams = [
            Configured(name="one", url=one.url, weight=3.0, **PATIENT),
            Configured(name="two", url=two.url, weight=1.0, **PATIENT),
            Configured(name="later", url=later.url, priority=2, **PATIENT),
        ]

        async def main() -> None:
            central = Central(upstreams, LIMITS)
            for _ in range(120):
                await text_of(central)
                for member in central._members:  # who was the quicker is chance on a busy machine, and counts for more
                    member.learned = Learned()
            await central.stop()

        asyncio.run(main())
        assert later.requests == [] and len(one.requests) + len(two.requests) == 120
        assert len(one.requests) > len(two.requests) > 0


def test_what_was_spent_is_counted_and_the_cap_holds() -> None:
    with running(Upstream()) as fleet:

        async def main() -> None:
            limits = replace(LIMITS, cost_per_hour=0.0002)
            central = Central([Configured(name="a", url=fleet.url, cost_per_million_tokens=1.0, **PATIENT)], limits)
            await text_of(central)
            assert central.cost_cap.spent(time.monotonic()) == pytest.approx(105e-6)
            assert central.view().available
            await text_of(central)
            assert central.view().reason == "cost_cap"
            assert central.bytes_cap.spent(time.monotonic()) > 500
            await central.stop()

        asyncio.run(main())


def test_another_key_in_the_file_is_shown_from_the_next_request_on(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("one")
    with running(Upstream()) as fleet:

        async def main() -> None:
            central = Central([Configured(name="a", url=fleet.url, api_key_file=key, **PATIENT)], LIMITS)
            await text_of(central)
            under_way = await central.ask("chat/completions", BODY, model=None, request_id="r")
            key.write_text("another")
            await text_of(central)
            _ = [event async for batch in under_way.events() for event in batch]
            await under_way.close()
            key.write_text("\n")  # in the middle of a change
            await text_of(central)
            await central.stop()

        asyncio.run(main())
    shown = [
        line for head, _ in fleet.requests for line in head.split("\r\n") if line.lower().startswith("authorization")
    ]
    assert [line.split()[-1] for line in shown] == ["one", "one", "another", "another"]


def test_tries_are_bounded_by_the_retry_budget_and_by_time() -> None:
    sick = [Upstream(mood="broken") for _ in range(4)]

    async def main(urls: list[str]) -> None:
        central = Central([Configured(name=url, url=url) for url in urls], LIMITS)
        for _ in range(12):
            with pytest.raises(FleetUnavailable):
                await text_of(central)
        await central.stop()

    with running(sick[0]) as a, running(sick[1]) as b, running(sick[2]) as c, running(sick[3]) as d:
        asyncio.run(main([a.url, b.url, c.url, d.url]))
        assert sum(len(u.requests) for u in sick) <= 12, "three failures each, and then nobody is asked"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[upstream]]\nname = 'a'\n", "upstream.0.url: Field required"),
        (
            "[[upstream]]\nname = 'a'\nurl = 'https://u:secret@x/v1'\n",
            "must hold no user and no password: use api_key_file",
        ),
        ("[[upstream]]\nname = 'a'\nurl = 'ftp://x'\n", "must begin with http:// or https://"),
        (
            "[[upstream]]\nname = 'a'\nurl = 'https://host:abc/v1'\n",
            "upstream.0.url: has no host, or a port that is none",
        ),
        ("[[upstream]]\nname = 'a'\nurl = 'http://x'\ncolour = 1\n", "upstream.0.colour: Extra inputs"),
        ("[[upstream]]\nname = 'a'\nurl = 'http://x'\n" * 2, "two upstreams are called 'a'"),
        ("[[upstream]]\nname = 'a'\nurl = 'http://x'\nca_file = 'no.pem'\n", "is no file"),
        ("upstream = 7", "upstream: Input should be a valid list"),
        ("[[", "is not valid TOML"),
    ],
)
def test_a_wrong_file_of_upstreams_is_refused_with_the_place(tmp_path: Path, text: str, part: str) -> None:
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"fleet\.toml|upstream") as refused:
        read_upstreams(Fleet(file=Path("fleet.toml")), tmp_path)
    assert part in refused.value.message


def test_one_address_or_a_file_not_both(tmp_path: Path) -> None:
    assert read_upstreams(Fleet(), tmp_path) == []
    (one,) = read_upstreams(Fleet(url="http://x/v1/", model="m"), tmp_path)
    assert (one.url, one.model, one.continues) == ("http://x/v1", "m", True)
    with pytest.raises(ConfigurationError, match="both set"):
        read_upstreams(Fleet(url="http://x/v1", file=Path("fleet.toml")), tmp_path)
