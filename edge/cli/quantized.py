"""What `edge quantize` says when it is done."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from edge import quantities
from edge.quantize.kinds import KINDS, ONNX_KINDS
from edge.quantize.report import Agreement, FellBack, File, Report


def show(report: Report) -> None:
    """The report as lines for people."""
    out = Console(soft_wrap=True, highlight=False)
    out.print(_files(report))
    out.print()
    lines = _onnx(report) if report.kind in ONNX_KINDS else _gguf(report)
    for label, line in (*lines, ("took", _times(report))):
        out.print(f"{label:13} {line}", markup=False)


def _gguf(report: Report) -> list[tuple[str, str]]:
    return [("fell back", _fell_back(report.fell_back)), ("importance", _importance(report)), *_comparison(report)]


def _onnx(report: Report) -> list[tuple[str, str]]:
    lines = []
    if (a := report.agreement) is not None:
        read = (
            f"{a.sentences} queries with {a.candidates} candidates each" if a.candidates else f"{a.sentences} sentences"
        )
        reader = f"tokens by {a.tokenizer}" if a.tokenizer else "for want of a tokenizer.json beside the model"
        lines += [("text", f"{read} of {a.text}, {reader}"), ("output", a.output), *_agreement(a)]
    if (t := report.latency) is not None:
        lines.append(
            (
                "one sentence",
                f"{t.source_ms:.1f} -> {t.result_ms:.1f} ms ({t.tokens} tokens, "
                f"{quantities.count(t.threads, 'thread')} of the CPU; median of {t.runs})",
            )
        )
    return lines


def _agreement(a: Agreement) -> list[tuple[str, str]]:
    lines = []
    if a.cosine_mean is not None:
        lines.append(("cosine", f"mean {a.cosine_mean:.4f}, p1 {a.cosine_p1:.4f}, least {a.cosine_min:.4f}"))
    if a.top1_agreement is not None:
        lines.append(("same top one", f"{a.top1_agreement:.1%}"))
    if a.score_error is not None:
        lines.append(("scores moved", f"by {a.score_error:.3f} of their spread (root mean square)"))
    return lines


def _files(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("", "left"), ("size", "right"), ("bits a weight", "right"), ("tensors", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for name, file in (("source", report.source), (report.kind, report.result)):
        table.add_row(name, quantities.size(file.bytes), f"{file.bits_per_weight:.2f}", _tensors(file))
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
    return f"{quantities.count(len(tensors), 'tensor')}, whose rows of {rows} weights are no multiple of the block: {shown}"


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
    onnx = ONNX_KINDS.get(report.kind)
    first = f"importance {seconds.importance:.1f} s, "
    if onnx is not None:
        first = f"calibration {seconds.calibration:.1f} s, " if onnx.calibrated else ""
    return f"{first}writing {seconds.quantize:.1f} s, comparing {seconds.report:.1f} s"
