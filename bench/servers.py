"""Servers under measurement: started with the same file and the same slots, watched for memory, stopped afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil

_START_S = 120
_GIVEN_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LEAST_PORT, _MOST_PORT = 10_000, 65_536
_given_ports: set[int] = set()
"""By `free_port` alone: one whose server is still to be started is free, and must be nobody else's."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `url` ends in /v1."""

    name: str
    url: str
    model: str
    pid: int
    words_per_token: float = 1.0

    def words_for(self, tokens: int) -> int:
        """About how many words of `bench.promise` make so many tokens."""
        return round(tokens * self.words_per_token)

    def pss_bytes(self) -> int:
        """Proportional memory of the server and its children, in bytes."""
        process = psutil.Process(self.pid)
        return sum(p.memory_full_info().pss for p in [process, *process.children(recursive=True)])


def free_port() -> int:
    """A port that was free a moment ago, and that the kernel gives to nobody by itself: a connection to elsewhere, or another
    listener on port 0, would else take it before its server does, or while that is started anew. None is given twice."""
    least, most = map(int, _GIVEN_PORTS.read_text().split())
    numbers = range(_LEAST_PORT, least) or range(most + 1, _MOST_PORT)
    while True:
        port = random.SystemRandom().choice(numbers)
        if port in _given_ports:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given_ports.add(port)
            return port


@contextmanager
def edge(
    model: Path,
    *,
    slots: int,
    context_tokens: int,
    threads: int,
    env: dict[str, str] | None = None,
    home: Path | None = None,
    prepare: Callable[[Path], None] = lambda _: None,
) -> Iterator[Server]:
    """A node on a home of its own, or on `home`; `prepare` may put files there. Nothing is promised unless `env` says so."""
    port = free_port()
    settings = {
        "EDGE_ENGINE__SLOTS": str(slots),
        "EDGE_ENGINE__CONTEXT_TOKENS": str(context_tokens),
        "EDGE_ENGINE__THREADS": str(threads),
        "EDGE_ADMISSION__MODE": "off",
        "EDGE_LOG__LEVEL": "warning",
    }
    with tempfile.TemporaryDirectory() as scratch:
        place = home or Path(scratch)
        prepare(place)
        command = [sys.executable, "-m", "edge", "serve", "--model", str(model), "--port", str(port)]
        with _running(command, {**settings, "EDGE_HOME": str(place), **(env or {})}) as process:
            _wait(f"http://127.0.0.1:{port}/health/ready", process)
            yield _gauged(Server("edge", f"http://127.0.0.1:{port}/v1", model.stem, process.pid))


@contextmanager
def llama_server(binary: Path, model: Path, *, slots: int, context_tokens: int, threads: int) -> Iterator[Server]:
    """llama-server with the same slots and context; prompt caching is left at its default, the answers are not affected."""
    port = free_port()
    command = [str(binary), "-m", str(model), "--port", str(port), "--host", "127.0.0.1", "-np", str(slots)]
    cores = str(threads or len(os.sched_getaffinity(0)))
    command += ["-c", str(slots * context_tokens), "-t", cores, "-tb", cores, "--no-webui", "-ngl", "0"]
    with _running(command, {}) as process:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield _gauged(Server("llama-server", f"http://127.0.0.1:{port}/v1", model.stem, process.pid))


def _gauged(server: Server) -> Server:
    """With what its tokenizer makes of text."""
    text = "valve 4711 pump 1234 " * 20
    url = server.url.removesuffix("/v1")
    answer = httpx.post(f"{url}/tokenize", json={"content": text}, timeout=10, trust_env=False)
    return replace(server, words_per_token=len(text.split()) / len(answer.json()["tokens"]))


@contextmanager
def _running(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode} before it was ready")
        try:
            if httpx.get(url, timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"no answer at {url} after {_START_S} s")
