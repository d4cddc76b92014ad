"""What a person sees of a run on the terminal: a bar while it lasts, a table afterwards."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from edge.bench.report import Judged, Report, Result

_NAME_WIDTH = 21
_GOOD_SHARE = 0.99


class ProgressBar:
    """A bar on a terminal, and nothing elsewhere. It is drawn when told, not by a thread of its own."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def progress(self, done: float, doing: str) -> None:
        """Draw it anew."""
        self._bar.update(self._task, completed=done, description=doing)
        self._bar.refresh()


def show(report: Report, console: Console) -> None:
    """Print the tables, and what a reader must know to trust them."""
    for target in report.targets:
        left_out = f" (refused, so left out: {', '.join(target.dropped_fields)})" if target.dropped_fields else ""
        console.print(Text(f"{target.name}: {target.model} at {target.url}{left_out}"))
    slo = report.slo
    console.print(_table(report, f"Goodput: TTFT <= {slo['ttft_ms']:g} ms and inter-token p99 <= {slo['itl_ms']:g} ms"))
    if any(result.admitted for result in report.results):
        console.print(_admitted(report))
    for line in notes(report):
        console.print(Text(line))


def _table(report: Report, title: str) -> Table:
    table = _new(title, "load", "server")
    for heading in (
        "sent/s",
        "good/s",
        "good",
        "TTFT p50",
        "p90",
        "p99",
        "ITL p50",
        "p99",
        "max",
        "tok/s",
        "429",
        "err",
    ):
        table.add_column(heading, justify="right")
    for at, result in enumerate(report.results):
        refused, failed = failures(result)
        table.add_row(
            result.load,
            result.target,
            f"{result.offered_rps:.2f}",
            Text(f"{result.goodput_rps:.2f}", style="bold"),
            _share(result.all),
            *_latencies(result.all),
            f"{result.tokens_per_s:.0f}",
            str(refused or "-"),
            str(failed or "-"),
            end_section=_last_of_level(report, at),
        )
    return table


def _admitted(report: Report) -> Table:
    table = _new("Of these, the requests that the server admitted within its SLO (X-Edge-Class: slo)", "load", "server")
    for heading in ("admitted", "good", "TTFT p50", "p90", "p99", "ITL p50", "p99", "max"):
        table.add_column(heading, justify="right")
    for at, result in enumerate(report.results):
        if result.admitted is not None:
            table.add_row(
                result.load,
                result.target,
                str(result.admitted.requests),
                _share(result.admitted),
                *_latencies(result.admitted),
                end_section=_last_of_level(report, at),
            )
    return table


def _new(title: str, *left: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )
    for heading in left:
        table.add_column(heading, max_width=_NAME_WIDTH, no_wrap=True)
    return table


def _last_of_level(report: Report, at: int) -> bool:
    return at + 1 < len(report.results) and report.results[at + 1].load != report.results[at].load


def _share(judged: Judged) -> Text:
    if judged.good_share is None:
        return Text("-")
    colour = "green" if judged.good_share >= _GOOD_SHARE else "yellow" if judged.good else "red"
    return Text(f"{judged.good_share:.0%}", style=colour)


def _latencies(judged: Judged) -> tuple[str, ...]:
    ttft, itl = judged.ttft, judged.itl
    return tuple(
        milliseconds(value) for value in (ttft.p50_ms, ttft.p90_ms, ttft.p99_ms, itl.p50_ms, itl.p99_ms, itl.max_ms)
    )


def milliseconds(value: float | None) -> str:
    """Short: 4.2, 42, 4200, or a dash."""
    return "-" if value is None else f"{value:.1f}" if value < 10 else f"{value:.0f}"


def failures(result: Result) -> tuple[int, int]:
    """Requests that the server refused, and those that failed in another way: errors, time-outs, not sent at all."""
    refused = result.statuses.get("refused", 0)
    return refused, sum(result.statuses.values()) - refused - result.statuses.get("ok", 0)


def notes(report: Report) -> list[str]:
    """Sentences that tables and the page end with."""
    noise = report.noise
    after = "" if noise.after_ms is None else f" before and {noise.after_ms:.1f} ms after"
    lines = [f"Times in ms. This machine alone held a spinning loop up for {noise.before_ms:.1f} ms{after}."]
    late = max((result.largest_send_delay_ms for result in report.results), default=0.0)
    lines.append(f"The latest request was sent {late:.1f} ms after it was due.")
    if "seed" in report.workload:
        lines.append(f"The same requests again: --seed {report.workload['seed']} (a caching server will know them).")
    if report.interrupted:
        lines.append(f"Not complete: {report.interrupted}; the last level holds what had ended by then.")
    for result in report.results:
        lines += [f"{result.target}, {result.load}, {example}" for example in result.error_examples]
        if unsent := result.statuses.get("unsent", 0):
            lines.append(f"{result.target}, {result.load}: {unsent} not sent, since --max-in-flight were under way")
        if timeouts := result.statuses.get("timeout", 0):
            lines.append(f"{result.target}, {result.load}: {timeouts} took longer than --timeout")
    return lines
