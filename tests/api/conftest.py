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
from edge.fleet.central import Central, FleetLimits
from edge.fleet.upstreams import Upstream
from edge.listener import HttpServer, bind, http_server
from edge.settings import Server
from tests.api.fake_engine import FakeEngine

CONFIG = FrontConfig(
    model_name="fake",
    created=1_700_000_000,
    keys_required=False,
    max_body_bytes=1 << 20,
    body_timeout_s=10.0,
    write_timeout_s=10.0,
    ttft_slo_s=0.05,
    itl_slo_s=0.05,
)
LIMITS = FleetLimits(budget_s=1.5, whole_budget_s=3.0, bytes_per_hour=0, cost_per_hour=0.0, retry_share=0.2)


@dataclass
class Node:
    """A served front."""

    engine: FakeEngine
    front: Front
    server: HttpServer
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self, **options: Any) -> httpx.Client:
        """A client for raw requests."""
        return httpx.Client(base_url=self.url, trust_env=False, timeout=20, **options)

    def openai(self, api_key: str = "none", **options: Any) -> openai.OpenAI:
        """The official client, with nothing forgiven and nothing tried twice."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=api_key,
            max_retries=0,
            timeout=20,
            _strict_response_validation=True,
            http_client=httpx.Client(trust_env=False),
            **options,
        )

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


Serve = Callable[..., Node]


@contextlib.contextmanager
def serving(engine: FakeEngine, keys: KeyStore, upstreams: Sequence[Upstream] = (), **changes: Any) -> Iterator[Node]:
    """Run a node in a thread of its own; `changes` are fields of FrontConfig."""
    fleet = Central(upstreams, LIMITS) if upstreams else None
    front = Front(engine, replace(CONFIG, **changes), keys, DrainState(), fleet)
    settings = Server(port=0)
    server, listener = http_server(build_application(front, "0"), settings), bind(settings)
    port = listener.getsockname()[1]

    async def main() -> None:
        if fleet is not None:
            await fleet.start()
        await server.serve(sockets=[listener])
        if fleet is not None:
            await fleet.stop()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield Node(engine, front, server, port)
    finally:
        server.should_exit = True
        thread.join(20)
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
