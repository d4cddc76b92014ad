"""Stands between a client and a node: passes on what they say, keeps it, and may change what is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

_PATIENCE_S = 600.0
_NOT_PASSED_ON = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass
class Exchange:
    """A request with a body, and what has come back so far."""

    asked: dict[str, Any]
    answer: bytes = b""

    @property
    def text(self) -> str:
        """Of a streamed chat answer."""
        lines = [line[6:] for line in self.answer.split(b"\n") if line.startswith(b"data: {")]
        choices = [choice for line in lines for choice in json.loads(line)["choices"]]
        return "".join(choice["delta"].get("content") or "" for choice in choices)


@dataclass
class Between:
    """`target` is the node's address; `change` makes another body of one."""

    target: str
    change: Callable[[dict[str, Any]], dict[str, Any]] = lambda body: body
    exchanges: list[Exchange] = field(default_factory=list)
    url: str = ""
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=_PATIENCE_S, trust_env=False))


@contextmanager
def standing(between: Between) -> Iterator[Between]:
    """Serve it from a thread of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(between))
    server.daemon_threads = True
    between.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield between
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        between.http.close()


def _handler(between: Between) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self._pass_on(b"", Exchange({}))

        def do_POST(self) -> None:
            asked = between.change(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            exchange = Exchange(asked)
            between.exchanges.append(exchange)
            self._pass_on(json.dumps(asked).encode(), exchange)

        def _pass_on(self, body: bytes, exchange: Exchange) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            try:
                with between.http.stream(
                    self.command, f"{between.target}{self.path}", content=body, headers=headers
                ) as answer:
                    self._bring_back(answer, exchange)
            except (OSError, httpx.TransportError):  # one of the two has left
                self.close_connection = True

        def _bring_back(self, answer: httpx.Response, exchange: Exchange) -> None:
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name not in _NOT_PASSED_ON:
                    self.send_header(name, value)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for piece in answer.iter_raw():
                exchange.answer += piece
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    return Handler
