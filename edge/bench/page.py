"""A report as one self-contained page: no script, no address to load from; the plots are SVG in the page itself."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from edge.bench.report import Judged, Latency, Report, Result
from edge.bench.svg import Axis, Rule, Series, linear, mark, plot, round_down, round_up
from edge.bench.view import failures, milliseconds, notes

_LEAST_MS = 0.1  # events that came in one piece have a gap of nothing, which a logarithmic axis cannot show
_X_LABELS = {
    "rate": "offered load, requests per second",
    "concurrency": "requests at a time",
    "trace": "offered load, requests per second",
}


def page(report: Report) -> str:
    """The HTML of a report."""
    environment = Environment(
        loader=PackageLoader("edge.bench", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["ms"] = milliseconds
    by_load = list(dict.fromkeys(result.load for result in report.results))
    return environment.get_template("page.html").render(
        report=report,
        headline=headlines(report),
        legend=[(target.name, Markup(_key(at))) for at, target in enumerate(report.targets)],
        load_plots=[(title, Markup(svg)) for title, svg in _load_plots(report)],
        levels=[(load, [(title, Markup(svg)) for title, svg in _distributions(report, load)]) for load in by_load],
        failures=failures,
        notes=notes(report),
    )


def headlines(report: Report) -> list[str]:
    """For each server its best goodput, in a sentence."""
    sentences = []
    for target in report.targets:
        own = [result for result in report.results if result.target == target.name]
        if not own:
            continue
        best = max(own, key=lambda result: result.goodput_rps)
        share = "" if best.all.good_share is None else f" ({best.all.good_share:.0%} of what was sent)"
        sentences.append(
            f"{target.name}: {best.goodput_rps:.2f} good requests a second at best, with {best.load}{share}"
        )
    return sentences


def _key(style: int) -> str:
    line = f'<path class="line s{style}" d="M1 7H33"/>'
    return f'<svg class="key" viewBox="0 0 34 14" aria-hidden="true">{line}{mark(style, 17, 7)}</svg>'


def _load_x(result: Result) -> float:
    return result.load_value if result.load_kind == "concurrency" else result.offered_rps


def _load_plots(report: Report) -> list[tuple[str, str]]:
    """Goodput, the share that is good, and the two latencies' p99, against load."""
    if not report.results:
        return []
    kind = report.results[0].load_kind
    ideal = kind != "concurrency"
    x = linear(_X_LABELS[kind], max(_load_x(result) for result in report.results))
    most_rps = x.high if ideal else max(result.goodput_rps for result in report.results)
    goodput = plot(
        "Goodput against load",
        x,
        linear("good requests per second", most_rps),
        _against_load(report, lambda result: result.goodput_rps),
        diagonal="ideal: every request in time" if ideal else "",
    )
    good_share = plot(
        "Share of good requests against load",
        x,
        Axis("share of all requests", 0.0, 1.0, percent=True),
        _against_load(report, lambda result: result.all.good_share),
    )
    return [
        ("Goodput", goodput),
        ("Good requests", good_share),
        ("TTFT p99", _p99_plot(report, x, "TTFT p99, ms", report.slo["ttft_ms"], lambda r: r.all.ttft.p99_ms)),
        ("Inter-token p99", _p99_plot(report, x, "ITL p99, ms", report.slo["itl_ms"], lambda r: r.all.itl.p99_ms)),
    ]


def _against_load(report: Report, value: Callable[[Result], float | None]) -> list[Series]:
    series = []
    for style, target in enumerate(report.targets):
        own = [
            (_load_x(r), found) for r in report.results if r.target == target.name and (found := value(r)) is not None
        ]
        series.append(Series(target.name, style, sorted(own)))
    return series


def _p99_plot(report: Report, x: Axis, label: str, slo_ms: float, value: Callable[[Result], float | None]) -> str:
    series = _against_load(report, value)
    y = _log_axis(label, [y for one in series for _, y in one.points], slo_ms)
    return plot(label, x, y, series, [Rule(slo_ms, f"SLO {slo_ms:g} ms", upright=False)])


def _log_axis(label: str, values_ms: list[float], slo_ms: float) -> Axis:
    seen = [*(max(value, _LEAST_MS) for value in values_ms), slo_ms]
    return Axis(label, max(_LEAST_MS, round_down(min(seen) * 0.8)), round_up(max(*seen, 2 * _LEAST_MS) * 1.2), log=True)


def _distributions(report: Report, load: str) -> list[tuple[str, str]]:
    """TTFT and inter-token gaps of all servers at one level, as cumulative shares."""
    results = [result for result in report.results if result.load == load]
    return [
        ("TTFT", _cdf_plot(report, results, "TTFT, ms", report.slo["ttft_ms"], lambda judged: judged.ttft)),
        ("Gaps between tokens", _cdf_plot(report, results, "gap, ms", report.slo["itl_ms"], lambda judged: judged.itl)),
    ]


def _cdf_plot(
    report: Report, results: list[Result], label: str, slo_ms: float, pick: Callable[[Judged], Latency]
) -> str:
    styles = {target.name: style for style, target in enumerate(report.targets)}
    series = [Series(r.target, styles[r.target], pick(r.all).cdf, steps=True) for r in results]
    x = _log_axis(label, [value for one in series for value, _ in one.points], slo_ms)
    y = Axis("share of all up to this", 0.0, 1.0, percent=True)
    return plot(label, x, y, series, [Rule(slo_ms, f"SLO {slo_ms:g} ms")])
