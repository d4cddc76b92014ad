"""The engine's loop: takes work from the inbox, asks the scheduler for a plan, carries it out, sends what came of it.

Runs on the child's main thread and owns the native context. The reader thread fills the inbox, and has requests judged while a
pass runs: a refusal that waits for the end of a pass would come too late. Everything but the pass itself holds the lock.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from operator import itemgetter

from edge.engine.admission import Verdict
from edge.engine.cells import Cells
from edge.engine.grammar import GrammarFailed
from edge.engine.llama.context import CellsExhausted, Context, ForwardFailed
from edge.engine.sampler import BrokenLogits
from edge.engine.scheduler import Chunk, Scheduler
from edge.engine.sequence import Phase, Request, Sequence
from edge.engine.steps import Kind, StepModel
from edge.engine.threads import ThreadChoice
from edge.engine.trials import Trial, Trials
from edge.errors import EngineFault, UnsupportedSchema
from edge.machine import resident_bytes
from edge.messages import Abort, ClocksChanged, Failed, Finished, FirstToken, Message, Quit, Stats, Timing, Token

Send = Callable[[Iterable[Message]], None]
InboxItem = Request | Abort | ClocksChanged | Quit

_STATS_EVERY_S = 0.5
_STEPS_REMEMBERED = 512


class EngineLoop:
    """Owner of the context, the scheduler and every running request."""

    def __init__(
        self,
        context: Context,
        scheduler: Scheduler,
        inbox: queue.SimpleQueue[InboxItem],
        send: Send,
        *,
        threads: ThreadChoice,
        model: StepModel,
        heartbeat_s: float,
        at_end: Callable[[], None],
    ) -> None:
        self._context = context
        self._threads = threads
        self._model = model
        self._trials = Trials(threads, model, rows_limit=context.rows_limit)
        self._pass_threads, self._strained = 0, False
        self._scheduler = scheduler
        self._cells = Cells(context, scheduler)
        self._inbox = inbox
        self._send = send
        self._heartbeat_s = heartbeat_s
        self._at_end = at_end
        self._requests: dict[int, Request] = {}
        self._outgoing: list[Message] = []
        self._forward_s = time.monotonic()
        self._stats_due_s = 0.0
        self._was_idle = True
        self._step_s: deque[float] = deque(maxlen=_STEPS_REMEMBERED)
        self._steps = self._prefill_tokens = self._decode_tokens = self._cached_tokens = 0
        self._lock = threading.Lock()
        self._quit = False

    def run(self) -> None:
        """Work until Quit, one pass at a time. Raises ForwardFailed when the context cannot be trusted any more."""
        with self._lock:
            while not self._quit:
                self._take_inbox()
                self._turn()
                self._report()
        self._at_end()

    def accept(self, request: Request, tell: Callable[[Verdict], None]) -> None:
        """Judge a request and take it in unless it is declined; `tell` runs before anything else is said of it. For the
        reader thread."""
        with self._lock:
            verdict = self._scheduler.add(request, time.monotonic())
            if not verdict.declined:
                self._requests[request.id] = request
            tell(verdict)
        self._inbox.put(request)

    def _turn(self) -> None:
        while (placement := self._scheduler.next_placement(time.monotonic())) is not None:
            self._cells.place(placement)
        if (chunk := self._scheduler.next_chunk(time.monotonic())) is not None:
            self._prefill(chunk)
        elif rows := self._scheduler.decode_rows(time.monotonic()):
            self._decode(rows)
        elif time.monotonic() - self._forward_s >= self._heartbeat_s:
            self._beat()
        elif time.monotonic() >= self._trials.due_s:
            self._try_threads(at_leisure=False)

    def beat(self) -> None:
        """A real forward pass of one token, before `run`: proof that the engine can answer."""
        with self._lock:
            self._beat()

    def _beat(self) -> None:
        ratio, _ = self._probe(Trial("decode", 1, self._threads.of("decode")))
        self._forward_s = time.monotonic()
        if self._scheduler.idle:  # nobody has come meanwhile
            self._scheduler.proved(self._forward_s, ratio)
            self._try_threads(at_leisure=True)

    def _try_threads(self, *, at_leisure: bool) -> None:
        """Nobody waits: see how another thread count would do."""
        trial = self._trials.next(time.monotonic(), self._probe_place()[1], at_leisure=at_leisure)
        if trial is not None:
            self._trials.tried(trial, *self._probe(trial), time.monotonic())

    def _probe(self, trial: Trial) -> tuple[float, float]:
        """A pass behind what lies in a free slot, without a trace. Returns its time, beside what is predicted and in seconds."""
        kind, rows, threads = trial
        self._context.use_threads(threads)
        while True:
            slot, at = self._probe_place()
            if at + rows > self._context.shape.context_tokens:
                self._cells.clear(slot)
                at = 0
            places, outputs = list(range(at, at + rows)), [False] * (rows - 1) + [True]
            expected_s = self._model.raw_s(kind, rows, at)
            begun = time.monotonic()
            self._scheduler.begins(begun + expected_s, decodes=False)
            try:
                self._run([0] * rows, places, [slot] * rows, outputs)
            except CellsExhausted:  # in the unified layout others' cells fill the slot's room
                if not self._cells.make_room():
                    raise
            else:
                break
        took_s = time.monotonic() - begun
        self._context.forget(slot, at)
        return took_s / expected_s, took_s

    def _probe_place(self) -> tuple[int, int]:
        """(the free slot that holds least, how much)."""
        return min(
            ((slot, self._context.length(slot)) for slot in self._scheduler.slots.free_slots()), key=itemgetter(1)
        )

    # --- inbox --------------------------------------------------------------------------------------------------------

    def _take_inbox(self) -> None:
        if self._scheduler.idle and (item := self._awaited(self._idle_s())) is not None:
            self._handle(item)
        while not self._inbox.empty():  # nobody else takes from it
            self._handle(self._inbox.get_nowait())

    def _awaited(self, timeout_s: float) -> InboxItem | None:
        self._lock.release()
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None
        finally:
            self._lock.acquire()

    def _idle_s(self) -> float:
        now = time.monotonic()
        due_s = min(self._stats_due_s, self._forward_s + self._heartbeat_s, self._trials.due_s)
        return max(0.001, due_s - now)

    def _handle(self, item: InboxItem) -> None:
        match item:
            case Request():
                pass  # taken in by the reader; here it only ends the wait
            case Abort(request_id=request_id):
                if request := self._requests.get(request_id):
                    self._fail(request, "cancelled", "the client went away")
                    self._flush()
            case ClocksChanged():
                self._model.clocks_changed()
            case Quit():
                self._quit = True

    # --- passes -------------------------------------------------------------------------------------------------------

    def _decode(self, sequences: tuple[Sequence, ...]) -> None:
        tokens = [s.last_token for s in sequences]
        positions = [s.position for s in sequences]
        slots = [s.slot for s in sequences]
        cells = sum(s.cells for s in sequences)
        begun = self._begin("decode", len(sequences), cells)
        if self._forward(tokens, positions, slots, [True] * len(sequences), sequences):
            now = self._forward_s
            self._passed("decode", len(sequences), cells, now - begun)
            self._scheduler.decoded(sequences, now, now - begun)
            self._decode_tokens += len(sequences)
            for row, sequence in enumerate(sequences):
                self._write(sequence, row)
            self._model.wrote(len(sequences), time.monotonic() - now)
        self._flush()

    def _prefill(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        request = sequence.request
        if request.started_s == 0.0:
            request.started_s = time.monotonic()
        end = chunk.start + chunk.count
        outputs = [False] * (chunk.count - 1) + [chunk.last]
        tokens = request.tokens[chunk.start : end]
        begun = self._begin("prompt", chunk.count, chunk.start)
        if self._forward(tokens, range(chunk.start, end), [sequence.slot] * chunk.count, outputs, (sequence,)):
            now = self._forward_s
            self._passed("prompt", chunk.count, chunk.start, now - begun)
            self._prefill_tokens += chunk.count
            siblings = self._scheduler.prefilled(chunk, now, now - begun)
            if chunk.last:
                self._cells.share(sequence, siblings)
                for member in (sequence, *siblings):
                    self._write(member, chunk.count - 1)
        self._flush()

    def _begin(self, kind: Kind, rows: int, cells: int) -> float:
        """Set the threads of the next pass, and say when it will be over. Returns the time now."""
        self._strained = self._model.strained(kind, rows)
        self._pass_threads = self._threads.for_pass(kind, strained=self._strained)
        self._context.use_threads(self._pass_threads)
        begun = time.monotonic()
        self._scheduler.begins(begun + self._model.raw_s(kind, rows, cells), decodes=kind == "decode")
        return begun

    def _passed(self, kind: Kind, rows: int, cells: int, took_s: float) -> None:
        """Learn from a pass. One with other threads than usual says nothing of the usual."""
        self._steps += 1
        self._step_s.append(took_s)
        if self._strained:
            ratio = took_s / self._model.raw_s(kind, rows, cells)
            if self._trials.learn(kind, self._pass_threads, ratio):
                return
        if self._pass_threads == self._threads.of(kind):
            self._model.observe(kind, rows, cells, took_s)

    def _run(self, tokens: list[int], positions: list[int], slots: list[int], outputs: list[bool]) -> None:
        """A pass. Meanwhile the reader thread may have requests judged and queued."""
        self._lock.release()
        try:
            self._context.forward(tokens, positions, slots, outputs)
        finally:
            self._lock.acquire()

    def _forward(
        self,
        tokens: Iterable[int],
        positions: Iterable[int],
        slots: list[int],
        outputs: list[bool],
        sequences: tuple[Sequence, ...],
    ) -> bool:
        """Run one pass. On failure the requests concerned fail and False comes back; for want of cells it is one of them, whose
        cells the others get. A fatal failure is raised."""
        rows, places = list(tokens), list(positions)
        while True:
            try:
                self._run(rows, places, slots, outputs)
            except CellsExhausted:
                if self._cells.make_room():
                    continue
                last = max((s.request for s in sequences), key=lambda r: (not r.admitted, r.arrived_s))
                self._fail(last, EngineFault.code or "", "the engine ran out of KV cells")
                return False
            except ForwardFailed as failure:
                if failure.fatal:
                    raise
                for request in {s.request.id: s.request for s in sequences}.values():
                    self._fail(request, EngineFault.code or "", f"a forward pass failed: {failure}")
                for slot in dict.fromkeys(slots):  # what a failed pass left there is nobody's beginning
                    self._cells.clear(slot)
                return False
            self._forward_s = time.monotonic()
            return True

    def _write(self, sequence: Sequence, row: int) -> None:
        request = sequence.request
        if sequence.phase is not Phase.DECODE:  # its request failed earlier in this step
            return
        try:
            token, message = sequence.writer.write(self._context, row)
        except BrokenLogits:
            self._fail(request, EngineFault.code or "", "the model produced no finite number; its file may be damaged")
            return
        except GrammarFailed as failure:  # it would end here as if it were whole
            self._fail(request, UnsupportedSchema.code or "", str(failure))
            return
        now = time.monotonic()
        if request.first_token_s == 0.0:
            request.first_token_s = now
            self._outgoing.append(FirstToken(request.id, _timing(request, now)))
        request.last_token_s = now
        self._outgoing.append(message)
        self._scheduler.sampled(sequence, token, now)
        if message.finish is None:
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
        self._cached_tokens += request.cached_tokens
        self._outgoing.append(Finished(request.id, len(request.tokens), request.cached_tokens, written, timing))

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
        cache = self._scheduler.cache
        admits, late_s = self._scheduler.outlook(now_s)
        bounds = self._scheduler.admits(shape.context_tokens)
        return Stats(
            running=self._scheduler.running,
            waiting=self._scheduler.waiting,
            slots=shape.slots,
            cells_used=sum(s.cells for s in self._scheduler.slots.holders()),
            cells=shape.slots * shape.context_tokens,
            cache_bytes=cache.saved_bytes,
            cache_hits=cache.hits,
            cache_evictions=cache.evictions,
            cached_tokens=self._cached_tokens,
            admits=admits,
            admits_tokens=bounds.tokens,
            admits_streams=bounds.streams,
            late_ttft_s=late_s,
            prefill_tokens=self._prefill_tokens,
            decode_tokens=self._decode_tokens,
            steps=self._steps,
            step_p50_s=ordered[len(ordered) // 2],
            step_p99_s=ordered[len(ordered) * 99 // 100],
            forward_age_s=now_s - self._forward_s,
            resident_bytes=resident_bytes(os.getpid()),
        )


def _timing(request: Request, last_s: float) -> Timing:
    return Timing(
        queue_s=request.started_s - request.received_s,
        prefill_s=request.first_token_s - request.started_s,
        decode_s=last_s - request.first_token_s,
    )
