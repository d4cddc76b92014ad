"""The engine's loop: takes work from the inbox, asks the scheduler for a plan, carries it out, sends what came of it.

Runs on the child's main thread and owns the native context; the reader thread only fills the inbox.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from edge.engine.calibrate import Threads
from edge.engine.llama.context import CellsExhausted, Context, ForwardFailed
from edge.engine.sampler import BrokenLogits
from edge.engine.scheduler import Chunk, Scheduler
from edge.engine.sequence import Phase, Request, Sequence
from edge.errors import EngineFault
from edge.messages import Abort, Failed, Finished, FirstToken, Message, Quit, Stats, Timing, Token

Send = Callable[[Iterable[Message]], None]
InboxItem = Request | Abort | Quit

_STATS_EVERY_S = 0.5
_STEPS_REMEMBERED = 512
_PAGE_BYTES = 4096


class EngineLoop:
    """Owner of the context, the scheduler and every running request."""

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        inbox: queue.SimpleQueue[InboxItem],
        send: Send,
        *,
        threads: Threads,
        heartbeat_s: float,
    ) -> None:
        self._context = context
        self._threads = threads
        self._scheduler = scheduler
        self._inbox = inbox
        self._send = send
        self._heartbeat_s = heartbeat_s
        self._requests: dict[int, Request] = {}
        self._outgoing: list[Message] = []
        self._forward_s = time.monotonic()
        self._stats_due_s = 0.0
        self._was_idle = True
        self._step_s: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._steps = self._prefill_tokens = self._decode_tokens = 0
        self._quit = False

    def run(self) -> None:
        """Work until Quit. Raises ForwardFailed when the context cannot be trusted any more."""
        while not self._quit:
            self._take_inbox()
            plan = self._scheduler.plan()
            if plan:
                begun = time.monotonic()
                if plan.decode:
                    self._decode(plan.decode)
                for chunk in plan.prefill:
                    self._prefill(chunk)
                self._steps += 1
                self._step_s.append(time.monotonic() - begun)
            elif time.monotonic() - self._forward_s >= self._heartbeat_s:
                self.beat()
            self._report()

    def warm(self, tokens: int) -> float:
        """Compute a prompt chunk in a free slot: builds the graphs that requests will use. Returns seconds."""
        begun = time.monotonic()
        self._context.use_threads(self._threads.prefill)
        self._context.forward([0] * tokens, range(tokens), [0] * tokens, [False] * (tokens - 1) + [True])
        self._context.forget(0)
        return time.monotonic() - begun

    def beat(self) -> None:
        """A real forward pass of one token in a free slot: proof that the engine can still answer."""
        self._context.use_threads(self._threads.decode)
        self._context.forward([0], [0], [0], [True])
        self._context.forget(0)
        self._forward_s = time.monotonic()

    # --- inbox --------------------------------------------------------------------------------------------------------

    def _take_inbox(self) -> None:
        if self._scheduler.idle:
            try:
                self._handle(self._inbox.get(timeout=self._idle_s()))
            except queue.Empty:
                return
        while not self._inbox.empty():  # nobody else takes from it
            self._handle(self._inbox.get_nowait())

    def _idle_s(self) -> float:
        now = time.monotonic()
        return max(0.001, min(self._stats_due_s - now, self._forward_s + self._heartbeat_s - now))

    def _handle(self, item: InboxItem) -> None:
        match item:
            case Request():
                self._requests[item.id] = item
                self._scheduler.add(item)
            case Abort(request_id=request_id):
                if request := self._requests.get(request_id):
                    self._fail(request, "cancelled", "the client went away")
                    self._flush()
            case Quit():
                self._quit = True

    # --- steps --------------------------------------------------------------------------------------------------------

    def _decode(self, sequences: tuple[Sequence, ...]) -> None:
        tokens = [s.last_token for s in sequences]
        positions = [s.position for s in sequences]
        slots = [s.slot for s in sequences]
        self._context.use_threads(self._threads.decode)
        if self._forward(tokens, positions, slots, [True] * len(sequences), sequences):
            self._decode_tokens += len(sequences)
            for row, sequence in enumerate(sequences):
                self._write(sequence, row)
        self._flush()

    def _prefill(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        if sequence.phase is not Phase.PREFILL:  # its request failed earlier in this step
            return
        request = sequence.request
        if request.started_s == 0.0:
            request.started_s = time.monotonic()
        end = chunk.start + chunk.count
        outputs = [False] * (chunk.count - 1) + [chunk.last]
        tokens = request.tokens[chunk.start : end]
        self._context.use_threads(self._threads.prefill)
        if self._forward(tokens, range(chunk.start, end), [sequence.slot] * chunk.count, outputs, (sequence,)):
            self._prefill_tokens += chunk.count
            followers = self._scheduler.prefilled(chunk)
            for follower in followers:
                self._context.copy(sequence.slot, follower.slot)
            if chunk.last:
                for member in (sequence, *followers):
                    self._write(member, chunk.count - 1)
        self._flush()

    def _forward(
        self,
        tokens: Iterable[int],
        positions: Iterable[int],
        slots: list[int],
        outputs: list[bool],
        sequences: tuple[Sequence, ...],
    ) -> bool:
        """Run one pass. On failure the requests concerned fail and False comes back; a fatal failure is raised."""
        try:
            self._context.forward(list(tokens), list(positions), slots, outputs)
        except CellsExhausted:
            reason = "the engine ran out of KV cells"
        except ForwardFailed as failure:
            if failure.fatal:
                raise
            reason = f"a forward pass failed: {failure}"
        else:
            self._forward_s = time.monotonic()
            return True
        for request in {s.request.id: s.request for s in sequences}.values():
            self._fail(request, EngineFault.code or "", reason)
        return False

    def _write(self, sequence: Sequence, row: int) -> None:
        request = sequence.request
        if sequence.phase is not Phase.DECODE:  # its request failed earlier in this step
            return
        try:
            token, message = sequence.writer.write(self._context, row)
        except BrokenLogits:
            self._fail(request, EngineFault.code or "", "the model produced no finite number; its file may be damaged")
            return
        now = time.monotonic()
        if request.first_token_s == 0.0:
            request.first_token_s = now
            self._outgoing.append(FirstToken(request.id, _timing(request, now)))
        request.last_token_s = now
        self._outgoing.append(message)
        if message.finish is None:
            self._scheduler.sampled(sequence, token)
            return
        self._end(sequence, message)
        if not request.open:
            self._finish(request)

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _end(self, sequence: Sequence, message: Token | None) -> None:
        if sequence.phase is Phase.DONE:
            return
        slot = self._scheduler.end(sequence)
        sequence.finish = message.finish if message is not None else None
        if slot is not None:
            self._context.forget(slot)
        sequence.writer.close()

    def _finish(self, request: Request) -> None:
        del self._requests[request.id]
        written = sum(s.writer.count for s in request.sequences)
        timing = _timing(request, request.last_token_s)
        self._outgoing.append(Finished(request.id, len(request.tokens), 0, written, timing))

    def _fail(self, request: Request, code: str, reason: str) -> None:
        for sequence in request.sequences:
            self._end(sequence, None)
        del self._requests[request.id]
        self._outgoing.append(Failed(request.id, code, reason))

    def _flush(self) -> None:
        if self._outgoing:
            self._send(self._outgoing)
            self._outgoing = []

    def _report(self) -> None:
        now = time.monotonic()
        became_idle = self._scheduler.idle and not self._was_idle
        self._was_idle = self._scheduler.idle
        if now < self._stats_due_s and not became_idle:
            return
        self._stats_due_s = now + _STATS_EVERY_S
        self._send([self.stats(now)])

    def stats(self, now_s: float) -> Stats:
        """The loop's own account of itself."""
        shape = self._context.shape
        ordered = sorted(self._step_s) or [0.0]
        held = sum(self._context.length(slot) for slot in range(shape.slots))
        return Stats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            slots=shape.slots,
            cells_used=held,
            cells=shape.slots * shape.context_tokens,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            steps=self._steps,
            step_p50_s=ordered[len(ordered) // 2],
            step_p99_s=ordered[len(ordered) * 99 // 100],
            forward_age_s=now_s - self._forward_s,
            resident_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
        )


def _timing(request: Request, last_s: float) -> Timing:
    return Timing(
        queue_s=request.started_s - request.received_s,
        prefill_s=request.first_token_s - request.started_s,
        decode_s=last_s - request.first_token_s,
    )
