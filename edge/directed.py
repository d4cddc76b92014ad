"""What the fleet may have a node do, and the task that takes the node's metrics."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from edge.admission.decisions import REMEMBERED
from edge.api.front import Front
from edge.errors import ConfigurationError
from edge.logs import change_level
from edge.settings import LOG_LEVELS
from edge.telemetry.collector import sample
from edge.telemetry.commands import Action, CommandFailed
from edge.telemetry.node import Telemetry

_LOOK_S = 1.0
_ANSWER_S = 10.0
_MOST_TRACED = 1000
_RELOAD_AFTER_S = 0.5
"""So that the answer gets away first."""


class Directed:
    """Feeds the telemetry, and carries out commands on the event loop."""

    def __init__(
        self, telemetry: Telemetry, front: Front, reload: Callable[[], None], require_startable: Callable[[], None]
    ) -> None:
        """`require_startable` raises ConfigurationError if the node would not start anew."""
        self._telemetry, self._front, self._reload = telemetry, front, reload
        self._require_startable = require_startable
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin. Raises ConfigurationError if another process has the outbox."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._telemetry.start, self._actions())
        self._task = asyncio.create_task(self._keep_sampling(), name="telemetry")

    async def stop(self) -> None:
        """Send what there is, for a moment, and end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._sample()
        await asyncio.to_thread(self._telemetry.stop)

    async def _keep_sampling(self) -> None:
        next_s = time.monotonic() + self._telemetry.interval_s
        told_facts = False
        while True:
            await asyncio.sleep(_LOOK_S)
            if not told_facts and self._front.facts is not None:
                told_facts = True
                self._tell_facts()
            if self._telemetry.trace.active:
                self._telemetry.trace.look(self._front.decisions.last(REMEMBERED))
            if time.monotonic() >= next_s:
                next_s = max(next_s + self._telemetry.interval_s, time.monotonic())
                self._sample()

    def _sample(self) -> None:
        telemetry = self._telemetry
        telemetry.measured(sample(self._front.metrics.told, telemetry.latencies, telemetry.began_ns))

    def _tell_facts(self) -> None:
        facts = self._front.facts
        assert facts is not None
        about = {"model": self._front.pool.roster.main, "slots": facts.slots, "context_tokens": facts.context_tokens}
        self._telemetry.presence.change(facts={**about, "device": facts.device})

    # --- commands; each is called on the uplink's thread --------------------------------------------------------------

    def _actions(self) -> dict[str, Action]:
        return {
            "drain": self._on_loop(self._drain),
            "reload": self._on_loop(self._reload_soon),
            "log-level": self._on_loop(self._log_level),
            "trace": self._on_loop(self._trace),
            "rebirth": self._on_loop(self._rebirth),
        }

    def _on_loop(self, action: Action) -> Action:
        """The same on the event loop, waited for."""

        async def run(arguments: Mapping[str, Any]) -> dict[str, Any]:
            return action(arguments)

        def carry_out(arguments: Mapping[str, Any]) -> dict[str, Any]:
            assert self._loop is not None
            try:
                return asyncio.run_coroutine_threadsafe(run(arguments), self._loop).result(_ANSWER_S)
            except concurrent.futures.TimeoutError:
                raise CommandFailed(f"the node's event loop did not answer within {_ANSWER_S:g} s") from None

        return carry_out

    def _drain(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Take no new work; with `resume`, take work again."""
        resume = arguments.get("resume", False)
        if not isinstance(resume, bool):
            raise CommandFailed("`resume` must be true or false")
        drain = self._front.drain
        if resume:
            drain.end()
        else:
            drain.begin()
        self._telemetry.presence.change(draining=drain.draining)
        return {"draining": drain.draining, "in_flight": sum(s.in_flight for s in self._front.pool.roster.states())}

    def _reload_soon(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Finish what runs and start anew with the settings as they are now; refused if they are wrong."""
        assert self._loop is not None
        try:
            self._require_startable()
        except ConfigurationError as error:
            raise CommandFailed(f"the settings would not start a node: {error.message}") from None
        self._loop.call_later(_RELOAD_AFTER_S, self._reload)
        return {"restarting": True}

    def _log_level(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        level = str(arguments.get("level"))
        if level not in LOG_LEVELS:
            raise CommandFailed(f"`level` must be one of {', '.join(LOG_LEVELS)}")
        change_level(level)
        return {"level": level}

    def _trace(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        requests = arguments.get("requests")
        if not isinstance(requests, int) or isinstance(requests, bool) or not 1 <= requests <= _MOST_TRACED:
            raise CommandFailed(f"`requests` must be a whole number from 1 to {_MOST_TRACED}")
        self._telemetry.trace.begin(requests)
        return {"requests": requests}

    def _rebirth(self, _: Mapping[str, Any]) -> dict[str, Any]:
        self._telemetry.presence.change()
        return {}
