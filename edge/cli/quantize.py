"""`edge quantize`: a model in fewer bits, and what that cost."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import cast

import click
import msgspec
from rich.console import Console
from rich.table import Table

from edge.cli import words
from edge.effective import default_home
from edge.machine import usable_cores
from edge.quantize.kinds import KINDS, Choice
from edge.quantize.report import FellBack, File, Report
from edge.quantize.run import Wish, quantize
from edge.registry.resolve import Registry, model_directories

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("source", metavar="SRC", type=_FILE)
@click.argument("target", metavar="DST", type=_FILE)
@click.option(
    "--to",
    "kind",
    type=click.Choice(list(KINDS)),
    metavar="FORMAT",
    required=True,
    help=f"Number format to write: {', '.join(KINDS)}.",
)
@click.option(
    "--imatrix",
    type=click.Choice(["auto", "on", "off"]),
    metavar="WHEN",
    default="auto",
    help="Measure on a text which weights matter, and round the others more: auto (where the format gains by it), on, off "
    "[default: auto].",
)
@click.option(
    "--text",
    type=_FILE,
    help="Your own text: half of it calibrates, the other half is measured on [default: a text of the package, or the task's].",
)
@click.option("--calibration", type=_FILE, help="A text to calibrate with, so that all of --text is measured on.")
@click.option(
    "--manifest", type=_FILE, help="Manifest that names a task [default: the one whose name is the model's own]."
)
@click.option(
    "--tokens",
    type=click.IntRange(512),
    metavar="NUMBER",
    default=8192,
    help="Most tokens of either text [default: 8192].",
)
@click.option("--threads", type=click.IntRange(1, 512), metavar="NUMBER", help="Threads [default: all cores].")
@click.option("--force", is_flag=True, help="Replace DST if it exists.")
@click.option("--allow-requantize", is_flag=True, help="Accept a source that is quantized already.")
@click.option("--no-report", is_flag=True, help="Write only; do not compare.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
def command(
    source: Path,
    target: Path,
    kind: str,
    imatrix: str,
    text: Path | None,
    calibration: Path | None,
    manifest: Path | None,
    tokens: int,
    threads: int | None,
    force: bool,
    allow_requantize: bool,
    no_report: bool,
    as_json: bool,
) -> None:
    """Write the GGUF file SRC in fewer bits to DST, and say what that cost: size, how far the predictions moved (KL divergence,
    top-1 agreement, perplexity), and how many cases of the model's task still come out right.

    mxfp4 is for mixture-of-experts models only. DST appears when it is whole; SRC is not changed.
    """
    home = default_home(os.environ)
    wish = Wish(
        source=source.expanduser(),
        target=target.expanduser(),
        kind=kind,
        importance=cast(Choice, imatrix),
        text=text,
        calibration=calibration,
        manifest=manifest,
        most_tokens=tokens,
        threads=threads or usable_cores(),
        force=force,
        allow_requantize=allow_requantize,
        report=not no_report,
    )
    manifests = Registry(model_directories(home), home / "verified.json").manifests()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # tidied up after like Ctrl-C
    with Console(stderr=True).status("starting ...") as status:
        report = quantize(wish, manifests, lambda stage, share: status.update(f"{stage} {share:.0%}"))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(report), indent=1))
    else:
        _show(report)


def _show(report: Report) -> None:
    out = Console(soft_wrap=True, highlight=False)
    out.print(_files(report))
    out.print()
    lines = [("fell back", _fell_back(report.fell_back)), ("importance", _importance(report)), *_comparison(report)]
    for label, line in (*lines, ("took", _times(report))):
        out.print(f"{label:13} {line}", markup=False)


def _files(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("", "left"), ("size", "right"), ("bits a weight", "right"), ("tensors", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for name, file in (("source", report.source), (report.kind, report.result)):
        table.add_row(name, words.size(file.bytes), f"{file.bits_per_weight:.2f}", _tensors(file))
    table.add_row("", f"{report.result.bytes / report.source.bytes:.1%}")
    return table


def _tensors(file: File) -> str:
    return ", ".join(f"{count} {name}" for name, count in file.tensors.items())


def _fell_back(tensors: list[FellBack]) -> str:
    if not tensors:
        return "nothing: every tensor has the type that was meant for it"
    changes = Counter(f"{t.wanted} to {t.got}" for t in tensors)
    shown = ", ".join(f"{count} from {change}" for change, count in changes.items())
    rows = ", ".join(f"{n:,}" for n in sorted({t.row_weights for t in tensors}))
    return f"{words.count(len(tensors), 'tensor')}, whose rows of {rows} weights are no multiple of the block: {shown}"


def _importance(report: Report) -> str:
    used = report.importance
    if used is not None:
        return f"measured on {used.tokens:,} tokens of {used.text}, for {used.tensors} tensors"
    return "not measured" if KINDS[report.kind].takes_importance else f"not measured: {report.kind} does not use it"


def _comparison(report: Report) -> list[tuple[str, str]]:
    lines = []
    if (d := report.divergence) is not None:
        lines += [
            ("text", f"{d.text}, {d.tokens:,} tokens judged"),
            (
                "KL, nats",
                f"mean {d.kl_mean:.5f} (+- {d.kl_mean_error:.5f}), median {d.kl_median:.5f}, p99 {d.kl_p99:.4f}",
            ),
            ("same top token", f"{d.top1_agreement:.2%}"),
            (
                "perplexity",
                f"{d.source_perplexity:.5g} -> {d.result_perplexity:.5g}, {d.perplexity_ratio:.4f} times the source's",
            ),
        ]
    if (a := report.accuracy) is not None:
        cases = a.all.cases
        lines += [
            (
                "task",
                f"{a.task}: {a.all.source_right} -> {a.all.result_right} of {cases:,} right "
                f"({a.all.source_right / cases:.1%} -> {a.all.result_right / cases:.1%})",
            )
        ]
        width = max(map(len, a.groups))
        lines += [
            ("", f"  {name:{width}}  {s.source_right:4} -> {s.result_right:4} of {s.cases:4}")
            for name, s in a.groups.items()
        ]
    return lines


def _times(report: Report) -> str:
    seconds = report.seconds
    return f"importance {seconds.importance:.1f} s, writing {seconds.quantize:.1f} s, comparing {seconds.report:.1f} s"
