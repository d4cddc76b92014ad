"""A client that measures: one stream or several at a time, every event's arrival time kept."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field

import httpx

from bench.servers import Server

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


async def stream(client: httpx.AsyncClient, server: Server, prompt: str, tokens: int) -> Trace:
    """One greedy completion of exactly `tokens` tokens. Raises httpx.HTTPStatusError."""
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
    trace = Trace(time.perf_counter())
    async with client.stream("POST", f"{server.url}/completions", json=body) as answer:
        answer.raise_for_status()
        trace.engine_s = _engine_s(answer.headers.get("server-timing", ""))
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("choices") and chunk["choices"][0].get("text"):
                trace.arrivals_s.append(time.perf_counter() - trace.sent_s)
            if chunk.get("usage"):
                trace.tokens = chunk["usage"]["completion_tokens"]
    return trace


def _engine_s(header: str) -> float | None:
    parts = [float(p.split("dur=")[1]) for p in header.split(",") if "dur=" in p]
    return sum(parts) / 1000 if parts else None


async def together(server: Server, prompts: list[str], tokens: int) -> list[Trace]:
    """All prompts at the same time, one stream each."""
    limits = httpx.Limits(max_connections=len(prompts) + 1)
    async with httpx.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:
        await client.get(f"{server.url}/models")
        return list(await asyncio.gather(*(stream(client, server, p, tokens) for p in prompts)))


def throughput(traces: list[Trace]) -> float:
    """Tokens per second of all streams, from the first sending to the last arrival."""
    begun = min(t.sent_s for t in traces)
    ended = max(t.sent_s + t.arrivals_s[-1] for t in traces)
    return sum(t.tokens for t in traces) / (ended - begun)
