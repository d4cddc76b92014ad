"""Grammars over the built-in model's vocabulary: whatever is drawn under the mask is what was asked for."""

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from edge.dialects.parse import AnswerParser, ToolCallArguments, ToolCallStart
from edge.dialects.tools import (
    ANY_OBJECT,
    GrammarSpec,
    ToolFormat,
    ToolSpec,
    UnsupportedSchema,
    response_grammar,
    tool_grammar,
)
from edge.engine.grammar import GrammarCompiler
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model, Vocabulary
from tests.engine.conftest import Q4_0

MOST_TOKENS = 400
SET = ToolSpec(
    "set_value",
    {
        "type": "object",
        "properties": {
            "device": {"type": "string", "maxLength": 8},
            "value": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["device", "value"],
        "additionalProperties": False,
    },
)
TIME = ToolSpec("get_time", {})

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
    {"type": "integer", "minimum": -3, "maximum": 12},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]{2,3}$"},
    {"type": "string", "format": "date"},
    {"enum": ["on", "off", 3, None]},
    {"const": {"fixed": [1, 2]}},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": "x"}], "items": False, "minItems": 2},
    {
        "$defs": {"unit": {"enum": ["bar", "celsius"]}},
        "type": "object",
        "properties": {"u": {"$ref": "#/$defs/unit"}, "v": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["u", "v"],
        "additionalProperties": False,
    },
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
]


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    model = Model(Library(), Q4_0, gpu_layers=0)
    yield model.vocabulary
    model.close()


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary)


def walk(
    compiler: GrammarCompiler, vocabulary: Vocabulary, spec: GrammarSpec, seed: int, before: str = ""
) -> tuple[str, bool]:
    """Text of a random walk under the mask, and whether the grammar ended."""
    rng = random.Random(seed)
    state = compiler.compile(spec)
    for token in vocabulary.tokenize(before, add_special=False, parse_special=True):
        state.accept(token)
    assert state.active
    text = b""
    for _ in range(MOST_TOKENS):
        if state.finished:
            return before + text.decode(), True
        allowed = np.flatnonzero(state.mask())
        token = int(rng.choice(allowed))
        assert state.allows(token)
        if token in vocabulary.end_tokens:
            return before + text.decode(), True
        state.accept(token)
        text += vocabulary.marked_piece(token)
    return before + text.decode("utf-8", "replace"), False


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:40])
def test_a_random_walk_under_a_schema_is_an_instance_of_it(
    compiler: GrammarCompiler, vocabulary: Vocabulary, schema: dict[str, Any]
) -> None:
    ended = 0
    for seed in range(20):
        text, done = walk(compiler, vocabulary, response_grammar(schema), seed)
        ended += done
        if done:
            jsonschema.validate(json.loads(text), schema)
    assert ended


def test_json_object_is_an_object(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    state = compiler.compile(response_grammar(ANY_OBJECT))
    first = {vocabulary.piece(int(t))[:1] for t in np.flatnonzero(state.mask())}
    assert first == {b"{"}


@pytest.mark.parametrize("fmt", list(ToolFormat))
@pytest.mark.parametrize("choice", ["auto", "required", "set_value"])
def test_a_random_walk_under_a_tool_grammar_is_a_call_that_the_parser_reads(
    compiler: GrammarCompiler, vocabulary: Vocabulary, fmt: ToolFormat, choice: str
) -> None:
    spec = tool_grammar(fmt, [SET] if choice != "required" else [SET, TIME], choice=choice, parallel=False)
    for seed in range(8):
        text, done = walk(compiler, vocabulary, spec, seed, before=spec.trigger or "")
        assert done, text
        parser = AnswerParser(fmt=fmt, tools=frozenset({"set_value", "get_time"}), reasoning=None, reasoning_open=False)
        pieces = parser.feed(text) + parser.finish()
        names = [p.name for p in pieces if isinstance(p, ToolCallStart)]
        arguments = json.loads("".join(p.text for p in pieces if isinstance(p, ToolCallArguments)))
        assert len(names) == 1, text
        jsonschema.validate(
            arguments, SET.parameters if names == ["set_value"] else {"type": "object", "maxProperties": 0}
        )


def test_a_tool_grammar_with_an_answer_schema_allows_both(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    spec = tool_grammar(
        ToolFormat.HERMES, [TIME], choice="auto", parallel=True, answer={"type": "integer", "minimum": 7, "maximum": 7}
    )
    beginnings = {walk(compiler, vocabulary, spec, seed)[0][:11] for seed in range(30)}
    assert beginnings == {"7", "<tool_call>"}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "contains": {"type": "string"}}, "contains"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
        ({"dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"if": {"type": "string"}, "then": {"type": "string"}}, "if"),
        ({"type": "string", "format": "foo"}, "foo"),
        ({"type": "wurst"}, "wurst"),
        ({"$ref": "#/nowhere"}, "nowhere"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_refused_by_name(
    compiler: GrammarCompiler, schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        compiler.compile(response_grammar(schema))


def test_a_lazy_grammar_waits_for_its_trigger(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    state = compiler.compile(tool_grammar(ToolFormat.HERMES, [TIME], choice="auto", parallel=True))
    for token in vocabulary.tokenize("Certainly. ", add_special=False, parse_special=True):
        state.accept(token)
    assert not state.active
    for token in vocabulary.tokenize("<tool_call>", add_special=False, parse_special=True):
        state.accept(token)
    assert state.active
    assert not state.finished


def test_clones_go_their_own_ways(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    first = compiler.compile(response_grammar({"enum": ["on", "off"]}))
    second = first.clone()
    for token in vocabulary.tokenize('"on"', add_special=False, parse_special=False):
        first.accept(token)
    assert first.finished
    assert not second.finished
    assert second.mask().sum() > 0
