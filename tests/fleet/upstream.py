"""A server that could be the fleet: real sockets, and it does what a test tells it. It keeps what it was asked."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

Mood = Literal[
    "well", "hung", "slow", "broken", "busy", "garbage", "half", "no json", "empty", "bad request", "dead", "other"
]
SLOW_S = 0.6
HUNG_S = 300.0


@dataclass
class Upstream:
    """`mood` may be changed at any time; `requests` holds (head, body) of every POST."""

    words: list[str] = field(default_factory=lambda: ["The", " fleet", " says", " hello", "."])
    mood: Mood = "well"
    sick: bool = False
    """Its list of models answers 500."""
    models: list[str] = field(default_factory=lambda: ["central"])
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    slow_s: float = SLOW_S
    port: int = 0
    probes: int = 0
    hanging: bool = False
    """Somebody waits for an answer that does not come."""
    said: int = 0
    """Words of streams."""
    finished: int = 0
    """Answers that are out."""
    left: int = 0
    """Connections that the other side closed in the middle of an answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = head.lower().split("\r\n")
                length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length")), 0)
                body = json.loads(await reader.readexactly(length)) if length else {}
                if head.startswith("GET"):
                    self.probes += 1
                    status = "500 Oops" if self.sick or self.mood == "dead" else "200 OK"
                    self._plain(writer, status, {"object": "list", "data": [{"id": m} for m in self.models]})
                else:
                    self.requests.append((head, body))
                    if not await self._answer(writer, body):
                        break
                await writer.drain()
                self.finished += not head.startswith("GET")
        except (asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except ConnectionError:
            self.left += 1
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> bool:
        """False: the connection ends here."""
        match self.mood:
            case "hung":
                await self._hang(HUNG_S)
                return False
            case "slow":
                await self._hang(self.slow_s)
            case "broken" | "dead":
                self._plain(writer, "500 Oops", {"error": {"message": "no"}})
                return True
            case "busy":
                self._plain(writer, "429 Busy", {"error": {"message": "busy"}}, {"Retry-After": "30"})
                return True
            case "bad request":
                self._plain(
                    writer, "400 Bad", {"error": {"message": "the prompt is too long for us", "code": "too_long"}}
                )
                return True
            case "no json":
                self._raw(writer, "200 OK", b"<html>gateway</html>", {"Content-Type": "text/html"})
                return True
            case "empty":
                return False
            case _:
                pass
        if not body.get("stream"):
            self._plain(writer, "200 OK", self._whole())
            return True
        return await self._stream(writer)

    async def _hang(self, seconds: float) -> None:
        self.hanging = True
        await asyncio.sleep(seconds)
        self.hanging = False

    async def _stream(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        if self.mood == "garbage":
            self._chunk(writer, b"data: {]\n\n")
            return False
        for number, word in enumerate(self.words):
            self._event(writer, {"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]})
            await writer.drain()
            self.said += 1
            if self.mood == "half" and number == 1:
                return False
            await asyncio.sleep(0.002)
        self._event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        count = len(self.words)
        usage = {"prompt_tokens": 100, "completion_tokens": count, "total_tokens": 100 + count}
        self._event(writer, {"choices": [], "usage": usage})
        self._chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    def _whole(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.words)}
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": self.models[0],
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 100, "completion_tokens": len(self.words), "total_tokens": 100 + len(self.words)},
        }  # fmt: skip

    def _event(self, writer: asyncio.StreamWriter, body: dict[str, Any]) -> None:
        body = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self.models[0], **body}
        self._chunk(writer, b"data: " + json.dumps(body).encode() + b"\n\n")

    @staticmethod
    def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _plain(
        self, writer: asyncio.StreamWriter, status: str, body: Any, headers: dict[str, str] | None = None
    ) -> None:
        self._raw(writer, status, json.dumps(body).encode(), {"Content-Type": "application/json", **(headers or {})})

    @staticmethod
    def _raw(writer: asyncio.StreamWriter, status: str, body: bytes, headers: dict[str, str]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)


@contextmanager
def running(upstream: Upstream) -> Iterator[Upstream]:
    """Serve it from a thread of its own."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    async def main() -> None:
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", upstream.port)
        upstream.port = server.sockets[0].getsockname()[1]
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    task = loop.create_task(main())

    def run() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        left = asyncio.all_tasks(loop)
        for handler in left:
            handler.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(60)
    try:
        yield upstream
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait for something that another thread or process does."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, "it did not happen"
        time.sleep(0.01)
