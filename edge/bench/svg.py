"""Plots as SVG text: lines and steps over linear or logarithmic axes. Colours come from the page's style sheet. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 48
_STEPS = (1, 2, 5)
_MOST_LOG_TICKS = 10

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Axis:
    """From `low` to `high`; a logarithmic one starts above 0."""

    label: str
    low: float
    high: float
    log: bool = False
    percent: bool = False

    def fraction(self, value: float) -> float:
        """Where a value lies, 0..1; what lies outside is moved to the end."""
        if self.log:
            value, low, high = (math.log(max(v, 1e-9)) for v in (value, self.low, self.high))
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self) -> list[float]:
        """Round values, five to ten of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = [step * 10.0**decade for decade in decades for step in _STEPS]
            inside = [value for value in every if self.low * 0.999 <= value <= self.high * 1.001]
            return inside if len(inside) <= _MOST_LOG_TICKS else [v for v in inside if math.log10(v) % 1 < 1e-6]
        step = round_up((self.high - self.low) / 6)
        return [self.low + step * n for n in range(int((self.high - self.low) / step + 1e-9) + 1)]

    def text(self, value: float) -> str:
        """A tick's label."""
        return f"{value:.0%}" if self.percent else f"{value:,.12g}" if value >= 1 else f"{value:.2g}"


@dataclass(frozen=True, slots=True)
class Series:
    """`style`: which of the page's colours and dashes. `steps` draws a distribution, else lines with a mark at each point."""

    name: str
    style: int
    points: Sequence[Point]
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """A straight line at `value` of the x axis (`upright`) or of the y axis."""

    value: float
    text: str
    upright: bool = True


def round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not below `value`."""
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in (*_STEPS, 10) if step * decade >= value * 0.999999)


def round_down(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ... that is not above `value`."""
    decade = 10.0 ** math.floor(math.log10(value))
    return next(step * decade for step in reversed(_STEPS) if step * decade <= value * 1.000001)


def linear(label: str, most: float) -> Axis:
    """An axis from 0 to the first tick that is not below `most`."""
    step = round_up((most or 1.0) / 5)
    return Axis(label, 0.0, step * math.ceil((most or 1.0) / step - 1e-9))


def plot(title: str, x: Axis, y: Axis, series: Sequence[Series], rules: Sequence[Rule] = (), diagonal: str = "") -> str:
    """A whole SVG element. `diagonal` is the label of the line y = x, which is not drawn without one."""
    frame = _Frame(x, y)
    body = [*_grid(frame)]
    if diagonal:
        body += _diagonal(frame, diagonal)
    for rule in rules:
        body += _rule(frame, rule)
    for one in series:
        body += _steps(frame, one) if one.steps else _line(frame, one)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">' + "".join(body) + "</svg>"


class _Frame:
    def __init__(self, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.left, self.right, self.top, self.bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM

    def across(self, value: float) -> float:
        return round(self.left + self.x.fraction(value) * (self.right - self.left), 1)

    def up(self, value: float) -> float:
        return round(self.bottom - self.y.fraction(value) * (self.bottom - self.top), 1)


def _grid(f: _Frame) -> Iterator[str]:
    for value in f.x.ticks():
        at = f.across(value)
        yield f'<path class="grid" d="M{at} {f.top}V{f.bottom}"/>'
        yield f'<text class="tick" x="{at}" y="{f.bottom + 17}" text-anchor="middle">{f.x.text(value)}</text>'
    for value in f.y.ticks():
        at = f.up(value)
        yield f'<path class="grid" d="M{f.left} {at}H{f.right}"/>'
        yield f'<text class="tick" x="{f.left - 7}" y="{at + 4}" text-anchor="end">{f.y.text(value)}</text>'
    middle = (f.left + f.right) / 2
    yield f'<path class="axis" d="M{f.left} {f.top}V{f.bottom}H{f.right}"/>'
    yield f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(f.x.label)}</text>'
    yield f'<text class="label" x="{f.left - 50}" y="{f.top - 14}">{escape(f.y.label)}</text>'


def _rule(f: _Frame, rule: Rule) -> Iterator[str]:
    text = escape(rule.text)
    if rule.upright:
        at = f.across(rule.value)
        beside = f'x="{at - 5}" text-anchor="end"' if at > (f.left + f.right) / 2 else f'x="{at + 5}"'
        yield f'<path class="rule" d="M{at} {f.top}V{f.bottom}"/>'
        yield f'<text class="rule-text" {beside} y="{f.bottom - 8}">{text}</text>'
    else:
        at = f.up(rule.value)
        above = at - 5 if at > f.top + 14 else at + 14
        yield f'<path class="rule" d="M{f.left} {at}H{f.right}"/>'
        yield f'<text class="rule-text" x="{f.left + 6}" y="{above}">{text}</text>'


def _diagonal(f: _Frame, text: str) -> Iterator[str]:
    end = min(f.x.high, f.y.high)
    begin = max(f.x.low, f.y.low)
    x1, y1, x2, y2 = f.across(begin), f.up(begin), f.across(end), f.up(end)
    angle = round(math.degrees(math.atan2(y2 - y1, x2 - x1)), 1)
    at_x, at_y = round(x1 + (x2 - x1) * 0.95, 1), round(y1 + (y2 - y1) * 0.95 - 7, 1)
    yield f'<path class="ideal" d="M{x1} {y1}L{x2} {y2}"/>'
    yield f'<text class="ideal-text" text-anchor="end" transform="translate({at_x} {at_y}) rotate({angle})">{escape(text)}</text>'


def _steps(f: _Frame, series: Series) -> Iterator[str]:
    if not series.points:
        return
    path = f"M{f.across(series.points[0][0])} {f.bottom}"
    path += "".join(f"H{f.across(x)}V{f.up(y)}" for x, y in series.points)
    yield f'<path class="line s{series.style}" d="{path}H{f.right}"><title>{escape(series.name)}</title></path>'


def _line(f: _Frame, series: Series) -> Iterator[str]:
    places = [(f.across(x), f.up(y)) for x, y in series.points]
    if len(places) > 1:
        yield f'<path class="line s{series.style}" d="M{"L".join(f"{x} {y}" for x, y in places)}"/>'
    for (x, y), (at_x, at_y) in zip(series.points, places, strict=True):
        hint = f"{series.name}: {f.y.text(round(y, 3))} at {f.x.text(round(x, 3))}"
        yield mark(series.style, at_x, at_y, hint)


def mark(style: int, x: float, y: float, hint: str = "") -> str:
    """A point; its shape tells series apart where colours do not."""
    shapes = (
        f"M{x - 4.5} {y}a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
        f"M{x - 4} {y - 4}h8v8h-8z",
        f"M{x} {y - 5.5}l5.5 10h-11z",
        f"M{x} {y - 6}l6 6l-6 6l-6 -6z",
        f"M{x} {y + 5.5}l5.5 -10h-11z",
        f"M{x - 5} {y - 2}h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
    )
    inside = f"<title>{escape(hint)}</title>" if hint else ""
    return f'<path class="mark s{style % len(shapes)}" d="{shapes[style % len(shapes)]}">{inside}</path>'
