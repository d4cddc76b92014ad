"""Callbacks of options that take numbers, for what click's own types let pass or cannot read."""

from __future__ import annotations

import math
from collections.abc import Callable

import click

_MOST = 16


def several(kind: type[int] | type[float], most: float) -> Callable[..., tuple[float, ...] | None]:
    """Reads positive numbers with commas between them; doubles count once."""

    def read(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(dict.fromkeys(kind(part) for part in value.split(",")))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < number <= most for number in numbers):
            raise click.BadParameter(
                f"{value!r}: write numbers above 0 and up to {most:g}, such as 1,2,4", context, option
            )
        if len(numbers) > _MOST:
            raise click.BadParameter(f"{len(numbers)} values are more than {_MOST}", context, option)
        return numbers

    return read


def finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """Click's ranges let `nan` pass."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is no number to measure with", context, option)
    return value
