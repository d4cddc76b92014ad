"""Sends jobs to one server, open-loop or closed, and keeps what came back as it came. Everything is bounded."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from edge.bench.target import Target
from edge.bench.wire import Connection, Exchange
from edge.bench.workload import Job

_REUSE_S = 2.0  # many servers hang up after five seconds; a request must not meet that moment
_BACK_OFF_S = 0.1  # a server that refuses at once would otherwise be asked as fast as this machine can


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one level may cost."""

    requests: int = 2000
    in_flight: int = 256
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request as it went: `exchange` is None if it was never sent; `failure` says why there is no whole answer.

    `due_s`, `ended_s`: seconds after the level's begin at which it was to be sent and was over; `late_s`: how much later
    than due it was sent.
    """

    job: Job
    due_s: float
    late_s: float
    ended_s: float
    exchange: Exchange | None
    failure: str = ""


UNSENT = "not sent: --max-in-flight requests were under way"
TIMED_OUT = "timed out"


class Stop:
    """Set once, when measuring has to end early; `reason` says why."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """End what is being measured."""
        self.reason = self.reason or reason
        self._event.set()

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for it for at most `timeout_s`; says whether it has come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        return self._event.is_set()


class Client:
    """Connections to one server. Connecting is done before the request's time begins to count."""

    def __init__(self, target: Target, timeout_s: float) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._idle: list[tuple[float, Connection]] = []

    async def ask(self, job: Job, due_s: float, begun_s: float) -> Attempt:
        """Send one job and wait for its answer. Never raises for what a server or a network does."""
        exchange: Exchange | None = None
        connection: Connection | None = None
        failure = "cut off"
        body = self._target.body(job)
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection()
                exchange = connection.start(self._target.path, body, self._target.key)
                await exchange.done
            failure = ""
        except TimeoutError:
            failure = TIMED_OUT
        except OSError as error:
            failure = str(error) or type(error).__name__
        finally:  # cancelled as well: a server must not go on answering nobody
            if connection is not None and failure:
                connection.close()
        late_s = exchange.sent_s - begun_s - due_s if exchange else 0.0
        if connection is not None and connection.usable:
            self._idle.append((time.perf_counter(), connection))
        return Attempt(job, due_s, late_s, time.perf_counter() - begun_s, exchange, failure)

    def close(self) -> None:
        """Hang up."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _connection(self) -> Connection:
        while self._idle:
            since_s, connection = self._idle.pop()
            if connection.usable and time.perf_counter() - since_s < _REUSE_S:
                return connection
            connection.close()
        return await Connection.open(self._target.url, self._target.tls)


async def open_loop(client: Client, jobs: Iterable[Job], bounds: Bounds, stop: Stop) -> list[Attempt]:
    """Send each job at its time, whatever the answers do. Requests cut off by `stop` are left out."""
    begun_s = time.perf_counter()
    attempts: list[Attempt] = []
    tasks: list[asyncio.Task[None]] = []
    in_flight = 0

    async def one(job: Job) -> None:
        nonlocal in_flight
        attempts.append(await client.ask(job, job.at_s, begun_s))
        in_flight -= 1

    for job in jobs:
        if await stop.wait(max(0.0, job.at_s - (time.perf_counter() - begun_s))):
            break
        if in_flight >= bounds.in_flight:
            attempts.append(Attempt(job, job.at_s, 0.0, job.at_s, None, UNSENT))
            continue
        in_flight += 1
        tasks.append(asyncio.create_task(one(job)))
    await _finish(tasks, stop)
    return attempts


async def closed_loop(
    client: Client, jobs: Iterator[Job], concurrency: int, duration_s: float, bounds: Bounds, stop: Stop
) -> list[Attempt]:
    """Keep `concurrency` requests under way for `duration_s`, then let the last ones end."""
    begun_s = time.perf_counter()
    attempts: list[Attempt] = []
    sent = 0

    async def worker() -> None:
        nonlocal sent
        while (now_s := time.perf_counter() - begun_s) < duration_s and sent < bounds.requests:
            sent += 1
            attempt = await client.ask(next(jobs), now_s, begun_s)
            attempts.append(attempt)
            if attempt.failure or (attempt.exchange and attempt.exchange.status != 200):
                await asyncio.sleep(_BACK_OFF_S)

    await _finish([asyncio.create_task(worker()) for _ in range(concurrency)], stop)
    return attempts


async def _finish(tasks: list[asyncio.Task[None]], stop: Stop) -> None:
    """Wait for all, or until `stop`; then end the rest."""
    everything = asyncio.ensure_future(asyncio.gather(*tasks))
    stopped = asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {everything, stopped}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if everything.done():
            everything.result()  # our own bugs are not swallowed
    finally:
        everything.cancel()
        stopped.cancel()
        await asyncio.gather(*both, return_exceptions=True)
