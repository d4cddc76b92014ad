"""The engine child's main: load the model, then serve the pipe until the front goes away.

Started by `edge.engine.client` as `python -m edge.engine.worker FD` with one end of a socket pair. Exit status: 0 after
Quit or when the front is gone, 3 when the model did not load, 70 when the native context could not be trusted any more, 71
when memory was exhausted.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from edge.dialects.template import DEFAULT_CHATML, ChatTemplate
from edge.engine.admission import Targets, Verdict
from edge.engine.calibrate import CALIBRATION_CHUNK, Threads, choose_threads, thread_candidates
from edge.engine.gauge import StepGauge
from edge.engine.intake import Intake, Tokens
from edge.engine.kept import KeptPrefixes
from edge.engine.llama.context import Context, ContextShape, ForwardFailed
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.engine.loop import EngineLoop, InboxItem
from edge.engine.pipe import EXIT_ENGINE_BROKEN, EXIT_LOAD_FAILED, Pipe, end_with_parent, step_back
from edge.engine.prefix import PrefixCache
from edge.engine.scheduler import Scheduler
from edge.engine.sequence import Request
from edge.engine.statefiles import StateFiles
from edge.engine.steps import StepModel
from edge.engine.threads import ThreadChoice
from edge.errors import DoesNotFit, EdgeError, EngineFault, InvalidRequest
from edge.machine import processor
from edge.messages import (
    EXIT_NO_MEMORY,
    Abort,
    ClocksChanged,
    Declined,
    Detokenize,
    Detokenized,
    Failed,
    FrameTooLarge,
    Load,
    Loaded,
    LoadFailed,
    Message,
    ModelFacts,
    Offer,
    Outlook,
    Progress,
    Quit,
    Submit,
    ToChild,
    Tokenize,
    Tokenized,
    to_child,
)
from edge.quiet import settle_collector, yield_soon
from edge.registry.digest import fingerprint


class Reader(threading.Thread):
    """Turns messages into work for the loop, and answers what needs no forward pass."""

    def __init__(
        self, pipe: Pipe[ToChild], intake: Intake, loop: EngineLoop, inbox: queue.SimpleQueue[InboxItem]
    ) -> None:
        super().__init__(name="reader", daemon=True)
        self._pipe = pipe
        self._intake = intake
        self._loop = loop
        self._inbox = inbox

    def run(self) -> None:
        try:
            for message in self._pipe.receive():
                self._take(message)
        except (OSError, msgspec.DecodeError, FrameTooLarge) as error:
            print(f"engine: the front's messages cannot be read: {error}", file=sys.stderr, flush=True)
        finally:  # whatever it was: an engine that hears nothing must end, or requests would wait for ever
            self._inbox.put(Quit())

    def _take(self, message: ToChild) -> None:
        match message:
            case Submit():
                self._answer(message.request_id, lambda: self._submit(message))
            case Abort() | ClocksChanged() | Quit():
                self._inbox.put(message)
            case Tokenize():
                self._answer(message.request_id, lambda: self._tokenized(message))
            case Detokenize():
                self._answer(message.request_id, lambda: self._detokenized(message))
            case Load():
                raise msgspec.DecodeError("a second Load")

    def _submit(self, work: Submit) -> Iterable[Message]:
        request, prompt = self._intake.accept(work, time.monotonic())

        def tell(verdict: Verdict) -> None:
            self._pipe.send([_told(request, prompt, verdict)])

        self._loop.accept(request, tell)
        return ()

    def _tokenized(self, message: Tokenize) -> Iterable[Message]:
        tokens = self._intake.tokenize(message.prompt, add_special=message.add_special).tokens
        pieces = self._intake.pieces(tokens) if message.pieces else []
        return [Tokenized(message.request_id, tokens, pieces)]

    def _detokenized(self, message: Detokenize) -> Iterable[Message]:
        return [Detokenized(message.request_id, self._intake.detokenize(message.tokens))]

    def _answer(self, request_id: int, replies: Callable[[], Iterable[Message]]) -> None:
        """Send what `replies` makes, or the one terminal Failed: a request that trips over our own bug ends too."""
        try:
            if messages := replies():
                self._pipe.send(messages)
            return
        except EdgeError as error:
            failed = Failed(request_id, error.code or "", error.message, error.param)
        except FrameTooLarge as error:
            failed = Failed(request_id, InvalidRequest.code or "", f"the answer is too large to be told: {error}")
        except MemoryError:  # the next one would fail too; the front starts an engine that takes less
            os._exit(EXIT_NO_MEMORY)
        except Exception:
            traceback.print_exc()
            said = "the engine could not read this request (a bug; see its log)"
            failed = Failed(request_id, EngineFault.code or "", said)
        self._pipe.send([failed])


class Engine:
    """Everything that one loaded model consists of, in the order in which it is built and torn down."""

    def __init__(self, pipe: Pipe[ToChild], load: Load) -> None:
        begun = time.monotonic()
        self._reported = -1.0
        self._pipe = pipe
        self.library = Library()
        path = Path(load.path)
        self.model = Model(self.library, path, gpu_layers=load.gpu_layers, on_progress=self._progress)
        source = self.model.chat_template or DEFAULT_CHATML
        vocabulary = self.model.vocabulary
        template = ChatTemplate(source, bos=_text(self.model, vocabulary.bos), eos=_text(self.model, vocabulary.eos))
        self.context = Context(self.library, self.model, self._shape(load))
        self.intake = Intake(vocabulary, template, source, context_tokens=self.context.shape.context_tokens)
        self._digest = fingerprint(path)
        self._files = StateFiles(Path(load.state_directory) if load.state_directory else None, self._depends_on(load))
        threads, self._steps = self._measured(load)
        candidates = thread_candidates(load.cores) if load.threads == 0 else [load.threads]
        self.threads = ThreadChoice(decode=threads.decode, prompt=threads.prefill, candidates=candidates)
        self.scheduler = self._scheduler(load)
        self._kept = KeptPrefixes(self.context, self.scheduler.cache, self._files, load, self._recompute_s)
        self.inbox: queue.SimpleQueue[InboxItem] = queue.SimpleQueue()
        self.loop = EngineLoop(
            self.context,
            self.scheduler,
            self.inbox,
            pipe.send,
            threads=self.threads,
            model=self._steps,
            heartbeat_s=load.heartbeat_s,
            at_end=self._leave,
        )
        pipe.send([Progress("preparing grammars", 1.0)])
        self.intake.grammars.warm()
        self.loop.beat()
        self._kept.pin(
            lambda prompt: self.intake.tokenize(prompt).tokens,
            lambda fraction: pipe.send([Progress("pinning prompts", fraction)]),
        )
        self._kept.recall()
        settle_collector()
        longest_s = self._steps.prompt_s(load.pass_tokens, 0)
        pipe.send([Loaded(self._facts(load, path, source), time.monotonic() - begun, longest_s)])

    def _measured(self, load: Load) -> tuple[Threads, StepModel]:
        """Threads and step times: as kept from the last start if they still hold, else measured."""
        if (kept := self._files.read_steps()) is not None:
            table, threads = kept
            self._pipe.send([Progress("checking step times", 1.0)])
            # Behind others a check says how busy they are, not how long passes take; and nothing is promised by them.
            holds = load.background or StepGauge(self.context, threads).confirms(table)
            if load.threads in (0, threads.decode) and holds:
                return threads, StepModel(table)
        self._pipe.send([Progress("measuring threads", 1.0)])
        chunk = min(CALIBRATION_CHUNK, load.pass_tokens, self.context.shape.context_tokens)
        fixed = Threads(load.threads, load.threads)
        threads = fixed if load.threads else choose_threads(self.context, load.cores, chunk)
        self._pipe.send([Progress("measuring step times", 1.0)])
        table = StepGauge(self.context, threads).measure()
        self._files.write_steps(table, threads)
        self._files.complain("the next start measures anew")
        return threads, StepModel(table)

    def _scheduler(self, load: Load) -> Scheduler:
        copies = self.model.copies_sequences
        return Scheduler(
            slots=load.slots,
            steps=self._steps,
            cache=PrefixCache(cap_bytes=load.cache_bytes, isolated=load.isolate_keys, enabled=copies),
            targets=self._targets(load),
            chunk_tokens=self.context.shape.chunk_tokens,
            copies_sequences=copies,
            cell_bytes=self.context.cell_bytes,
        )

    @staticmethod
    def _targets(load: Load) -> Targets:
        return Targets(load.ttft_target_s, load.itl_target_s, load.promises)

    def _depends_on(self, load: Load) -> list[str]:
        # Versions of one model, in which training changed a few tensors, have the same size, first and last MiB.
        file = f"{self._digest} {Path(load.path).stat().st_mtime_ns}"
        shape = repr(self.context.shape)
        return [file, self.library.system, processor(), str(load.gpu_layers), shape, str(load.threads)]

    def _recompute_s(self, tokens: int) -> float:
        return self._steps.whole_prompt_s(tokens, 0, self.context.rows_limit, safe=False)

    def _leave(self) -> None:
        """Write down what the next start can use."""
        used = Threads(self.threads.of("decode"), self.threads.of("prompt"))
        self._files.write_steps(self._steps.corrected(), used)
        self._kept.write_down()

    # --- facts --------------------------------------------------------------------------------------------------------

    def _progress(self, fraction: float) -> None:
        if fraction - self._reported >= 0.01 or fraction >= 1.0:
            self._reported = fraction
            self._pipe.send([Progress("reading the weights", fraction)])

    def _shape(self, load: Load) -> ContextShape:
        return ContextShape(
            slots=load.slots,
            context_tokens=load.context_tokens,
            chunk_tokens=min(load.pass_tokens, load.context_tokens),
            threads=load.threads or load.cores,
            unified=load.kv_layout == "unified",
            kv_type=load.kv_type,
            flash_attention=load.flash_attention,
        )

    def _facts(self, load: Load, path: Path, source: str) -> ModelFacts:
        shape = self.context.shape
        offloaded = self.library.offloads and load.gpu_layers != 0
        capacity = self.scheduler.capacity(shape.context_tokens)
        return ModelFacts(
            name=path.stem,
            description=self.model.description,
            digest=self._digest,
            parameters=self.model.parameters,
            model_bytes=self.model.size_bytes,
            vocabulary=self.model.vocabulary.size,
            context_tokens=shape.context_tokens,
            train_context_tokens=self.model.train_context_tokens,
            slots=shape.slots,
            threads=self.threads.of("decode"),
            prefill_threads=self.threads.of("prompt"),
            device="GPU" if offloaded else "CPU",
            kv_bytes=self.context.kv_bytes,
            compute_bytes=self.context.compute_bytes,
            admits_tokens=capacity.bounds.tokens,
            admits_streams=capacity.bounds.streams,
            prompt_s=capacity.prompt_s,
            pass_s=capacity.pass_s,
            caches_prefixes=self.scheduler.cache.enabled,
            chat_template=source,
            library=self.library.system,
        )

    def close(self) -> None:
        """Free native memory in order."""
        self.context.close()
        self.model.close()


def _told(request: Request, prompt: Tokens, verdict: Verdict) -> Offer | Declined:
    ttft_s = verdict.late_s if verdict.reason else verdict.ttft_s
    outlook = Outlook(request.admitted, verdict.reason, ttft_s, verdict.cached_tokens)
    count = len(prompt.tokens)
    if verdict.declined:
        return Declined(request.id, count, outlook, verdict.hopeless)
    return Offer(request.id, count, prompt.reasoning_open, outlook)


def _text(model: Model, token: int) -> str:
    return model.vocabulary.marked_piece(token).decode("utf-8", "replace") if token >= 0 else ""


def serve(pipe: Pipe[ToChild], load: Load) -> int:
    """Load and run until Quit. Returns the exit status."""
    try:
        engine = Engine(pipe, load)
    except EdgeError as error:
        pipe.send([LoadFailed(error.code or "", error.message)])
        return EXIT_LOAD_FAILED
    except MemoryError:
        pipe.send([LoadFailed(DoesNotFit.code or "", "memory is exhausted")])
        return EXIT_LOAD_FAILED
    reader = Reader(pipe, engine.intake, engine.loop, engine.inbox)
    reader.start()
    try:
        engine.loop.run()
    except ForwardFailed as failure:
        print(f"engine: {failure}; the context is lost, the process ends", file=sys.stderr, flush=True)
        return EXIT_NO_MEMORY if failure.no_memory else EXIT_ENGINE_BROKEN
    except MemoryError:
        print("engine: memory is exhausted, the process ends", file=sys.stderr, flush=True)
        return EXIT_NO_MEMORY
    engine.close()
    return 0


def main(arguments: list[str]) -> int:
    """Entry point of the child."""
    end_with_parent()
    yield_soon()
    pipe = Pipe(int(arguments[0]), to_child)
    first = next(iter(pipe.receive()), None)
    if not isinstance(first, Load):
        return 0
    if first.background:
        step_back()
    return serve(pipe, first)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        os._exit(main(sys.argv[1:]))
