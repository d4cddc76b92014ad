"""Schemas are made exact without becoming others, or refused by what is wrong."""

from typing import Any

import pytest

from edge.dialects.strict import tighten
from edge.dialects.tools import UnsupportedSchema

DATE = {"type": "string", "format": "date"}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        True,
        {
            "type": "object",
            "properties": {"format": {"type": "string"}, "enum": {"type": "null"}},
            "required": ["format"],
        },
        {"const": {"format": "date", "minProperties": 7}},
        {"enum": [{"minProperties": 3}, 2**53, -(2**60), 1.5, True]},
        {"type": "string", "format": "email", "description": "control \x00 and 9007199254740993"},
        {"default": 2**53 + 1, "examples": ["\x07"]},
        {"type": "object", "minProperties": 1},
        {"type": "object", "required": ["a", "b"], "minProperties": 3},
        {"properties": {"minProperties": {"type": "integer"}}},
        {"enum": ["tab\t", "line\n", "\r\b\f"]},
    ],
    ids=repr,
)
def test_what_is_exact_already_stays_as_it_is(schema: Any) -> None:
    assert tighten(schema) == schema


@pytest.mark.parametrize(
    "place",
    [
        lambda s: s,
        lambda s: {"properties": {"enum": s}},
        lambda s: {"items": s},
        lambda s: {"prefixItems": [{}, s]},
        lambda s: {"anyOf": [s, {"type": "null"}]},
        lambda s: {"$defs": {"d": s}, "$ref": "#/$defs/d"},
        lambda s: {"components": {"schemas": {"d": s}}, "$ref": "#/components/schemas/d"},
        lambda s: {"additionalProperties": s},
    ],
)
def test_a_date_is_a_day_that_exists_wherever_it_stands(place: Any) -> None:
    tight = tighten(place(DATE))
    assert tight == place(tighten(DATE))
    assert tight != place(DATE)


def test_what_else_a_date_must_be_stays() -> None:
    tight = tighten({**DATE, "pattern": "^2", "allOf": [{"minLength": 1}]})
    assert tight["pattern"] == "^2"
    assert tight["allOf"][0] == {"minLength": 1}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"items": {"required": ["a", "a"], "minProperties": 3}}, "minProperties"),
        ({"minimum": 2**53 + 1}, "9007199254740993"),
        ({"enum": [[{"a": 10**30}]]}, "1000000000"),
        ({"anyOf": [{"const": "a\x1b"}]}, r"U\+001B"),
        ({"properties": {"a": {"const": {"b": ["\x7f"]}}}}, r"U\+007F"),
    ],
)
def test_what_cannot_be_exact_is_refused(schema: Any, named: str) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        tighten(schema)
