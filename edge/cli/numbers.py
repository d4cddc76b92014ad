"""Callbacks of options that take numbers, for what click's own types let pass or cannot read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import click

_MOST = 16
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


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


def memory_size(context: click.Context, option: click.Parameter, value: str | None) -> int | None:
    """Reads `6GiB`, `512M`, `4GB` as bytes. Without an `i` before the `B`, powers of 1,000 count; `512M` is meant as MiB."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    if found is None or not found[2]:
        raise click.BadParameter(f"{value!r}: write a size with its unit, such as 6GiB or 512MiB", context, option)
    decimal = not found[3] and value.strip().lower().endswith("b")
    size = float(found[1]) * (1000 if decimal else 1024) ** _POWERS[found[2].lower()]
    if not 0 < size < 1 << 62:
        raise click.BadParameter(f"{value!r} is no size of a memory", context, option)
    return int(size)
