"""Schemas that would hold up the engine are refused before anything is compiled."""

from typing import Any

import pytest

from edge.dialects.cost import MAX_LITERAL_CHARACTERS, MAX_PROPERTIES, refuse_costly
from edge.dialects.tools import UnsupportedSchema

LONG = "x" * (MAX_LITERAL_CHARACTERS + 1)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "multipleOf": 86400}, "multipleOf"),
        ({"type": "number", "multipleOf": 12.347}, "multipleOf"),
        ({"allOf": [{"multipleOf": 97}, {"multipleOf": 89}]}, "multipleOf"),
        ({"items": {"enum": ["a", LONG]}}, "2049 characters"),
        ({"const": {"deep": [LONG]}}, "2049 characters"),
        ({"type": "string", "pattern": LONG}, "2049 characters"),
        ({"properties": {LONG: {}}}, "2049 characters"),
        ({"properties": {"title": {"const": LONG}}}, "2049 characters"),
        ({"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}}, "401 properties"),
    ],
)
def test_a_schema_that_costs_too_much_is_refused_by_what_it_is(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        refuse_costly(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 1000000},
        {"type": "number", "multipleOf": 0.01},
        {"properties": {"a": {"multipleOf": 5}, "b": {"multipleOf": 60}, "multipleOf": {"type": "integer"}}},
        {"type": "string", "description": LONG, "default": LONG, "examples": [LONG]},
        {"type": "string", "multipleOf": True},
        {"type": "number", "multipleOf": 0},
        {"type": "number", "multipleOf": float("nan")},
        True,
    ],
)
def test_ordinary_schemas_pass(schema: Any) -> None:
    refuse_costly(schema)
