"""What stands on other machines and looks at a node: a collector, a scraper, an open status page. A process of its own.

`python -m bench.onlookers` prints its collector's address, then reads lines: `watch URL SECONDS` asks for URL at that interval,
`rest` asks for nothing any more. It ends with its standard input.

It stands at the scheduler's idle class: on a small machine under measurement it takes what the node and its clients leave, as if
it stood elsewhere, and shares no interpreter with the client that measures.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO

import httpx


class Onlookers:
    """The parent's side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoint = _pipe(process.stdout).readline().strip()
        """Of the collector."""

    def watch(self, url: str, every_s: float) -> None:
        """From now on."""
        self._say(f"watch {url} {every_s}")

    def rest(self) -> None:
        """Until the next `watch`. Returns once nothing is asked any more."""
        self._say("rest")
        if _pipe(self._process.stdout).readline().strip() != "resting":
            raise RuntimeError("an onlooker failed; what it said stands above")

    def _say(self, line: str) -> None:
        _pipe(self._process.stdin).write(f"{line}\n")
        _pipe(self._process.stdin).flush()


@contextlib.contextmanager
def onlookers() -> Iterator[Onlookers]:
    """A process of them."""
    command = [sys.executable, "-m", "bench.onlookers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Onlookers(process)
        finally:
            _pipe(process.stdin).close()
            process.wait(30)


def _pipe(found: IO[str] | None) -> IO[str]:
    assert found is not None
    return found


class _Collector(BaseHTTPRequestHandler):
    """Takes everything and keeps nothing."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _ask(url: str, every_s: float, stop: threading.Event) -> None:
    with httpx.Client(timeout=30, trust_env=False) as client:
        while not stop.wait(every_s):
            client.get(url).raise_for_status()


def main() -> int:
    """Entry point of the process."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    stop, askers = threading.Event(), []
    for line in sys.stdin:
        order, *rest = line.split()
        if order == "watch":
            asker = threading.Thread(target=_ask, args=(rest[0], float(rest[1]), stop))
            asker.start()
            askers.append(asker)
        else:
            stop.set()
            for asker in askers:
                asker.join()
            stop, askers = threading.Event(), []
            print("resting", flush=True)
    stop.set()
    server.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
