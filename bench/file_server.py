"""A web server for files that fails on command: cut connections, damaged bytes, refusals, redirects. For tests and proofs.

It speaks the real protocol: ranges and If-Range as RFC 9110 (13.1.5, 14) has them, over real sockets.
"""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_BLOCK = 64 << 10


@dataclass
class Served:
    """A file as it is served. `announced`: a Content-Length that is a lie. `stated`: headers that go with it."""

    data: bytes
    etag: str | None = '"1"'
    last_modified: str | None = None
    ranges: bool = True
    conditions: bool = True
    """Whether If-Range is heeded."""
    chunked: bool = False
    announced: int | None = None
    stated: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    """After each block, to make it last."""
    hold_at: int | None = None
    """So much of the body is sent, and no more: whoever asked waits until it leaves."""


@dataclass(frozen=True)
class Cut:
    """Close the connection after so many bytes of the body."""

    after: int


@dataclass(frozen=True)
class Status:
    """Answer with this status instead."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Damage:
    """Change one byte at this place of the file, once, if it is in what is sent."""

    at: int


Fault = Cut | Status | Damage | None


@dataclass(frozen=True)
class Asked:
    """A request that came. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]


class FileServer:
    """Serves `routes` on a free port of a loopback address. Each GET takes the next of `faults`; `choose` makes one when
    there is none."""

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self._host, self._scheme = host, "http" if tls is None else "https"
        self.routes: dict[str, Served | Status] = {}
        self.faults: deque[Fault] = deque()
        self.choose: Callable[[], Fault] = lambda: None
        self.asked: list[Asked] = []
        self.sent_bytes = 0
        """Of bodies, as far as the network took them."""
        self.lock = threading.Lock()
        self._http = _Quiet((host, 0), _handler(self))
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"{self._scheme}://{self._host}:{self._http.server_address[1]}"

    def __enter__(self) -> FileServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, asked: Asked) -> Served | Status:
        """What a request gets. For look-alikes of other services to override."""
        return self.routes.get(asked.path.partition("?")[0], Status(404))

    def next_fault(self) -> Fault:
        """The fault of the next GET."""
        with self.lock:
            return self.faults.popleft() if self.faults else self.choose()

    def gets(self, path: str) -> list[Asked]:
        """The GET requests for one path."""
        return [asked for asked in self.asked if asked.method == "GET" and asked.path == path]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are what this server is for."""


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._serve(head=True)

        def do_GET(self) -> None:
            self._serve(head=False)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            self._serve(head=False)

        def _serve(self, *, head: bool) -> None:
            asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
            with server.lock:
                server.asked.append(asked)
            found = server.answer(asked)
            fault = None if head or isinstance(found, Status) else server.next_fault()
            if isinstance(fault, Status):
                found = fault
            try:
                if isinstance(found, Status):
                    self._refuse(found)
                else:
                    self._send(found, asked, fault, head=head)
            except OSError:  # the other side has left
                self.close_connection = True

        def _refuse(self, status: Status) -> None:
            body = b"" if status.code in (204, 304) else f"status {status.code}\n".encode()
            self.send_response(status.code)
            for name, value in {"content-length": str(len(body)), **status.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _send(self, served: Served, asked: Asked, fault: Fault, *, head: bool) -> None:
            size, first, last = len(served.data), 0, len(served.data) - 1
            wanted = _RANGE.fullmatch(asked.headers.get("range", "")) if served.ranges else None
            condition = asked.headers.get("if-range")
            if wanted is not None and (not served.conditions or condition in (None, served.etag, served.last_modified)):
                first = int(wanted[1])
                last = min(last, int(wanted[2])) if wanted[2] else last
                if first > last:
                    self._refuse(Status(416, {"content-range": f"bytes */{size}"}))
                    return
                self.send_response(206)
                self.send_header("content-range", f"bytes {first}-{last}/{size}")
            else:
                self.send_response(200)
            for name, value in (("etag", served.etag), ("last-modified", served.last_modified), *served.stated.items()):
                if value is not None:
                    self.send_header(name, value)
            data = bytearray(served.data[first : last + 1])
            if isinstance(fault, Damage) and first <= fault.at <= last:
                data[fault.at - first] ^= 1
            if served.chunked:
                self.send_header("transfer-encoding", "chunked")
            else:
                self.send_header("content-length", str(served.announced if served.announced is not None else len(data)))
            self.end_headers()
            if not head:
                self._body(served, bytes(data), fault.after if isinstance(fault, Cut) else None)

        def _body(self, served: Served, data: bytes, cut: int | None) -> None:
            for start in range(0, len(data), _BLOCK):
                block = data[start : start + _BLOCK]
                if served.hold_at is not None and start + len(block) > served.hold_at:
                    self._write(served, block[: max(0, served.hold_at - start)])
                    self.rfile.read(1)
                    self.close_connection = True
                    return
                if cut is not None and start + len(block) > cut:
                    self._write(served, block[: max(0, cut - start)])
                    self._drop()
                    return
                self._write(served, block)
                if served.pause_s:
                    threading.Event().wait(served.pause_s)
            if served.chunked:
                self.wfile.write(b"0\r\n\r\n")
            elif served.announced is not None and served.announced > len(data):
                self._drop()

        def _write(self, served: Served, block: bytes) -> None:
            with server.lock:
                server.sent_bytes += len(block)
            if served.chunked and block:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            else:
                self.wfile.write(block)

        def _drop(self) -> None:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    return Handler
