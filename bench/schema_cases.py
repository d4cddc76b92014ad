"""Schemas for `make prove-schema`: every assertion that JSON Schema 2020-12 knows, and the older spellings of some.

A group per keyword. HELD must be accepted, and every answer must be an instance; REFUSED may not be accepted unless it is
held to as well.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_DRAFT_7 = "http://json-schema.org/draft-07/schema#"
_DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}
_WORD: Schema = {"type": "string", "minLength": 1, "maxLength": 6}


def _object(required: list[str] | None = None, /, **properties: Any) -> Schema:
    closed = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**closed, "required": list(properties) if required is None else required}


HELD: dict[str, list[Schema]] = {
    "type": [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "string", "maxLength": 12},
        {"type": ["null", "boolean"]},
        {"type": ["integer", "string"], "maxLength": 5, "minimum": 7},
        {"type": "array", "maxItems": 2},
        {"type": ["object", "null"], "maxProperties": 1},
    ],
    "enum": [
        {"enum": ["red", "amber", "green"]},
        {"enum": [0, 1.5, -3, True, None, "", [], {"k": [1, {"z": None}]}]},
        {"type": "string", "enum": ["a", 1, "b", None]},
        {"type": "integer", "enum": [1, 12, 123, 1234], "minimum": 100},
        {"enum": ["tab\there", 'quo"te', "back\\slash", "Köln", "東京", "\U0001f600", "a/b", "\u2028"]},
    ],
    "const": [
        {"const": "exactly this"},
        {"const": None},
        {"const": {"a": [1, "two", {"three": False}], "b": {}}},
        {"const": 1.25, "type": "number"},
        {"const": "ligne\nété"},
    ],
    "properties": [
        _object(a=_DIGIT, b={"type": "boolean"}),
        _object(inner=_object(deeper=_object(deepest=_DIGIT))),
        {"type": "object", "properties": {"a": _DIGIT, "gone": False}, "additionalProperties": False},
    ],
    "required": [
        _object(["b"], a=_DIGIT, b=_DIGIT, c=_DIGIT),
        {"type": "object", "required": ["undeclared"], "additionalProperties": _DIGIT},
        {
            "type": "object",
            "properties": {"x": _DIGIT},
            "required": ["y", "x"],
            "additionalProperties": {"type": "null"},
        },
    ],
    "additionalProperties": [
        {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
        {
            "type": "object",
            "properties": {"fixed": _DIGIT},
            "additionalProperties": {"type": "null"},
            "required": ["fixed"],
        },
        {"type": "object", "additionalProperties": False},
    ],
    "patternProperties": [
        {"type": "object", "patternProperties": {"^n_[a-c]$": _DIGIT}, "additionalProperties": False},
        {
            "type": "object",
            "properties": {"id": {"type": "boolean"}},
            "patternProperties": {"^x-[a-z]{1,3}$": {"type": "null"}},
            "additionalProperties": False,
            "required": ["id"],
        },
    ],
    "minProperties": [
        {"type": "object", "additionalProperties": _DIGIT, "minProperties": 1},
        {"type": "object", "required": ["y"], "additionalProperties": _DIGIT, "minProperties": 2, "maxProperties": 2},
        {"type": "object", "additionalProperties": _DIGIT, "minProperties": 1, "maxProperties": 1},
    ],
    "items": [
        {"type": "array", "items": _DIGIT, "maxItems": 6},
        {"type": "array", "items": {"type": "array", "items": {"enum": ["x", "o"]}, "maxItems": 3}, "maxItems": 3},
        {"type": "array", "items": False},
        {"type": "array", "items": _object(n=_DIGIT), "minItems": 2, "maxItems": 2},
    ],
    "prefixItems": [
        {"type": "array", "prefixItems": [_DIGIT, {"type": "boolean"}], "items": False},
        {"type": "array", "prefixItems": [{"const": "a"}], "items": {"type": "null"}, "minItems": 1, "maxItems": 4},
        {"type": "array", "prefixItems": [_DIGIT, _DIGIT, _DIGIT], "minItems": 2, "maxItems": 2},
    ],
    "minItems": [
        {"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 5},
        {"type": "array", "items": {"type": "boolean"}, "minItems": 4},
        {"type": "array", "items": _DIGIT, "maxItems": 0},
    ],
    "minLength": [
        {"type": "string", "minLength": 3, "maxLength": 5},
        {"type": "string", "maxLength": 0},
        {"type": "string", "minLength": 2, "maxLength": 40},
        _object(a={"type": "string", "maxLength": 3}, b={"type": "string", "minLength": 1, "maxLength": 1}),
    ],
    "pattern": [
        {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
        {"type": "string", "pattern": "^(cat|dog)s?$"},
        {"type": "string", "pattern": "ab+", "maxLength": 9},
        {"type": "string", "pattern": "^\\d{2}:\\d{2}$"},
        {"type": "string", "pattern": "^\\w{1,8}$"},
        {"type": "string", "pattern": '^[^\\s"\\\\]{1,5}$'},
        {"type": "string", "pattern": "^é[à-ü]{1,3}東?$"},
        {"type": "string", "pattern": "^a.c$"},
        {"type": "string", "pattern": "^[0-9]+$", "minLength": 3, "maxLength": 4},
        {"type": "string", "pattern": "^(?:x|yz)*$", "maxLength": 8},
    ],
    "format": [
        *({"type": "string", "format": f} for f in ("date", "time", "date-time", "duration", "ipv4", "ipv6", "uuid")),
        *({"type": "string", "format": f, "maxLength": 24} for f in ("email", "hostname", "uri")),
        {"type": "string", "format": "date", "pattern": "-02-29$"},
    ],
    "minimum": [
        {"type": "integer", "minimum": -5, "maximum": 5},
        {"type": "integer", "minimum": 98, "maximum": 1003},
        {"type": "number", "minimum": -0.5, "maximum": 2.25},
        {"type": "integer", "minimum": 1.5, "maximum": 4.5},
        {"type": "number", "maximum": -10},
        {"type": "integer", "minimum": 1000000},
        {"type": "number", "minimum": 0, "maximum": 0},
    ],
    "exclusiveMinimum": [
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
        {"type": "number", "exclusiveMinimum": -1, "maximum": 0.001},
        {"type": "integer", "minimum": 3, "exclusiveMinimum": 5, "maximum": 9, "exclusiveMaximum": 9},
    ],
    "multipleOf": [
        {"type": "integer", "multipleOf": 7},
        {"type": "integer", "multipleOf": 5, "minimum": 11, "maximum": 24},
        {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 3},
        {"type": "number", "multipleOf": 0.01},
        {"type": "integer", "multipleOf": 12, "exclusiveMinimum": 0},
        {"type": "number", "multipleOf": 1},
        {"type": "integer", "multipleOf": 2.5, "maximum": 40},
    ],
    "anyOf": [
        {"anyOf": [{"type": "null"}, _DIGIT, _object(a=_DIGIT)]},
        {"type": "integer", "anyOf": [{"minimum": 90, "maximum": 99}, {"minimum": 5, "maximum": 6}]},
        {"anyOf": [_WORD, {"type": "array", "items": _WORD, "maxItems": 2}]},
        _object(a=_DIGIT, b={"anyOf": [{"const": "x"}, {"const": None}]}),
    ],
    "oneOf": [
        {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
        {"oneOf": [_object(kind={"const": "p"}, n=_DIGIT), _object(kind={"const": "q"}, t={"type": "boolean"})]},
        {"oneOf": [{"type": "integer", "maximum": 3, "minimum": 0}, {"type": "string", "maxLength": 3}]},
    ],
    "allOf": [
        {"allOf": [{"type": "integer"}, {"minimum": 10}, {"maximum": 12}]},
        {
            "type": "object",
            "allOf": [
                {"properties": {"a": _DIGIT}, "required": ["a"]},
                {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
            ],
            "maxProperties": 2,
        },
        {"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "z$"}, {"maxLength": 6}]},
        {"type": "string", "minLength": 2, "allOf": [{"maxLength": 4}, {"enum": ["a", "bb", "cccc", "ddddd"]}]},
    ],
    "$ref": [
        {"$defs": {"d": _DIGIT}, "type": "array", "items": {"$ref": "#/$defs/d"}, "minItems": 1, "maxItems": 4},
        {
            "definitions": {"a/b": {"const": "slash"}, "m~n": {"const": "tilde"}},
            "anyOf": [{"$ref": "#/definitions/a~1b"}, {"$ref": "#/definitions/m~0n"}],
        },
        {"$defs": {"d": {"type": "integer", "minimum": 2}}, "$ref": "#/$defs/d", "maximum": 4},
        {
            "$defs": {"tree": {"anyOf": [{"type": "null"}, _object(l={"$ref": "#/$defs/tree"}, v=_DIGIT)]}},
            "$ref": "#/$defs/tree",
        },
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"enum": [1, 2]}}, "$ref": "#/$defs/a"},
        {"$defs": {"n": {"$anchor": "here", **_DIGIT}}, "$ref": "#here"},
    ],
    "names": [
        _object(**{"größe": _DIGIT, "名前": _WORD, "e\u0301": {"type": "null"}}),
        _object(**{"": _DIGIT, 'with "quotes"': _DIGIT, "back\\slash": _DIGIT, "new\nline": _DIGIT}),
        _object(**{"$ref": _DIGIT, "type": {"const": "object"}, "enum": _WORD, "required": {"type": "boolean"}}),
        _object(**{"\U0001f600": {"type": "boolean"}, "a.b-c d": _DIGIT, "__proto__": {"type": "null"}}),
    ],
    "nested": [
        _object(
            id={"type": "string", "format": "uuid"},
            tags={"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
            place={"anyOf": [{"type": "null"}, _object(x={"type": "number", "minimum": 0, "maximum": 1}, y=_DIGIT)]},
            state={"oneOf": [{"const": "on"}, {"const": "off"}, _object(dim=_DIGIT)]},
        ),
        {
            "$defs": {
                "item": _object(
                    ["n"], n=_DIGIT, more={"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 1}
                )
            },
            "type": "array",
            "prefixItems": [{"const": "list"}],
            "items": {"$ref": "#/$defs/item"},
            "minItems": 1,
            "maxItems": 3,
        },
        _object(a={"allOf": [{"anyOf": [_DIGIT, {"type": "null"}]}, {"type": ["integer", "boolean"]}]}),
        _object(m={"type": "object", "additionalProperties": {"items": _DIGIT, "maxItems": 2}, "maxProperties": 1}),
    ],
    "older drafts": [
        {"$schema": _DRAFT_7, "type": "array", "items": [_DIGIT, {"type": "null"}], "additionalItems": False},
        {"$schema": _DRAFT_7, "type": "array", "items": [_DIGIT], "additionalItems": {"type": "null"}, "maxItems": 3},
        {"$schema": _DRAFT_7, "definitions": {"d": {"enum": ["x"]}}, "$ref": "#/definitions/d"},
    ],
    "annotations": [
        {
            "title": "t",
            "description": "d",
            "default": 3,
            "examples": [1],
            "$comment": "c",
            "deprecated": True,
            **_DIGIT,
        },
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "readOnly": True, "writeOnly": False, **_DIGIT},
    ],
}

REFUSED: dict[str, list[Schema]] = {
    "not": [
        {"not": {"type": "string"}},
        {"type": "integer", "not": {"const": 3}},
        _object(a={"not": {"type": "null"}}),
    ],
    "if": [{"if": {"type": "integer"}, "then": {"minimum": 5}, "else": {"const": "no"}}],
    "uniqueItems": [{"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}],
    "contains": [{"type": "array", "contains": {"const": 1}}, {"type": "array", "contains": _DIGIT, "maxContains": 1}],
    "propertyNames": [{"type": "object", "propertyNames": {"maxLength": 2}}],
    "dependentRequired": [{"type": "object", "dependentRequired": {"a": ["b"]}}],
    "dependentSchemas": [{"type": "object", "dependentSchemas": {"a": {"required": ["b"]}}}],
    "dependencies": [{"type": "object", "dependencies": {"a": ["b"]}}],
    "unevaluatedProperties": [
        {"type": "object", "properties": {"a": _DIGIT}, "unevaluatedProperties": False},
        {"allOf": [{"properties": {"a": _DIGIT}}], "type": "object", "unevaluatedProperties": False},
    ],
    "unevaluatedItems": [{"type": "array", "prefixItems": [_DIGIT], "unevaluatedItems": False}],
    "minProperties": [
        {"type": "object", "properties": {"a": _DIGIT, "b": _DIGIT}, "minProperties": 2},
        {"type": "object", "additionalProperties": _DIGIT, "minProperties": 2},
    ],
    "maxProperties": [{"type": "object", "properties": {"a": _DIGIT, "b": _DIGIT}, "maxProperties": 1}],
    "format": [{"type": "string", "format": name} for name in ("regex", "idn-email", "iri", "json-pointer", "colour")],
    "pattern": [
        {"type": "string", "pattern": "^(?=a).b$"},
        {"type": "string", "pattern": "(a)\\1"},
        {"type": "string", "pattern": "["},
        {"type": "string", "pattern": "^\\bword\\b$"},
    ],
    "oneOf": [
        {"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 2}]},
        {"oneOf": [_DIGIT, {"type": "number"}]},
    ],
    "multipleOf": [{"type": "integer", "multipleOf": 99991}, {"type": "number", "multipleOf": 0}],
    "$ref": [{"$ref": "https://example.com/other.json"}, {"$ref": "#/$defs/absent"}, {"$ref": "#"}],
    "$dynamicRef": [{"$dynamicRef": "#node", "$defs": {"n": {"$dynamicAnchor": "node", **_DIGIT}}}],
    "numbers": [{"const": 2**53 + 1}, {"type": "integer", "minimum": 10**20}, {"enum": [1, 2**60 + 1]}],
    "characters": [{"const": "nul\u0000"}, {"enum": ["a", {"k": "del\u007f"}]}],
    "type": [{"type": "int"}, {"type": 3}, {"type": []}],
    "no instance": [
        {"type": "integer", "minimum": 5, "maximum": 4},
        {"type": "string", "enum": [1, 2]},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "string", "minLength": 3, "maxLength": 2},
        {"enum": []},
        {"allOf": [{"type": "integer"}, {"type": "string"}]},
    ],
    "malformed": [
        {"type": "string", "minLength": "3"},
        {"type": "object", "required": "a"},
        {"type": "object", "properties": []},
        {"anyOf": {}},
        {"type": "array", "maxItems": -1},
    ],
}
