"""The written file beside its source: how far its predictions are, and how many cases of a task each gets right.

Both models are loaded. The source is mapped, so that the kernel can drop its pages where memory is short; the result is loaded as
a node would load it, with its tensors repacked. They read a text in step, pass by pass, so that no more than one pass's logits
are held of either, whatever the vocabulary and the length of the text.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from edge.dialects.reasoning import detect_reasoning, prompt_opens_reasoning
from edge.dialects.template import DEFAULT_CHATML, ChatTemplate, TemplateError
from edge.dialects.tools import detect_tool_format, visible_tokens
from edge.engine.calibrate import CALIBRATION_CHUNK, Threads, choose_threads
from edge.engine.llama.context import Context, ContextShape, ForwardFailed
from edge.engine.llama.greedy import Greedy
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model
from edge.engine.llama.reading import ReadingContext
from edge.errors import ConfigurationError, EngineFault
from edge.quantize.divergence import DistanceMeter
from edge.quantize.job import Job
from edge.quantize.report import Accuracy, Divergence, Score
from edge.quantize.task import Case, Dialect, Task, read_task, right
from edge.quantize.text import CHUNK_TOKENS, LEAD_TOKENS, LEAST_TOKENS, chunks, without


class Comparison:
    """Source and result of one job, loaded. Raises EdgeError."""

    def __init__(self, job: Job, library: Library, on_step: Callable[[str, float], None]) -> None:
        self._job, self._library, self._on_step = job, library, on_step
        on_step("loading both", 0.0)
        self._source = Model(library, Path(job.source), gpu_layers=0, mapped=True)
        self._result = Model(library, Path(job.target), gpu_layers=0)
        self._task = read_task(Path(job.cases)) if job.cases else None
        self._prompts = Prompts(self._source)
        self._threads = threads_for(job, library, self._source)

    def close(self) -> None:
        """Free both."""
        self._result.close()
        self._source.close()

    def divergence(self) -> Divergence:
        """Over the job's text; where that is none, over the task's dialogues."""
        name, text = self._job.evaluation_name, self._job.evaluation
        if not text and self._task is not None:
            name, text = f"the dialogues of {self._task.name}", self._prompts.dialogues(self._task)
            text = without(text, self._job.calibration) if self._job.importance else text
        words = self._source.vocabulary
        size = min(CHUNK_TOKENS, self._source.train_context_tokens or CHUNK_TOKENS)
        tokens = words.tokenize(text, add_special=False, parse_special=True)
        start = [words.bos] if words.adds_bos else []
        pieces = list(chunks(tokens, size=size, most_tokens=self._job.most_tokens, start=start))
        meter = DistanceMeter()
        with closing(self._reader(self._source, size)) as ours, closing(self._reader(self._result, size)) as theirs:
            for number, piece in enumerate(pieces):
                self._on_step("comparing", number / len(pieces))
                _compare(ours, theirs, piece, meter)
        if meter.tokens < LEAST_TOKENS:
            raise ConfigurationError(
                f"{name} is too short to measure on: {meter.tokens} tokens to judge, at least {LEAST_TOKENS} are needed; "
                "give a longer one with --text"
            )
        distance = meter.distance()
        figures = {key: _rounded(value) for key, value in asdict(distance).items() if key != "tokens"}
        ratio = _rounded(distance.perplexity_ratio)
        return Divergence(text=name, tokens=distance.tokens, perplexity_ratio=ratio, **figures)

    def _reader(self, model: Model, size: int) -> ReadingContext:
        return ReadingContext(self._library, model, context_tokens=size, threads=self._threads.prefill)

    def accuracy(self) -> Accuracy | None:
        """Greedy answers of both to every case; None if there is no task. Raises ConfigurationError for cases that do not fit."""
        task = self._task
        if task is None:
            return None
        prompts = [self._prompts.prompt(task, case, number) for number, case in enumerate(task.cases)]
        longest = max(len(tokens) for _, tokens in prompts)
        room = self._source.train_context_tokens
        if longest >= room:
            raise ConfigurationError(
                f"a case of {task.name} has {longest} tokens; the model was trained to {room}: shorten it"
            )
        total, groups = Score(), dict[str, Score]()
        verdicts = [
            self._verdicts(model, task, prompts, min(room, longest + task.most_tokens), (turn, 2))
            for turn, model in enumerate((self._source, self._result))
        ]
        for case, ours, theirs in zip(task.cases, *verdicts, strict=True):
            for score in (total, groups.setdefault(case.group, Score())):
                score.cases += 1
                score.source_right += ours
                score.result_right += theirs
        return Accuracy(task.name, total, groups)

    def _verdicts(
        self, model: Model, task: Task, prompts: list[tuple[str, list[int]]], room: int, turn: tuple[int, int]
    ) -> list[bool]:
        dialect, found = self._prompts.dialect, list[bool]()
        visible = visible_tokens(dialect.tools) if dialect.tools is not None else ()
        greedy = Greedy(self._library, model, context_tokens=room, threads=self._threads.decode, visible=visible)
        with closing(greedy):
            for number, (case, (text, tokens)) in enumerate(zip(task.cases, prompts, strict=True)):
                self._on_step("answering the task's cases", (turn[0] + number / len(prompts)) / turn[1])
                opened = dialect.reasoning is not None and prompt_opens_reasoning(text, dialect.reasoning)
                answer = greedy.answer(tokens, task.most_tokens)
                offered = frozenset(case.tools)
                found.append(right(case.messages[-1], answer, dialect=dialect, offered=offered, reasoning_open=opened))
        return found


def threads_for(job: Job, library: Library, model: Model) -> Threads:
    """As many as were asked for; else as many as pay on this machine now, measured as a node does it (docs/adr/0002)."""
    if not job.threads_free:
        return Threads(job.threads, job.threads)
    shape = ContextShape(
        slots=1,
        context_tokens=CALIBRATION_CHUNK,
        chunk_tokens=CALIBRATION_CHUNK,
        threads=job.threads,
        unified=False,
        kv_type="f16",
        flash_attention="auto",
    )
    with closing(Context(library, model, shape)) as context:
        return choose_threads(context, job.threads, CALIBRATION_CHUNK)


class Prompts:
    """Cases as the model's own chat template writes them."""

    def __init__(self, model: Model) -> None:
        self._words = model.vocabulary
        source = model.chat_template or DEFAULT_CHATML
        self._bos = self._marked(self._words.bos)
        self.dialect = Dialect(detect_tool_format(source), detect_reasoning(source))
        self._template: ChatTemplate | str = source

    def _marked(self, token: int) -> str:
        return self._words.marked_piece(token).decode("utf-8", "replace") if token >= 0 else ""

    def prompt(self, task: Task, case: Case, number: int) -> tuple[str, list[int]]:
        """Text and tokens up to where the answer begins."""
        text = self._render(task, case, number, whole=False)
        add = not (self._bos and text.startswith(self._bos))
        return text, self._words.tokenize(text, add_special=add, parse_special=True)

    def dialogues(self, task: Task) -> str:
        """All cases with their right answers."""
        return "".join(self._render(task, case, number, whole=True) for number, case in enumerate(task.cases))

    def _render(self, task: Task, case: Case, number: int, *, whole: bool) -> str:
        try:
            if isinstance(self._template, str):  # compiled when first needed: many quantizations have no task
                self._template = ChatTemplate(self._template, bos=self._bos, eos=self._marked(self._words.eos))
            return self._template.render(
                case.messages if whole else case.messages[:-1],
                tools=task.offered(case) or None,
                add_generation_prompt=not whole,
            )
        except TemplateError as error:
            raise ConfigurationError(
                f"{task.name}, case {number}: the model's chat template refuses it: {error}"
            ) from None


def _compare(ours: ReadingContext, theirs: ReadingContext, piece: list[int], meter: DistanceMeter) -> None:
    try:
        for positions, _ in zip(ours.read(piece), theirs.read(piece), strict=True):
            for position in positions:
                if LEAD_TOKENS <= position < len(piece) - 1:
                    meter.add(ours.logits(position), theirs.logits(position), piece[position + 1])
    except ForwardFailed as error:
        raise EngineFault(f"one of the files cannot be computed: {error}") from None


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
