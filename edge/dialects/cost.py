"""What a JSON schema costs to enforce: some short ones would keep the grammar compiler busy for seconds.

Measured with llguidance 1.9 over 4,096 tokens: `multipleOf: 86400` 1.7 s to compile, a literal of 250,000 characters
5.8 s for a step; at the bounds below 0.13 s and 5 ms. With 500 optional properties in one object its parser gives up.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from typing import Any

from edge.dialects.tools import UnsupportedSchema

MAX_LITERAL_CHARACTERS = 2048
MAX_MULTIPLE = 4096
MAX_PROPERTIES = 400
_ANNOTATIONS = frozenset({"title", "description", "default", "examples", "$comment", "$schema", "$id"})


def refuse_costly(schema: Any) -> None:
    """Raise UnsupportedSchema for a schema (parsed JSON) that would hold up every other request."""
    multiple = 1
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, str) and len(node) > MAX_LITERAL_CHARACTERS:
            raise UnsupportedSchema(
                f"a text in the schema has {len(node)} characters; at most {MAX_LITERAL_CHARACTERS}"
            )
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, dict):
            properties = node.get("properties")
            if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
                raise UnsupportedSchema(f"an object has {len(properties)} properties; at most {MAX_PROPERTIES}")
            multiple = math.lcm(multiple, _weight(node.get("multipleOf")))
            waiting += [v for k, v in node.items() if k not in _ANNOTATIONS or isinstance(v, dict)]
            waiting += node
    # Several in one schema may have to hold together, through allOf or $ref; then their common multiple counts.
    if multiple > MAX_MULTIPLE:
        raise UnsupportedSchema(f"multipleOf is too costly: its digits' common multiple is over {MAX_MULTIPLE}")


def _weight(value: Any) -> int:
    """Remainders that must be told apart, about: 1 where the last digits decide."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 1
    try:
        digits = int("".join(map(str, Decimal(str(value)).as_tuple().digits)))
    except (InvalidOperation, ValueError):
        return 1
    rest = digits
    for factor in (2, 5):
        while rest and rest % factor == 0:
            rest //= factor
    return 1 if rest <= 1 else digits
