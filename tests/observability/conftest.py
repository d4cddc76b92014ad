"""A real node with all that it can show: a GPU (synthetic, through the stub library), a fleet, DCGM's names, answers given."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trustme
from prometheus_client import CollectorRegistry, generate_latest

from bench.est_server import EstServer
from edge.api.hardware import HardwareFamilies
from edge.identity.enroll import Wish, enroll
from edge.identity.store import Store
from edge.identity.token import EnrollmentToken
from edge.probes.sample import Probes
from edge.telemetry.clock import SystemClock
from edge.tlsfiles import TlsFiles
from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.nvml import PROFILES, build_library
from tests.probes.boards import LIMITED, ORIN, PLAIN, plant
from tests.waiting import until


@pytest.fixture(scope="session")
def full_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    library = build_library(tmp_path_factory.mktemp("nvml"))
    home = tmp_path_factory.mktemp("full")
    enrolled(home, tmp_path_factory.mktemp("est"))
    node = start_node(
        home, "--set", "metrics.dcgm_names=on", "--set", "metrics.interval_s=0.5",
        "--set", "fleet.url=http://127.0.0.1:9/v1", "--set", "admission.mode=best-effort", "--set", "mqtt.url=mqtt://127.0.0.1:9",
        LD_LIBRARY_PATH=str(library), NVML_STUB_PROFILE=str(PROFILES / "full.txt"),
    )  # fmt: skip
    for stream in (True, False):
        body = {"messages": [{"role": "user", "content": "start pump 3"}], "stream": stream, "max_tokens": 8}
        answer = httpx.post(f"{node.base_url}/v1/chat/completions", json=body, timeout=600, trust_env=False)
        assert answer.status_code == httpx.codes.OK
    yield node
    stop_node(node)


def enrolled(home: Path, place: Path) -> None:
    """Make it a node of a fleet."""
    est = EstServer(place)
    wish = Wish(est.url, EnrollmentToken.parse(est.token()), "full")
    asyncio.run(enroll(wish, Store(home), SystemClock(), lambda _: None))
    est.stop()


@pytest.fixture(scope="session")
def scraped(full_node: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its /metrics, and what one with a certificate has besides."""
    page = until(lambda: whole(httpx.get(f"{full_node.base_url}/metrics", timeout=60, trust_env=False)))
    place, leaf, registry = tmp_path_factory.mktemp("tls"), trustme.CA().issue_cert("localhost"), CollectorRegistry()
    leaf.private_key_pem.write_to_path(str(place / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(place / "cert.pem"))
    registry.register(TlsFiles(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), place / "cert.pem", place / "key.pem"))
    return page + generate_latest(registry).decode()


def whole(answer: httpx.Response) -> str:
    """The page, once the answers are counted and the hardware was read; what was read long ago is not shown."""
    page = answer.raise_for_status().text
    return page if "\nvllm:generation_tokens_total{" in page and "\nedge_throttled " in page else ""


@pytest.fixture(scope="session")
def boards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What other machines show of their hardware."""
    pages = []
    for tree in (ORIN, PLAIN, LIMITED):
        probes = Probes(plant(tmp_path_factory.mktemp("board"), tree), 60.0, lambda change: None)
        registry = CollectorRegistry()
        registry.register(HardwareFamilies(probes))
        probes.start()
        until(probes.now)
        pages.append(generate_latest(registry).decode())
        probes.stop()
    return "".join(pages)


ROOT = Path(__file__).resolve().parents[2]
