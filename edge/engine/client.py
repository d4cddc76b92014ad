"""The front's half of an engine child: starts it, watches it, replaces it, and keeps every request's promise of one
reply."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import assert_never

import msgspec

from edge import errors
from edge.engine.child import ChildProcess
from edge.engine.port import EnginePhase, EngineStatus, StreamEvent
from edge.errors import (
    DoesNotFit,
    EdgeError,
    EngineDown,
    InvalidRequest,
    ModelLoading,
    ModelUnusable,
    Overloaded,
    from_code,
)
from edge.messages import (
    Abort,
    ClocksChanged,
    Declined,
    Detokenize,
    Detokenized,
    Failed,
    Finished,
    FirstToken,
    FrameReader,
    FrameTooLarge,
    Load,
    Loaded,
    LoadFailed,
    Message,
    ModelFacts,
    Offer,
    Progress,
    Prompt,
    Stats,
    Submit,
    ToFront,
    Token,
    Tokenize,
    Tokenized,
    frame,
    to_front,
)

log = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_STEPS_OF_PATIENCE = 10
_IN_THE_BACKGROUND = 12
"""A child that gets only the processor time that others leave is silent for longer."""
_MEMORY = 0.2
"""Weight of the newest request in the running mean of how long requests take."""


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How long an engine may be silent, and how much may wait for it. Seconds; `max_waiting` in requests beyond the
    slots."""

    max_waiting: int
    wedge_timeout_s: float
    load_timeout_s: float
    restart_backoff_max_s: float


class _Stream:
    """One request's events, from the client's read loop to the one task that iterates."""

    def __init__(self, client: EngineClient, request_id: int, answers: int) -> None:
        self.answers = answers
        self._client = client
        self.request_id = request_id
        self._events: deque[StreamEvent | EdgeError] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._over = False
        self.aborted = False

    def put(self, event: StreamEvent | EdgeError) -> None:
        if self.aborted:
            return
        self._events.append(event)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def __aiter__(self) -> AsyncIterator[StreamEvent]:
        return self

    async def __anext__(self) -> StreamEvent:
        if self._over:
            raise StopAsyncIteration
        while not self._events:
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        event = self._events.popleft()
        if isinstance(event, EdgeError):
            self._over = True
            raise event
        self._over = isinstance(event, Finished)
        return event

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            self._client.abort(self.request_id)


class EngineClient:
    """Owner of one engine child. Implements `edge.engine.port.Engine`; lives on one event loop."""

    def __init__(
        self,
        load: Load,
        limits: EngineLimits,
        *,
        smaller: Callable[[], Awaitable[Load | None]] | None = None,
        environment: dict[str, str] | None = None,
        restarts: bool = True,
    ) -> None:
        """`smaller` is asked for a load that takes less memory, each time that a child ran out of it; None: there is none.
        `restarts`: a child that dies otherwise is replaced; else the engine has ended for good."""
        self._load = load
        self._limits = limits
        self._smaller = smaller
        self._restarts = restarts
        self._reduced = 0
        self._environment = environment or {}
        self._phase: EnginePhase = "stopped"
        self._reason = "not started"
        self._progress = 0.0
        self._starts = 0
        self._facts: ModelFacts | None = None
        self._stats: Stats | None = None
        self._refusal: ModelUnusable | None = None
        """Why the last child did not load the model."""
        self._unusable: ModelUnusable | None = None
        """Why the model will never be loaded."""
        self._streams: dict[int, _Stream] = {}
        self._calls: dict[int, asyncio.Future[Tokenized | Detokenized]] = {}
        self._next_id = 0
        self._full: errors.Declined | None = None
        self._child: ChildProcess | None = None
        self._heard_s = 0.0
        self._longest_step_s = 0.0
        self._mean_request_s = 1.0
        self._supervisor: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    # --- what the front reads -----------------------------------------------------------------------------------------

    @property
    def status(self) -> EngineStatus:
        """Current phase and why."""
        pid = self._child.pid if self._child is not None else None
        return EngineStatus(self._phase, self._reason, self._progress, max(0, self._starts - 1), pid, self._reduced)

    @property
    def facts(self) -> ModelFacts | None:
        """Facts of the loaded model, kept while the child restarts."""
        return self._facts

    @property
    def stats(self) -> Stats | None:
        """The child's last account of itself, None while none is ready."""
        return self._stats if self._phase == "ready" else None

    @property
    def in_flight(self) -> int:
        """Requests submitted and without terminal reply."""
        return len(self._streams)

    @property
    def full(self) -> errors.Declined | None:
        """The last refusal for want of slots, while nothing has ended since."""
        return self._full

    # --- requests -----------------------------------------------------------------------------------------------------

    def require_room(self) -> None:
        """Raises EngineDown, ModelLoading or Overloaded if a request submitted now would be refused."""
        self._require_ready()
        if len(self._streams) >= self._load.slots + self._limits.max_waiting:
            # The next place is free when the mean request of one slot is done.
            raise Overloaded(
                f"{len(self._streams)} requests are running or waiting, the node takes no more; try again shortly",
                retry_after_s=max(1.0, self._mean_request_s / self._load.slots),
            )

    def submit(self, work: Submit) -> _Stream:
        """Start a request. Raises EngineDown, ModelLoading, Overloaded or InvalidRequest."""
        self.require_room()
        stream = _Stream(self, self._new_id(), work.n)
        self._to_child(_request_frame(msgspec.structs.replace(work, request_id=stream.request_id)))
        self._streams[stream.request_id] = stream
        return stream

    def abort(self, request_id: int) -> None:
        """Tell the child that nobody waits for a request any more; it stays in flight until the child confirms."""
        if request_id in self._streams and self._child is not None:
            self._child.say(Abort(request_id))

    def clocks_changed(self) -> None:
        """Tell the child that passes take longer, or less long, from now on: it forgets sooner what they took before."""
        if self._phase == "ready" and self._child is not None:
            self._child.say(ClocksChanged())

    async def tokenize(self, prompt: Prompt, *, add_special: bool = True) -> Tokenized:
        """Tokens of a prompt. Raises EdgeError."""
        answer = await self._call(Tokenize(self._new_id(), prompt, add_special))
        assert isinstance(answer, Tokenized)
        return answer

    async def detokenize(self, tokens: list[int]) -> str:
        """Text of tokens. Raises EdgeError."""
        answer = await self._call(Detokenize(self._new_id(), tokens))
        assert isinstance(answer, Detokenized)
        return answer.text

    async def _call(self, message: Tokenize | Detokenize) -> Tokenized | Detokenized:
        self._require_ready()
        future: asyncio.Future[Tokenized | Detokenized] = asyncio.get_running_loop().create_future()
        self._to_child(_request_frame(message))
        self._calls[message.request_id] = future
        try:
            return await future
        finally:
            self._calls.pop(message.request_id, None)

    def _require_ready(self) -> None:
        if self._phase == "ready":
            return
        if self._phase == "loading" and self._starts <= 1:
            raise ModelLoading(f"the model is being loaded ({self._progress:.0%}); try again shortly")
        raise EngineDown(f"the engine is {self._phase}: {self._reason}; try again shortly")

    def _to_child(self, data: bytes) -> None:
        assert self._child is not None
        self._child.send(data)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # --- life of the child --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load; returns at once. `wait_ready` waits for the outcome."""
        self._set("loading", "starting the engine")
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def wait_ready(self) -> ModelFacts:
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
                    log.error("engine down", extra={"event": "engine_down", "reason": cause})
                    return
            except OSError as error:
                cause = f"its process cannot be started: {error}"
            except Exception:
                log.exception("engine supervision failed", extra={"event": "bug"})
                cause = "the node met an error of its own; its log says more"
            backoff_s = _FIRST_BACKOFF_S if was_ready else min(backoff_s * 2, self._limits.restart_backoff_max_s)
            self._set("down", cause)
            log.error(
                "engine down", extra={"event": "engine_down", "reason": cause, "restart_in_s": round(backoff_s, 1)}
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
            extra={
                "event": "engine_reduced",
                "reason": cause,
                "slots": load.slots,
                "context_tokens": load.context_tokens,
                "kv_type": load.kv_type,
            },
        )
        self._load = load
        self._reduced += 1
        return True

    async def _live(self) -> tuple[bool, str, bool]:
        """One child from start to end. Returns whether it ever became ready, why it ended, and whether for want of memory."""
        child = await ChildProcess.spawn({"GGML_NO_BACKTRACE": "1", **self._environment})
        self._child, self._heard_s = child, time.monotonic()
        self._refusal = None
        self._set("loading", "loading the model")
        watch = asyncio.create_task(self._watch(child), name="engine-watch")
        child.say(self._load)
        was_ready, cause, stopping = False, "", True
        try:
            was_ready, cause = await self._listen(child)
            stopping = False
            self._set("down", cause or "the process ended")
        finally:
            watch.cancel()
            await child.end(quietly=stopping, writes_bytes=self._load.kept_bytes)
            self._child = None
            cause = cause or (self._refusal.message if self._refusal is not None else child.epitaph)
            self._fail_all(EngineDown(f"the engine failed while it worked on this request: {cause}"))
        return was_ready, cause, isinstance(self._refusal, DoesNotFit) or child.ran_out_of_memory

    async def _listen(self, child: ChildProcess) -> tuple[bool, str]:
        """Take what the child says until it closes the pipe. Returns (was ready, cause if one is known)."""
        frames = FrameReader()
        was_ready = False

        def hear(data: bytes) -> None:
            nonlocal was_ready
            self._heard_s = time.monotonic()
            for payload in frames.feed(data):
                for message in to_front(payload):
                    was_ready = was_ready or isinstance(message, Loaded)
                    self._dispatch(message)

        try:
            await child.hear(hear)
        except (msgspec.DecodeError, FrameTooLarge) as error:
            return was_ready, f"its messages cannot be read: {error}"
        return was_ready, self._reason if self._phase == "down" else ""

    def _dispatch(self, message: ToFront) -> None:
        match message:
            case Token() | FirstToken() | Offer():
                if stream := self._streams.get(message.request_id):
                    stream.put(message)
            case Finished() | Failed():
                self._conclude(message)
            case Declined():
                self._decline(message)
            case Stats():
                self._stats = message
            case Tokenized() | Detokenized():
                if (call := self._calls.get(message.request_id)) and not call.done():
                    call.set_result(message)
            case Progress(stage=stage, fraction=fraction):
                self._set("loading", stage, fraction)
            case Loaded(facts=facts, seconds=seconds, longest_step_s=longest_step_s):
                self._facts = facts
                self._longest_step_s = longest_step_s
                self._stats = None
                self._set("ready", "", 1.0)
                log.info("engine ready", extra={"event": "engine_ready", "seconds": round(seconds, 2)})
            case LoadFailed(code=code, message=text):
                error = from_code(code, text)
                self._refusal = error if isinstance(error, ModelUnusable) else ModelUnusable(text)
                self._set("loading", text)
            case _:
                assert_never(message)

    def _decline(self, message: Declined) -> None:
        stream = self._streams.pop(message.request_id, None)
        if stream is None:
            return
        # Told of one answer that found no slot, it is true of every other; and something that runs must end to change it.
        if message.outlook.reason == "slots" and stream.answers == 1 and not message.hopeless and self._streams:
            self._full = _declined(msgspec.structs.replace(message, prompt_tokens=0))
        stream.put(_declined(message))

    def _conclude(self, message: Finished | Failed) -> None:
        self._full = None
        if stream := self._streams.pop(message.request_id, None):
            if isinstance(message, Finished):
                took_s = message.timing.prefill_s + message.timing.decode_s
                self._mean_request_s += _MEMORY * (took_s - self._mean_request_s)
                stream.put(message)
            else:
                stream.put(from_code(message.code, message.message, param=message.param))
        elif isinstance(message, Failed) and (call := self._calls.get(message.request_id)) and not call.done():
            call.set_exception(from_code(message.code, message.message, param=message.param))

    def _fail_all(self, error: EdgeError) -> None:
        streams, self._streams = self._streams, {}
        self._full = None
        for stream in streams.values():
            stream.put(error)
        for call in self._calls.values():
            if not call.done():
                call.set_exception(error)

    async def _watch(self, child: ChildProcess) -> None:
        """Kill a child that has gone silent: it is wedged, whatever it believes."""
        while True:
            limit_s = self._patience_s() if self._phase == "ready" else self._limits.load_timeout_s
            silent_s = time.monotonic() - self._heard_s
            if silent_s >= limit_s:
                self._set("down", f"no sign of life for {silent_s:.1f} s")
                log.error("engine wedged", extra={"event": "engine_wedged", "silent_s": round(silent_s, 1)})
                child.kill()
                return
            await asyncio.sleep(min(limit_s / 8, 1.0))

    def _patience_s(self) -> float:
        """How long a ready engine may be silent. A large model on a slow box takes seconds for one honest step."""
        patience_s = max(self._limits.wedge_timeout_s, _STEPS_OF_PATIENCE * self._longest_step_s)
        return patience_s * _IN_THE_BACKGROUND if self._load.background else patience_s


_WORDS = {
    "slots": "all answers that can run at a time are running",
    "slo_itl": "one more answer would slow the running ones down below what was promised",
    "slo_ttft": "its prompt cannot be read in time",
    "flex": "the node is busy, and the request may wait",
    "wait": "it would wait longer than admission.max_wait_s allows",
}


def _declined(message: Declined) -> errors.Declined:
    outlook = message.outlook
    said = _WORDS[outlook.reason] if outlook.reason else "declined"
    if outlook.reason == "wait":
        said += f", about {outlook.ttft_s:.0f} s"
    return errors.Declined(
        f"{said}; try again later",
        reason=outlook.reason,
        late_s=outlook.ttft_s,
        hopeless=message.hopeless,
        prompt_tokens=message.prompt_tokens,
    )


def _request_frame(message: Message) -> bytes:
    """A client's request as a frame. Raises InvalidRequest for text that is none, and for what no frame holds."""
    try:
        return frame(message)
    except UnicodeEncodeError:
        raise InvalidRequest(
            "the text holds half a surrogate pair, which is no character; send valid Unicode"
        ) from None
    except FrameTooLarge as error:
        raise InvalidRequest(f"the request is too large for the engine: {error}") from None
