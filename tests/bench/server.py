"""A small OpenAI-compatible server on a real socket, in a thread, that does what a test tells it to."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Body = dict[str, Any]


def chunk(text: str) -> bytes:
    """One event that carries content, for both APIs."""
    choice = {"index": 0, "delta": {"content": text}, "text": text, "finish_reason": None}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def answer(body: Body) -> list[bytes]:
    """A whole stream of `max_tokens` tokens with usage, the role first, as servers send it."""
    tokens = body["max_tokens"]
    role = b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n'
    end = b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}\n\n'
    usage = f'data: {{"choices": [], "usage": {{"completion_tokens": {tokens}}}}}\n\n'.encode()
    return [role, *(chunk(f"w{n} ") for n in range(tokens)), end, usage, b"data: [DONE]\n\n"]


@dataclass
class FakeServer:
    """What it answers. `bodies` holds the requests that came, the first one that tries it included."""

    models: bytes = b'{"data": [{"id": "small"}]}'
    models_status: int = 200
    judge: Callable[[Body], tuple[int, bytes]] = lambda body: (200, b"")
    """Status, and the body of a refusal."""
    events: Callable[[Body], list[bytes]] = answer
    headers: str = ""
    gap_s: float = 0.0
    stall: bool = False
    """Say nothing after the first event of a measured request."""
    framed: bool = True
    """False: no length, the end of the connection ends the answer."""
    raw: bytes = b""
    """Answer everything with these bytes."""
    tls: ssl.SSLContext | None = None
    bodies: list[Body] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def url(self) -> str:
        """Its address, with /v1."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(60)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                self.keys.add(fields.get("authorization", ""))
                if self.raw:
                    writer.write(self.raw)
                    break
                if head.startswith("GET"):
                    self._whole(writer, self.models_status, self.models)
                elif not await self._complete(writer, json.loads(body)):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _complete(self, writer: asyncio.StreamWriter, body: Body) -> bool:
        """Answer one request; says whether the connection can carry another."""
        self.bodies.append(body)
        status, refusal = self.judge(body)
        if status != 200:
            self._whole(writer, status, refusal)
            return True
        framing = "Transfer-Encoding: chunked\r\n" if self.framed else ""
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{self.headers}{framing}\r\n".encode())
        for event in self.events(body):
            writer.write(b"%x\r\n%b\r\n" % (len(event), event) if self.framed else event)
            await writer.drain()
            await asyncio.sleep(self.gap_s)
            if self.stall and len(self.bodies) > 1:
                await asyncio.sleep(60)
        if self.framed:
            writer.write(b"0\r\n\r\n")
        return self.framed

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        writer.write(f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
