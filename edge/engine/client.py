"""The front's half of a language model's child: its requests, each with the promise of one reply."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Literal, assert_never

import msgspec

from edge import errors
from edge.engine.counts import Counts
from edge.engine.port import StreamEvent
from edge.engine.supervised import Supervised, request_frame
from edge.errors import (
    EdgeError,
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
    Load,
    Loaded,
    LoadFailed,
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
    to_front,
)

_MEMORY = 0.2
"""Weight of the newest request in the running mean of how long requests take."""


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


class EngineClient(Supervised[Load, ModelFacts, ToFront]):
    """Owner of one language model's child. Implements `edge.engine.port.Engine`."""

    kind: Literal["language"] = "language"

    def _set_up(self) -> None:
        self._stats: Stats | None = None
        self._streams: dict[int, _Stream] = {}
        self._full: errors.Declined | None = None
        self._mean_request_s = 1.0

    # --- what the front reads -----------------------------------------------------------------------------------------

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
        self._to_child(request_frame(msgspec.structs.replace(work, request_id=stream.request_id)))
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

    async def tokenize(self, prompt: Prompt, *, add_special: bool = True, pieces: bool = False) -> Tokenized:
        """Tokens of a prompt, and their bytes if `pieces`. Raises EdgeError."""
        request_id = self._new_id()
        answer = await self._call(request_id, Tokenize(request_id, prompt, add_special, pieces))
        assert isinstance(answer, Tokenized)
        return answer

    async def detokenize(self, tokens: list[int]) -> str:
        """Text of tokens. Raises EdgeError."""
        request_id = self._new_id()
        answer = await self._call(request_id, Detokenize(request_id, tokens))
        assert isinstance(answer, Detokenized)
        return answer.text

    def _decode(self, payload: bytes) -> list[ToFront]:
        return to_front(payload)

    def _writes_bytes(self) -> int:
        return self._load.kept_bytes

    def _layout_of(self, load: Load) -> dict[str, object]:
        return {"slots": load.slots, "context_tokens": load.context_tokens, "kv_type": load.kv_type}

    def _dispatch(self, message: ToFront) -> None:
        match message:
            case Token() | FirstToken() | Offer():
                if stream := self._streams.get(message.request_id):
                    stream.put(message)
            case Finished() | Failed():
                self._conclude(message)
            case Declined():
                self._decline(message)
            case Stats(cache_hits=hits, cache_evictions=evictions, cached_tokens=tokens):
                self._stats = message
                self._counted = Counts(cache_hits=hits, cache_evictions=evictions, cached_tokens=tokens)
            case Tokenized() | Detokenized():
                self._answered(message.request_id, message)
            case Progress():
                self._goes_on(message)
            case Loaded():
                self._stats = None
                self._became_ready(message.facts, message.seconds, message.longest_step_s)
            case LoadFailed():
                self._refused(message)
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
        elif isinstance(message, Failed):
            self._call_failed(message)

    def _fail_all(self, error: EdgeError) -> None:
        streams, self._streams = self._streams, {}
        self._full = None
        for stream in streams.values():
            stream.put(error)
        super()._fail_all(error)


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
