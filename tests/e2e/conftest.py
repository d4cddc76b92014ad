"""A real node: `edge serve` in a process of its own, on the built-in model."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from bench.servers import free_port

_START_S = 240
_END_S = 240
BACKGROUND_S = 600.0
"""For what further models answer: they get only the processor time that all other processes leave."""

PATIENT = {
    "EDGE_ADMISSION__MAX_WAIT_S": "600",
    "EDGE_ADMISSION__LOAD_WAIT_S": "600",
    "EDGE_ENGINE__WEDGE_TIMEOUT_S": "600",
    "EDGE_SERVER__DRAIN_TIMEOUT_S": "600",
    "EDGE_SERVER__HEADER_TIMEOUT_S": "60",
    "EDGE_SERVER__BODY_TIMEOUT_S": "600",
    "EDGE_SERVER__WRITE_TIMEOUT_S": "600",
}
"""Refuses, gives up and cuts off nothing for its lateness: how late a busy machine makes it is not what is shown here."""
EASY = {"EDGE_SLO__TTFT_MS": "60000", "EDGE_SLO__ITL_MS": "60000"}
"""Promises that any machine keeps: whether a request is admitted does not depend on how fast this one was found to be."""


@dataclass(frozen=True)
class RunningNode:
    """A node that answered /health/ready, and where it writes."""

    base_url: str
    home: Path
    process: subprocess.Popen[bytes]
    output: Path
    """Standard output and standard error together."""

    def said(self) -> str:
        """All that the node has written so far."""
        return self.output.read_text("utf-8", "replace")

    def children(self, module: str) -> list[psutil.Process]:
        """Its processes that run a module. One that ends while it is looked at, or is none yet, is left out."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if module in child.cmdline():
                    found.append(child)
        return found

    @property
    def engine(self) -> psutil.Process:
        """The process of its only engine."""
        (engine,) = self.children("edge.engine.worker")
        return engine


def start_node(home: Path, *arguments: str, port: int | None = None, **env: str) -> RunningNode:
    """Start `edge serve`, PATIENT but for `env`, with the arguments given and wait until it is ready. The caller stops it."""
    port = port or free_port()
    output = home / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge", "serve", "--port", str(port), *arguments],
            env={**os.environ, "EDGE_HOME": str(home), "PYTHONUNBUFFERED": "1", **PATIENT, **env},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    node = RunningNode(f"http://127.0.0.1:{port}", home, process, output)
    give_up_s = time.monotonic() + _START_S
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            pytest.fail(f"edge serve ended with status {process.returncode}:\n{node.said()}")
        try:
            if httpx.get(f"{node.base_url}/health/ready", timeout=60, trust_env=False).status_code == httpx.codes.OK:
                return node
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    stop_node(node)
    pytest.fail(f"edge serve was not ready after {_START_S} s:\n{node.said()}")


def stop_node(node: RunningNode) -> int:
    """End a node in good order; returns its exit status."""
    node.process.terminate()
    try:
        return node.process.wait(_END_S)
    except subprocess.TimeoutExpired:
        node.process.kill()
        node.process.wait()
        raise


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """One node for all tests that leave it as they found it."""
    running = start_node(tmp_path_factory.mktemp("node"), **EASY)
    yield running
    stop_node(running)


@pytest.fixture(scope="session")
def base_url(node: RunningNode) -> str:
    """The address of that node, without `/v1`."""
    return node.base_url
