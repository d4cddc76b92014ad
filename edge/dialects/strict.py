"""Where the grammar compiler takes JSON Schema more loosely than its text: schemas made exact, or refused.

Found by `make prove-schema` on llguidance 1.9: it counts a name that is written twice as two properties, keeps numbers as
doubles, leaves some characters out of constants, and takes 29 February in every year and a second 60 in every minute.
"""

from __future__ import annotations

import re
from typing import Any

from edge.dialects.tools import UnsupportedSchema

_DATA = frozenset({"const", "enum"})
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$comment", "x-guidance"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DAY = f"^(?:[0-9]{{4}}-(?:0[13-9]-[0-9]{{2}}|1[0-2]-[0-9]{{2}}|02-(?:[01][0-9]|2[0-8]))|{_LEAP}-02-29)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-5]"
_REAL: dict[str, dict[str, Any]] = {
    "date": {"pattern": _DAY},
    "time": {"pattern": f"^{_TIME}"},
    "date-time": {"pattern": f"{_DAY}[Tt]{_TIME}"},
    "hostname": {"maxLength": 253},
}
"""What holds besides, by format. No second 60: whether a minute has one is not for a grammar to know."""


def tighten(schema: Any) -> Any:
    """The same schema (parsed JSON), with what the compiler would overlook spelled out. Raises UnsupportedSchema."""
    if isinstance(schema, list):
        return [tighten(s) for s in schema]
    if not isinstance(schema, dict):
        _refuse_unfaithful(schema)
        return schema
    tight: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _DATA:
            _refuse_unfaithful(value)
        if keyword in _DATA or keyword in _ANNOTATIONS:
            tight[keyword] = value
        elif keyword in _NAMED and isinstance(value, dict):
            tight[keyword] = {name: tighten(s) for name, s in value.items()}
        else:  # a list of schemas, a schema, or a place that a $ref may point into
            tight[keyword] = tighten(value)
    _refuse_countless(tight)
    return _with_real_times(tight)


def _with_real_times(schema: dict[str, Any]) -> dict[str, Any]:
    wanted, more = schema.get("format"), schema.get("allOf", [])
    if not isinstance(wanted, str) or wanted not in _REAL or not isinstance(more, list):
        return schema
    return {**schema, "allOf": [*more, _REAL[wanted]]}


def _refuse_countless(schema: dict[str, Any]) -> None:
    """Of names that the schema leaves open, only one surely differs from all others."""
    least, required = schema.get("minProperties"), schema.get("required", [])
    if not isinstance(least, int) or not isinstance(required, list):
        return
    if least > len({name for name in required if isinstance(name, str)}) + 1:
        raise UnsupportedSchema("minProperties can be enforced up to one more than the required names")


def _refuse_unfaithful(value: Any) -> None:
    """A double stands for the neighbour of some whole numbers over 2**53; a control character without a letter of its own
    would be left out."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()
        elif isinstance(item, str) and (found := _CONTROL.search(item)):
            raise UnsupportedSchema(
                f"the control character U+{ord(found[0]):04X} in a text of the schema is not supported"
            )
        elif _is_inexact(item):
            raise UnsupportedSchema(f"the number {str(item)[:40]} is too large to be told from its neighbours")


def _is_inexact(item: Any) -> bool:
    whole = isinstance(item, int) and not isinstance(item, bool)
    return whole and (abs(item) > 1 << 64 or int(float(item)) != item)
