"""The front over a fake engine, on the node's own HTTP server and a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvloop

from edge.api import DrainState, Front, FrontConfig, KeyStore, build_application
from edge.api.hosts import HostNames
from edge.fleet.central import Central, FleetLimits
from edge.fleet.upstreams import Upstream
from edge.listener import HttpServer, bind, http_server
from edge.residency import Fitted, Pool, PoolLimits, Spec
from edge.settings import Server
from tests.api.fake_engine import FakeEngine
from tests.residency.fake_planner import MIB, FakePlanner

CONFIG = FrontConfig(
    keys_required=False,
    hosts=HostNames("127.0.0.1"),
    max_body_bytes=1 << 20,
    body_timeout_s=300.0,
    ttft_slo_s=0.05,
    itl_slo_s=0.05,
)
LIMITS = FleetLimits(budget_s=60.0, whole_budget_s=60.0, bytes_per_hour=0, cost_per_hour=0.0, retry_share=0.2)
"""The fleet has time: a test that lets it run out sets less."""


@dataclass
class Node:
    """A served front."""

    engine: FakeEngine
    front: Front
    server: HttpServer
    port: int
    planner: FakePlanner
    further: dict[str, list[FakeEngine]]
    """Engines of each version of a further model; the last one stands for all that come after it."""
    loads: list[str]
    """Which files were loaded, in order."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self, **options: Any) -> httpx.Client:
        """A client for raw requests."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=60, **options)

    def openai(self, api_key: str = "none", **options: Any) -> openai.OpenAI:
        """The official client, with nothing forgiven and nothing tried twice."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key,
            max_retries=0,
            timeout=60,
            _strict_response_validation=True,
            http_client=httpx.Client(trust_env=False),
            **options,
        )

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


Serve = Callable[..., Node]


@contextlib.contextmanager
def serving(
    engine: FakeEngine,
    keys: KeyStore,
    upstreams: Sequence[Upstream] = (),
    *,
    specs: Sequence[Spec] = (),
    further: dict[str, list[FakeEngine]] | None = None,
    planner: FakePlanner | None = None,
    room_mib: int = 100,
    limits: FleetLimits = LIMITS,
    **changes: Any,
) -> Iterator[Node]:
    """Run a node in a thread of its own, its main model called `fake`; `changes` are fields of FrontConfig. `further`: engines
    for the models in `specs`, by name; for the main one, those after `engine`."""
    fleet = Central(upstreams, limits) if upstreams else None
    planner, loads = planner or FakePlanner(), []
    engines = {name: list(waiting) for name, waiting in (further or {}).items()}
    engines["fake"] = [engine, *engines.get("fake", [])]

    def started(fitted: Fitted, restarts: bool) -> FakeEngine:
        loads.append(fitted.load.path)
        waiting = engines[fitted.load.path.rpartition("-")[0]]
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    main = next((spec for spec in specs if spec.main), Spec("fake", "fake", main=True))
    bounds = PoolLimits(room_mib * MIB, max_waiting=4, backoff_max_s=0.5)
    pool = Pool([main, *(spec for spec in specs if not spec.main)], planner, started, bounds)
    front = Front(pool, replace(CONFIG, **changes), keys, DrainState(), fleet)
    settings = Server(port=0, header_timeout_s=300.0)  # however slow the machine is, no client of a test is
    server, listener = http_server(build_application(front, "0"), settings), bind(settings)
    port = listener.getsockname()[1]

    async def run_all() -> None:
        await pool.start()
        await pool.wait_main()
        await pool.look_at_others()
        ready.set()
        if fleet is not None:
            await fleet.start()
        await server.serve(sockets=[listener])
        if fleet is not None:
            await fleet.stop()
        await pool.stop()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_all())

    ready = threading.Event()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield Node(engine, front, server, port, planner, further or {}, loads)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    """An empty key store."""
    return KeyStore(tmp_path / "keys.json")


@pytest.fixture
def serve(keys: KeyStore) -> Iterator[Serve]:
    """Start nodes that end with the test."""
    with contextlib.ExitStack() as stack:

        def start(engine: FakeEngine | None = None, upstreams: Sequence[Upstream] = (), **changes: Any) -> Node:
            return stack.enter_context(serving(engine or FakeEngine(), keys, upstreams, **changes))

        yield start
