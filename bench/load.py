"""A client that measures: one stream or several at a time, every event's arrival time kept."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from bench.servers import Server
from edge.bench.stream import read
from edge.bench.wire import Connection

SENTENCE = "The operator checks the pressure of the pump and writes it down before the shift ends. "


@dataclass(slots=True)
class Trace:
    """One stream as its client saw it; times in seconds since the request was sent."""

    sent_s: float
    arrivals_s: list[float] = field(default_factory=list)
    tokens: int = 0
    engine_s: float | None = None
    """The engine's own time to the first token, where the server tells (Server-Timing)."""

    @property
    def ttft_s(self) -> float:
        """Sent to first text."""
        return self.arrivals_s[0]

    @property
    def gaps_s(self) -> list[float]:
        """Between consecutive events."""
        return [b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]

    @property
    def decode_tokens_per_s(self) -> float:
        """From the first event to the last."""
        return (self.tokens - 1) / (self.arrivals_s[-1] - self.arrivals_s[0])


async def stream(connection: Connection, server: Server, prompt: str, tokens: int) -> Trace:
    """One greedy completion of exactly `tokens` tokens. Raises RefusedError."""
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
    }
    sent, answer = await connection.post("/v1/completions", json.dumps(body).encode())
    reading = read(answer.chunks)
    return Trace(
        sent,
        arrivals_s=[arrived - sent for arrived in reading.content_s],
        tokens=reading.tokens or 0,
        engine_s=_engine_s(answer.headers.get("server-timing", "")),
    )


def _engine_s(header: str) -> float | None:
    parts = [float(p.split("dur=")[1]) for p in header.split(",") if "dur=" in p]
    return sum(parts) / 1000 if parts else None


async def together(server: Server, prompts: list[str], tokens: int) -> list[Trace]:
    """All prompts at the same time, one stream each."""
    connections = [await Connection.open(server.url) for _ in prompts]
    try:
        return list(
            await asyncio.gather(
                *(stream(c, server, p, tokens) for c, p in zip(connections, prompts, strict=True)),
            )
        )
    finally:
        for connection in connections:
            connection.close()


def throughput(traces: list[Trace]) -> float:
    """Tokens per second of all streams, from the first sending to the last arrival."""
    begun = min(t.sent_s for t in traces)
    ended = max(t.sent_s + t.arrivals_s[-1] for t in traces)
    return sum(t.tokens for t in traces) / (ended - begun)


def saturated_tokens_per_s(traces: list[Trace]) -> float:
    """Tokens per second of all streams while every one of them runs: prompts are no part of it."""
    begun = max(t.sent_s + t.arrivals_s[0] for t in traces)
    ended = min(t.sent_s + t.arrivals_s[-1] for t in traces)
    arrived = sum(begun < t.sent_s + at <= ended for t in traces for at in t.arrivals_s)
    return arrived / (ended - begun)
