"""The front's half of any engine child: starts it, watches it, replaces it. What its requests are is for the heirs to say."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar, cast

import msgspec

from edge.engine.child import ChildProcess
from edge.engine.counts import Counts
from edge.engine.port import EnginePhase, EngineStatus
from edge.errors import (
    DoesNotFit,
    EdgeError,
    EngineDown,
    InvalidRequest,
    ModelLoading,
    ModelUnusable,
    from_code,
)
from edge.messages import Failed, FrameReader, FrameTooLarge, LoadFailed, Message, Progress, frame

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_STEPS_OF_PATIENCE = 10
_IN_THE_BACKGROUND = 12
"""A child that gets only the processor time that others leave is silent for longer."""


class AnyLoad(Protocol):
    """What any child is told to load."""

    @property
    def path(self) -> str:
        """The model's file."""
        ...

    @property
    def background(self) -> bool:
        """The child takes only the processor time that others leave."""
        ...


LoadT = TypeVar("LoadT", bound=AnyLoad)
FactsT = TypeVar("FactsT")
SaidT = TypeVar("SaidT")


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How long an engine may be silent, and how much may wait for it. Seconds; `max_waiting` in requests beyond the
    slots."""

    max_waiting: int
    wedge_timeout_s: float
    load_timeout_s: float
    restart_backoff_max_s: float


class Supervised(ABC, Generic[LoadT, FactsT, SaidT]):
    """Owner of one engine child; lives on one event loop. `LoadT`: what the child is told to load, `FactsT`: what it says of the
    loaded model, `SaidT`: all that it may say."""

    module: ClassVar[str] = "edge.engine.worker"
    """What the child runs."""

    def __init__(
        self,
        load: LoadT,
        limits: EngineLimits,
        *,
        smaller: Callable[[], Awaitable[LoadT | None]] | None = None,
        environment: dict[str, str] | None = None,
        restarts: bool = True,
    ) -> None:
        """`smaller` is asked for a load that takes less memory, each time that a child ran out of it; None: there is none.
        `restarts`: a child that dies otherwise is replaced; else the engine has ended for good."""
        self._load = load
        self._file = Path(load.path).name
        self._limits = limits
        self._smaller = smaller
        self._restarts = restarts
        self._reduced = 0
        self._environment = environment or {}
        self._phase: EnginePhase = "stopped"
        self._reason = "not started"
        self._progress = 0.0
        self._starts = 0
        self._facts: FactsT | None = None
        self._refusal: ModelUnusable | None = None
        """Why the last child did not load the model."""
        self._unusable: ModelUnusable | None = None
        """Why the model will never be loaded."""
        self._calls: dict[int, asyncio.Future[Any]] = {}
        """Questions that have one answer each."""
        self._next_id = 0
        self._child: ChildProcess | None = None
        self._heard_s = 0.0
        self._longest_step_s = 0.0
        self._counted = self._counted_before = Counts()
        """By the child that lives now, as it said last, and by those before it."""
        self._was_ready = False
        """The child that lives now has loaded its model."""
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._set_up()

    @property
    def status(self) -> EngineStatus:
        """Current phase and why."""
        pid = self._child.pid if self._child is not None else None
        return EngineStatus(self._phase, self._reason, self._progress, max(0, self._starts - 1), pid, self._reduced)

    @property
    def facts(self) -> FactsT | None:
        """Facts of the loaded model, kept while the child restarts."""
        return self._facts

    @property
    def counts(self) -> Counts:
        """Totals of all children, as far as they told: about once a second."""
        status = self.status
        own = Counts(restarts=status.restarts, reductions=status.reduced)
        return self._counted_before + self._counted + own

    # --- what heirs say -----------------------------------------------------------------------------------------------

    def _set_up(self) -> None:
        """Make what they keep besides."""

    @abstractmethod
    def _decode(self, payload: bytes) -> list[SaidT]:
        """A frame of the child's. Raises msgspec.DecodeError."""

    @abstractmethod
    def _dispatch(self, message: SaidT) -> None:
        """Take one message of the child's."""

    def _fail_all(self, error: EdgeError) -> None:
        """The child is dead: whatever is in flight ends with this."""
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)

    def _writes_bytes(self) -> int:
        """What an ordered end may write to disk."""
        return 0

    def _layout_of(self, load: LoadT) -> dict[str, object]:
        """How large a load is, for the log."""
        return {}

    # --- requests -----------------------------------------------------------------------------------------------------

    async def _call(self, request_id: int, message: Message) -> Any:
        """Send a question and wait for its answer. Raises EdgeError."""
        self._require_ready()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._to_child(request_frame(message))
        self._calls[request_id] = future
        try:
            return await future
        finally:
            self._calls.pop(request_id, None)

    def _answered(self, request_id: int, answer: object) -> None:
        if (call := self._calls.get(request_id)) and not call.done():
            call.set_result(answer)

    def _call_failed(self, message: Failed) -> None:
        if (call := self._calls.get(message.request_id)) and not call.done():
            call.set_exception(from_code(message.code, message.message, param=message.param))

    def _require_ready(self) -> None:
        if self._phase == "ready":
            return
        if self._phase == "loading" and self._starts <= 1:
            raise ModelLoading(f"the model is being loaded ({self._progress:.0%}); try again shortly")
        raise EngineDown(f"the engine is {self._phase}: {self._reason}; try again shortly")

    def _to_child(self, data: bytes | bytearray) -> None:
        assert self._child is not None
        self._child.send(data)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # --- loading ------------------------------------------------------------------------------------------------------

    def _goes_on(self, message: Progress) -> None:
        self._set("loading", message.stage, message.fraction)

    def _became_ready(self, facts: FactsT, seconds: float, longest_step_s: float) -> None:
        self._facts = facts
        self._longest_step_s = longest_step_s
        self._was_ready = True
        self._set("ready", "", 1.0)
        log.info("engine ready", extra={"event": "engine_ready", "file": self._file, "seconds": round(seconds, 2)})

    def _refused(self, message: LoadFailed) -> None:
        error = from_code(message.code, message.message)
        self._refusal = error if isinstance(error, ModelUnusable) else ModelUnusable(message.message)
        self._set("loading", message.message)

    # --- life of the child --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load; returns at once. `wait_ready` waits for the outcome."""
        self._set("loading", "starting the engine")
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def wait_ready(self) -> FactsT:
        """Wait until the model answers. Raises ModelUnusable when the first load failed."""
        while self._phase != "ready" or self._facts is None:
            if self._unusable is not None:
                raise self._unusable
            await self.changed()
        return self._facts

    async def changed(self) -> None:
        """Wait for the next change of phase or progress."""
        self._changed.clear()
        await self._changed.wait()

    async def ended(self) -> str:
        """Wait until the engine is down for good, which one that restarts never is. Returns why."""
        assert self._supervisor is not None
        await asyncio.wait({self._supervisor})
        return self._reason

    async def stop(self) -> None:
        """End the child and fail what is still in flight."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        self._set("stopped", "the node is stopping")

    def _set(self, phase: EnginePhase, reason: str, progress: float = 0.0) -> None:
        self._phase, self._reason, self._progress = phase, reason, progress
        self._changed.set()

    async def _supervise(self) -> None:
        """Run one child after the other, with back-off between those that do not become ready."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            self._starts += 1
            was_ready = False
            try:
                was_ready, cause, starved = await self._live()
                if starved and await self._take_less(cause):
                    continue
                if self._facts is None:
                    self._unusable = self._refusal or ModelUnusable(f"{self._load.path} cannot be loaded: {cause}")
                    self._set("down", self._unusable.message)
                    return
                if not self._restarts:
                    self._set("down", cause)
                    log.error("engine down", extra={"event": "engine_down", "file": self._file, "reason": cause})
                    return
            except OSError as error:
                cause = f"its process cannot be started: {error}"
            except Exception:
                log.exception("engine supervision failed", extra={"event": "bug"})
                cause = "the node met an error of its own; its log says more"
            backoff_s = _FIRST_BACKOFF_S if was_ready else min(backoff_s * 2, self._limits.restart_backoff_max_s)
            self._set("down", cause)
            log.error(
                "engine down",
                extra={
                    "event": "engine_down",
                    "file": self._file,
                    "reason": cause,
                    "restart_in_s": round(backoff_s, 1),
                },
            )
            await asyncio.sleep(backoff_s * random.uniform(0.75, 1.25))

    async def _take_less(self, cause: str) -> bool:
        """After a child ran out of memory: go on with a smaller layout, if there is one."""
        self._set("down", cause)
        load = await self._smaller() if self._smaller is not None else None
        if load is None:
            return False
        log.error(
            "memory ran out; the engine starts again with a smaller layout",
            extra={"event": "engine_reduced", "reason": cause, **self._layout_of(load)},
        )
        self._load = load
        self._reduced += 1
        return True

    async def _live(self) -> tuple[bool, str, bool]:
        """One child from start to end. Returns whether it ever became ready, why it ended, and whether for want of memory."""
        child = await ChildProcess.spawn(self.module, {"GGML_NO_BACKTRACE": "1", **self._environment})
        self._child, self._heard_s = child, time.monotonic()
        self._refusal, self._was_ready = None, False
        self._set("loading", "loading the model")
        watch = asyncio.create_task(self._watch(child), name="engine-watch")
        child.say(cast(Message, self._load))
        cause, stopping = "", True
        try:
            cause = await self._listen(child)
            stopping = False
            self._set("down", cause or "the process ended")
        finally:
            watch.cancel()
            if stopping:  # saving what is kept may take it long, and nobody's answer goes on meanwhile
                self._fail_all(EngineDown("the engine was stopped while it worked on this request"))
                if not self._was_ready:  # it has nothing to save, and would hear of it only when it is loaded
                    child.kill()
            await child.end(quietly=stopping, writes_bytes=self._writes_bytes())
            self._child = None
            self._counted, self._counted_before = Counts(), self._counted_before + self._counted
            cause = cause or (self._refusal.message if self._refusal is not None else child.epitaph)
            self._fail_all(EngineDown(f"the engine failed while it worked on this request: {cause}"))
        return self._was_ready, cause, isinstance(self._refusal, DoesNotFit) or child.ran_out_of_memory

    async def _listen(self, child: ChildProcess) -> str:
        """Take what the child says until it closes the pipe. Returns the cause if one is known."""
        frames = FrameReader()

        def hear(data: bytes) -> None:
            self._heard_s = time.monotonic()
            for payload in frames.feed(data):
                for message in self._decode(payload):
                    self._dispatch(message)

        try:
            await child.hear(hear)
        except (msgspec.DecodeError, FrameTooLarge) as error:
            return f"its messages cannot be read: {error}"
        return self._reason if self._phase == "down" else ""

    async def _watch(self, child: ChildProcess) -> None:
        """Kill a child that has gone silent: it is wedged, whatever it believes."""
        while True:
            limit_s = self.patience_s if self._phase == "ready" else self._limits.load_timeout_s
            silent_s = time.monotonic() - self._heard_s
            if silent_s >= limit_s:
                self._set("down", f"no sign of life for {silent_s:.1f} s")
                log.error("engine wedged", extra={"event": "engine_wedged", "silent_s": round(silent_s, 1)})
                child.kill()
                # What waits in the kernel for a device or a disk dies when that answers: nobody waits for it here.
                self._fail_all(EngineDown(f"the engine failed while it worked on this request: {self._reason}"))
                return
            await asyncio.sleep(min(limit_s / 8, 1.0))

    @property
    def patience_s(self) -> float:
        """How long a ready engine may be silent. A large model on a slow box takes seconds for one honest step."""
        patience_s = max(self._limits.wedge_timeout_s, _STEPS_OF_PATIENCE * self._longest_step_s)
        return patience_s * _IN_THE_BACKGROUND if self._load.background else patience_s


def request_frame(message: Message) -> bytes | bytearray:
    """A client's request as a frame. Raises InvalidRequest for text that is none, and for what no frame holds."""
    try:
        return frame(message)
    except UnicodeEncodeError:
        raise InvalidRequest(
            "the text holds half a surrogate pair, which is no character; send valid Unicode"
        ) from None
    except FrameTooLarge as error:
        raise InvalidRequest(f"the request is too large for the engine: {error}") from None
    except OverflowError:
        raise InvalidRequest("a whole number in the request has more than 64 bits") from None
    except RecursionError:
        raise InvalidRequest("the request is nested too deeply") from None
