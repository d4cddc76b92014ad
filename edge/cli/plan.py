"""`edge plan`: what a model on this machine can promise, without serving it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from edge.cli import words
from edge.cli.flags import setting_flags
from edge.effective import Effective

if TYPE_CHECKING:
    from edge.plan import Planned


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@setting_flags
def command(effective: Effective, as_json: bool) -> None:
    """Load a model, measure it, and say what a node would promise with it: how long a new prompt may be, how many answers may
    run at a time, and how much memory it takes. Nothing is served.

    Figures hold for an otherwise idle machine, and are on the safe side.
    """
    from edge.plan import plan

    quiet = Console(stderr=True)
    with quiet.status("starting ...") as status:

        def checking(path: Path) -> None:
            status.update(f"checking {path} (once for each file) ...")

        planned = plan(effective, checking, lambda stage, share: status.update(f"{stage} {share:.0%}"))
    if as_json:
        click.echo(json.dumps(_object(planned), indent=1))
        return
    out = Console(soft_wrap=True, highlight=False)
    slo, facts = planned.slo, planned.facts
    for label, text in (
        ("model", f"{planned.model.name}: {words.what(planned.model, facts)}"),
        ("runs on", words.runs_on(facts)),
        ("memory", f"{words.native_memory(facts)}; the engine's process holds {words.size(planned.engine_bytes)}"),
        ("promise", words.promise(facts, slo.ttft_ms, slo.itl_ms, promises=planned.promises)),
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


def _object(planned: Planned) -> dict[str, Any]:
    """For programs. Sizes in bytes, times in milliseconds."""
    facts, slo = planned.facts, planned.slo
    return {
        "model": planned.model.name,
        "file": str(planned.model.path),
        "parameters": facts.parameters,
        "device": facts.device,
        "threads": {"decode": facts.threads, "prompt": facts.prefill_threads},
        "slots": facts.slots,
        "context_tokens": facts.context_tokens,
        "slo": {"ttft_ms": slo.ttft_ms, "itl_ms": slo.itl_ms},
        "promises": planned.promises and facts.admits_tokens > 0 and facts.admits_streams > 0,
        "admits": {"new_prompt_tokens": facts.admits_tokens, "answers": facts.admits_streams},
        "shares_prefixes": facts.caches_prefixes,
        "memory": {
            "weights_bytes": facts.model_bytes,
            "attention_bytes": facts.kv_bytes,
            "compute_bytes": facts.compute_bytes,
            "engine_process_bytes": planned.engine_bytes,
        },
        "prompt_ms": [{"tokens": n, "ms": round(s * 1000, 3)} for n, s in facts.prompt_s],
        "pass_ms": [{"answers": n, "ms": round(s * 1000, 3)} for n, s in facts.pass_s],
    }
