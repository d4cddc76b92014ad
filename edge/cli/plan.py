"""`edge plan`: how a model would be laid out in this machine's memory, and what it could promise, without serving it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from edge import quantities
from edge.cli import words
from edge.cli.flags import setting_flags
from edge.cli.numbers import memory_size
from edge.effective import Effective

if TYPE_CHECKING:
    from edge.fitting import Planned
    from edge.memory.layout import Budget, Plan
    from edge.messages import ModelFacts
    from edge.plan import Answer

_MIB = 1 << 20


@click.command()
@click.argument("wanted", metavar="[MODEL]", required=False)
@click.option(
    "--memory",
    callback=memory_size,
    metavar="SIZE",
    help="Plan for so much memory, such as 6GiB: the GPU's where it has its own [default: what is free].",
)
@click.option("--slots", type=click.IntRange(1, 128), help="Answers at a time [default: as many as fit, at most 8].")
@click.option("--context", type=click.IntRange(64), help="Tokens of one request [default: as many as fit].")
@click.option("--measure", is_flag=True, help="Load it too, measure it, and say what a node would promise with it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@setting_flags
def command(
    effective: Effective,
    wanted: str | None,
    memory: int | None,
    slots: int | None,
    context: int | None,
    measure: bool,
    as_json: bool,
) -> None:
    """Say how a model would be laid out in memory, from its header alone: what goes where, how long a request may be, how many
    answers run at a time. MODEL is a known name, a path, or a file elsewhere (https://..., hf:OWNER/REPO:QUANT), of
    which the header alone is fetched; without it, the one that `edge serve` would serve.

    Ends with 1 if nothing fits, and says what would. Figures of --measure hold for an otherwise idle machine, and are on the
    safe side.
    """
    from edge.plan import plan

    effective = _with(effective, wanted, slots, context)
    quiet = Console(stderr=True)
    with quiet.status("starting ...") as status:

        def checking(path: Path, _: int) -> None:
            status.update(f"checking {path} (once for each file) ...")

        def loading(stage: str, share: float) -> None:
            status.update(f"{stage} {share:.0%}")

        answer = plan(effective, memory, checking, loading if measure else None)
    if as_json:
        click.echo(json.dumps(_object(answer, effective), indent=1))
    else:
        _print(answer, effective)


def _with(effective: Effective, model: str | None, slots: int | None, context: int | None) -> Effective:
    settings = effective.settings
    engine = settings.engine.model_copy(
        update={k: v for k, v in (("slots", slots), ("context_tokens", context)) if v is not None}
    )
    name = settings.model.model_copy(update={} if model is None else {"name": model})
    return replace(effective, settings=settings.model_copy(update={"engine": engine, "model": name}))


def _print(answer: Answer, effective: Effective) -> None:
    out = Console(soft_wrap=True, highlight=False)
    planned = answer.planned
    lines = [
        ("model", f"{answer.model.name}: {words.of_header(answer.model, answer.where)}"),
        ("room", _room(answer)),
        ("plan", _layout(planned.plan, planned.layers)),
    ]
    trained = answer.model.header.context_tokens
    if 0 < trained < planned.plan.layout.context_tokens:
        lines.append(("but", f"the model was trained to {trained:,} tokens: answers beyond that get worse"))
    if planned.budget.device_bytes is not None and planned.plan.layout.gpu_layers < planned.layers:
        lines.append(
            ("but", "the processor computes the layers that are not on the GPU, so that each token takes longer")
        )
    for label, text in lines:
        out.print(f"{label:8} {text}", markup=False)
    out.print()
    out.print(_parts(planned))
    if planned.others:
        out.print()
        for other in planned.others:
            out.print(f"or       {_layout(other, planned.layers)}: {quantities.mib(other.total_bytes)}", markup=False)
    if answer.promise is not None:
        out.print()
        _print_promise(out, answer, effective)


def _room(answer: Answer) -> str:
    planned = answer.planned
    kept = (
        f"; {quantities.mib(planned.kept_bytes)} more are kept for the models under [models]"
        if planned.kept_bytes
        else ""
    )
    return f"{_granted(planned.budget)}{kept}"


def _granted(budget: Budget) -> str:
    main = f"{quantities.mib(budget.host_bytes)} of main memory (by {budget.source})"
    if budget.device_bytes is None:
        return main
    if budget.unified:
        return f"{main}, which {budget.device} uses too"
    return f"{quantities.mib(budget.device_bytes)} on {budget.device}, {main}"


def _layout(plan: Plan, layers: int) -> str:
    layout = plan.layout
    there = f", {layout.gpu_layers} of {layers} layers on the GPU" if layout.gpu_layers else ""
    return (
        f"{quantities.count(layout.slots, 'answer')} at a time, {layout.context_tokens:,} tokens each, attention memory in "
        f"{layout.kv_type}, passes of up to {layout.pass_tokens} tokens{there}"
    )


_SAID = {
    "weights": "weights",
    "attention": "attention memory (KV cells)",
    "compute": "working memory of a pass",
    "prefixes": "saved beginnings of prompts, at most",
    "process": "process, vocabulary, tables",
}


def _parts(planned: Planned) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    device = planned.budget.device_bytes is not None
    table.add_column("what")
    table.add_column("main memory", justify="right")
    if device:
        table.add_column("GPU", justify="right")
    plan = planned.plan
    rows = [(_SAID[p.name], p.host_bytes, p.device_bytes) for p in plan.parts]
    for what, host, card in (*rows, ("all together", plan.host_bytes, plan.device_bytes)):
        table.add_row(what, quantities.mib(host), *([quantities.mib(card)] if device else []))
    return table


def _print_promise(out: Console, answer: Answer, effective: Effective) -> None:
    assert answer.promise is not None
    slo, facts = effective.settings.slo, answer.promise.facts
    promises = effective.settings.admission.mode != "off"
    for label, text in (
        ("runs on", words.runs_on(facts)),
        (
            "memory",
            f"{words.native_memory(facts)}; the engine's process holds {quantities.size(answer.promise.engine_bytes)}",
        ),
        ("promise", words.promise(facts, slo.ttft_ms, slo.itl_ms, promises=promises)),
    ):
        out.print(f"{label:8} {text}", markup=False)
    out.print()
    out.print(_table("new prompt, tokens", "read in, ms", facts.prompt_s))
    out.print(_table("answers at a time, at half of the context", "a token each, ms", facts.pass_s))


def _table(rows: str, times: str, pairs: list[tuple[int, float]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(rows, justify="right", min_width=len(rows))
    table.add_column(times, justify="right", min_width=len(times))
    for number, seconds in pairs:
        table.add_row(f"{number:,}", f"{seconds * 1000:,.1f}")
    return table


def _object(answer: Answer, effective: Effective) -> dict[str, Any]:
    """For programs. Sizes in bytes, times in milliseconds."""
    planned, header = answer.planned, answer.model.header
    budget = planned.budget
    return {
        "model": answer.model.name,
        "file": answer.where,
        "parameters": header.parameters,
        "quantization": header.quantization,
        "trained_context_tokens": header.context_tokens,
        "room": {
            "host_bytes": budget.host_bytes,
            "device_bytes": budget.device_bytes,
            "device": budget.device,
            "unified": budget.unified,
            "source": budget.source,
            "kept_for_others_bytes": planned.kept_bytes,
        },
        "layers": planned.layers,
        "plan": _plan_object(planned.plan),
        "others": [_plan_object(other) for other in planned.others],
        "measured": None if answer.promise is None else _promise_object(answer.promise.facts, answer, effective),
    }


def _plan_object(plan: Plan) -> dict[str, Any]:
    layout = plan.layout
    return {
        "slots": layout.slots,
        "context_tokens": layout.context_tokens,
        "kv_type": layout.kv_type,
        "pass_tokens": layout.pass_tokens,
        "gpu_layers": layout.gpu_layers,
        "host_bytes": plan.host_bytes,
        "device_bytes": plan.device_bytes,
        "parts": {p.name: {"host_bytes": p.host_bytes, "device_bytes": p.device_bytes} for p in plan.parts},
    }


def _promise_object(facts: ModelFacts, answer: Answer, effective: Effective) -> dict[str, Any]:
    assert answer.promise is not None
    slo = effective.settings.slo
    promises = effective.settings.admission.mode != "off"
    return {
        "device": facts.device,
        "threads": {"decode": facts.threads, "prompt": facts.prefill_threads},
        "slo": {"ttft_ms": slo.ttft_ms, "itl_ms": slo.itl_ms},
        "promises": promises and facts.admits_tokens > 0 and facts.admits_streams > 0,
        "admits": {"new_prompt_tokens": facts.admits_tokens, "answers": facts.admits_streams},
        "shares_prefixes": facts.caches_prefixes,
        "memory": {
            "weights_bytes": facts.model_bytes,
            "attention_bytes": facts.kv_bytes,
            "compute_bytes": facts.compute_bytes,
            "engine_process_bytes": answer.promise.engine_bytes,
        },
        "prompt_ms": [{"tokens": n, "ms": round(s * 1000, 3)} for n, s in facts.prompt_s],
        "pass_ms": [{"answers": n, "ms": round(s * 1000, 3)} for n, s in facts.pass_s],
    }
