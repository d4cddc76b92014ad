"""Grammars over the built-in model's vocabulary, and over one with what other families' have: whatever is drawn under
the mask is what was asked for."""

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from edge.dialects.parse import AnswerParser, ToolCallArguments, ToolCallStart
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import (
    ANY_OBJECT,
    GrammarSpec,
    ToolFormat,
    ToolSpec,
    UnsupportedSchema,
    response_grammar,
    tool_grammar,
    visible_tokens,
)
from edge.engine.grammar import GrammarCompiler, GrammarFailed, GrammarState
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model, Vocabulary, VocabularyTable
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
THINK = ReasoningTags("<think>", "</think>")


class OtherFamily:
    """A vocabulary as other files have it: markers are control tokens, pieces end inside characters, an end token is
    called ordinary text, and the tokenizer puts a space before what it is given."""

    def __init__(self) -> None:
        words = [
            b'{"',
            b'": ',
            b'"}',
            b", ",
            b"true",
            b"set",
            b"_value",
            b"\xc3\xa9t",
            b"\xe2\x82",
            b'{"name": "ge',
            b"",
        ]
        control = [b"<s>", b"</s>", *(m.encode() for f in ToolFormat for m in visible_tokens(f))]
        self._pieces = [*(bytes([i]) for i in range(256)), *words, b"<|im_end|>", *dict.fromkeys(control)]
        self._first_control = 257 + len(words)
        self.size = len(self._pieces)
        self.bos = self._pieces.index(b"<s>")
        self.eos = self._pieces.index(b"</s>")
        self.end_tokens = frozenset({self.eos, self._pieces.index(b"<|im_end|>")})

    def table(self) -> VocabularyTable:
        control = [t >= self._first_control for t in range(self.size)]
        return VocabularyTable(self._pieces, control, control)

    def piece(self, token: int) -> bytes:
        return b"" if token >= self._first_control else self._pieces[token]

    def marked_piece(self, token: int) -> bytes:
        return self._pieces[token]

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        if parse_special and text.encode() in self._pieces[self._first_control :]:
            return [self._pieces.index(text.encode())]
        return list(text.encode()) if parse_special else list(b" " + text.encode())


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


@pytest.fixture(scope="module")
def other() -> Any:
    return OtherFamily()


@pytest.fixture(scope="module")
def other_compiler(other: Any) -> GrammarCompiler:
    return GrammarCompiler(other)


def read(state: GrammarState, vocabulary: Vocabulary, text: str) -> bool:
    """Feed text token by token; whether all of it was allowed."""
    for token in vocabulary.tokenize(text, add_special=False, parse_special=True):
        if state.active and not state.allows(token):
            return False
        state.accept(token)
    return True


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
        ({"$ref": "#"}, "no value can satisfy"),
        ({"type": "integer", "multipleOf": 86400}, "multipleOf"),
        ({"enum": ["x" * 5000]}, "5000 characters"),
        ({"type": "string", "pattern": "^(?=a)"}, "pattern: look-around"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, r"oneOf constraints are not supported\.$"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"const": 2**53 + 1}, "9007199254740993"),
        ({"const": "nul\0"}, r"U\+0000"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_refused_by_name(
    compiler: GrammarCompiler, schema: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedSchema, match=named):
        compiler.compile(response_grammar(schema))


def alternatives(count: int, names: int) -> dict[str, Any]:
    """Objects that share no name and require none."""
    fields = [{f"k{i}x{j}": {"type": "string"} for j in range(names)} for i in range(count)]
    return {"anyOf": [{"type": "object", "properties": f, "additionalProperties": False} for f in fields]}


def record(**properties: Any) -> dict[str, Any]:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def test_more_alternatives_than_can_be_told_apart_in_time_are_refused_before_the_answer(
    compiler: GrammarCompiler,
) -> None:
    with pytest.raises(UnsupportedSchema, match="too many names or alternatives"):
        compiler.compile(response_grammar(record(a=alternatives(50, 20))))
    compiler.compile(response_grammar(record(a=alternatives(20, 20))))


@pytest.mark.parametrize(
    ("schema", "before", "said"),
    [
        (record(a={"type": "boolean"}, b=alternatives(50, 20)), '{"a":true,"b":{', "too many names"),
        (record(a={"type": "string", "pattern": "^(a?){200}a{200}$"}), '{"a":"aaaaaa', "too many ways"),
    ],
)
def test_where_the_compiler_gives_up_in_the_middle_the_answer_does_not_end_as_if_it_were_whole(
    compiler: GrammarCompiler, vocabulary: Vocabulary, schema: dict[str, Any], before: str, said: str
) -> None:
    state = compiler.compile(response_grammar(schema))
    with pytest.raises(GrammarFailed, match=said):
        for token in vocabulary.tokenize(before, add_special=False, parse_special=False):
            state.accept(token)
            state.mask()


OPEN_NAMES = {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
NULLS = {**OPEN_NAMES, "additionalProperties": {"type": "null"}}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (NULLS, '{"x":true,"y":null}', '{"x":true,"\\u0078":null}'),
        (NULLS, '{"x":true,"é":null}', '{"x":true,"x":null}'),
        ({"type": "string", "format": "date"}, '"2000-02-29"', '"2001-02-29"'),
        ({"type": "string", "format": "date"}, '"1904-02-29"', '"1900-02-29"'),
        ({"type": "string", "format": "date-time"}, '"2024-02-29T23:59:59Z"', '"2023-02-29T23:59:59Z"'),
        ({"type": "string", "format": "date-time"}, '"2024-12-31T00:00:59Z"', '"2024-12-31T00:00:60Z"'),
        ({"type": "string", "format": "time"}, '"12:00:00+01:00"', '"12:00:60Z"'),
        ({"type": "string", "format": "hostname"}, f'"{"a." * 126}a"', f'"{"a." * 127}a"'),
        ({"properties": {"format": {"const": "date"}}}, '{"format":"date"}', '{"format":"dates"}'),
    ],
)
def test_what_the_compiler_takes_loosely_is_held_to(
    other_compiler: GrammarCompiler, other: Any, schema: dict[str, Any], right: str, wrong: str
) -> None:
    def reads(text: str) -> bool:
        state = other_compiler.compile(response_grammar(schema))
        for token in text.encode():  # the first 256 tokens of that vocabulary are the bytes
            if not state.allows(token):
                return False
            state.accept(token)
        return state.allows(other.eos)

    assert reads(right)
    assert not reads(wrong)


def test_a_tools_arguments_are_held_to_as_strictly_as_an_answer(other_compiler: GrammarCompiler) -> None:
    tool = ToolSpec("set", {"type": "object", "properties": {"n": {"const": 2**53 + 1}}})
    with pytest.raises(UnsupportedSchema, match="9007199254740993"):
        other_compiler.compile(tool_grammar(ToolFormat.HERMES, [tool], choice="required", parallel=False))


def test_a_lazy_grammar_waits_for_its_trigger(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    state = compiler.compile(tool_grammar(ToolFormat.HERMES, [TIME], choice="auto", parallel=True))
    for token in vocabulary.tokenize("Certainly. ", add_special=False, parse_special=True):
        state.accept(token)
    assert not state.active
    for token in vocabulary.tokenize("<tool_call>", add_special=False, parse_special=True):
        state.accept(token)
    assert state.active
    assert not state.finished


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:40])
def test_a_random_walk_is_an_instance_over_other_vocabularies_too(
    other_compiler: GrammarCompiler, other: Any, schema: dict[str, Any]
) -> None:
    for seed in range(10):
        text, done = walk(other_compiler, other, response_grammar(schema), seed)
        if done:
            jsonschema.validate(json.loads(text), schema)


def test_a_tokenizer_that_changes_text_does_not_change_what_a_grammar_forces() -> None:
    class Shouting(OtherFamily):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
            return super().tokenize(text.upper(), add_special=add_special, parse_special=parse_special)

    vocabulary: Any = Shouting()
    text, done = walk(GrammarCompiler(vocabulary), vocabulary, response_grammar({"const": "set_value"}), 1)
    assert (text, done) == ('"set_value"', True)


@pytest.mark.parametrize("fmt", list(ToolFormat))
@pytest.mark.parametrize("choice", ["auto", "required", "set_value"])
def test_markers_that_are_control_tokens_are_drawn_as_such(
    other_compiler: GrammarCompiler, other: Any, fmt: ToolFormat, choice: str
) -> None:
    spec = tool_grammar(fmt, [SET], choice=choice, parallel=False)
    state = other_compiler.compile(spec)
    rng = random.Random(1)
    tokens = [] if spec.trigger is None else other.tokenize(spec.trigger, add_special=False, parse_special=True)
    for token in tokens:
        state.accept(token)
    while not state.finished:
        token = int(rng.choice(np.flatnonzero(state.mask())))
        if token in other.end_tokens:
            break
        state.accept(token)
        tokens.append(token)
    markers = [other.marked_piece(t).decode() for t in tokens if not other.piece(t)]
    assert markers == [m for m in visible_tokens(fmt) if m != "<|python_tag|>"]
    reader = AnswerParser(fmt=fmt, tools=frozenset({"set_value"}), reasoning=None, reasoning_open=False)
    pieces = reader.feed(b"".join(other.marked_piece(t) for t in tokens).decode()) + reader.finish()
    assert [p.name for p in pieces if isinstance(p, ToolCallStart)] == ["set_value"]


def test_an_end_token_that_its_file_calls_text_ends_no_string(other_compiler: GrammarCompiler, other: Any) -> None:
    state = other_compiler.compile(response_grammar({"type": "string", "minLength": 200}))
    assert read(state, other, '"abc')
    ends = list(other.end_tokens)
    assert not state.mask()[ends].any()
    assert not any(state.allows(t) for t in ends)


def test_a_trigger_that_shares_a_token_with_the_call_begins_the_grammar_inside_it(
    other_compiler: GrammarCompiler, other: Any
) -> None:
    state = other_compiler.compile(tool_grammar(ToolFormat.LLAMA3, [TIME], choice="auto", parallel=False))
    state.accept(other._pieces.index(b'{"name": "ge'))
    assert state.active
    assert read(state, other, 't_time", "parameters": {}}')
    assert state.finished


def test_a_name_that_is_no_tools_leaves_a_lazy_grammar_waiting(other_compiler: GrammarCompiler, other: Any) -> None:
    state = other_compiler.compile(tool_grammar(ToolFormat.LLAMA3, [SET], choice="auto", parallel=False))
    state.accept(other._pieces.index(b'{"name": "ge'))
    assert not state.active


def test_json_that_an_answer_quotes_begins_no_call(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    state = compiler.compile(tool_grammar(ToolFormat.LLAMA3, [TIME], choice="auto", parallel=True))
    assert read(state, vocabulary, 'For example {"name": "Ada"}')
    assert not state.active


@pytest.mark.parametrize("text", ['{"name": "get_time", "parameters": {}}', '{"name":"get_time", "parameters": {}}'])
@pytest.mark.parametrize("lead", ["", "\n", "<|python_tag|>", "<|python_tag|>\n"])
def test_a_bare_call_is_held_to_its_schema_however_it_begins(
    compiler: GrammarCompiler, vocabulary: Vocabulary, lead: str, text: str
) -> None:
    state = compiler.compile(tool_grammar(ToolFormat.LLAMA3, [TIME], choice="auto", parallel=False))
    assert read(state, vocabulary, lead + text)
    assert state.active
    assert state.finished


def test_a_schema_waits_until_reasoning_that_the_prompt_opened_is_over(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    state = compiler.compile(response_grammar({"enum": ["on"]}), reasoning=THINK, reasoning_open=True)
    assert read(state, vocabulary, 'perhaps "off"?')
    assert not state.active
    assert read(state, vocabulary, "</think>")
    assert state.active
    assert not state.clone().allows(vocabulary.tokenize("off", add_special=False, parse_special=False)[0])
    assert read(state, vocabulary, '"on"')
    assert state.finished


def test_a_schema_holds_at_once_where_the_prompt_opened_no_reasoning(compiler: GrammarCompiler) -> None:
    assert compiler.compile(response_grammar({"enum": ["on"]}), reasoning=THINK, reasoning_open=False).active


@pytest.mark.parametrize("text", ["@@<tool_call>@@", 'a@@x"@@b', "%json {}", "@@[ARGS]@@ %json {"])
def test_a_schemas_text_is_never_read_as_grammar(compiler: GrammarCompiler, vocabulary: Vocabulary, text: str) -> None:
    tool = ToolSpec("get", {"type": "object", "properties": {"q": {"const": text}}, "required": ["q"]})
    state = compiler.compile(tool_grammar(ToolFormat.HERMES, [tool], choice="required", parallel=False))
    call = json.dumps({"name": "get", "arguments": {"q": text}})
    for token in vocabulary.tokenize("<tool_call>", add_special=False, parse_special=True):
        state.accept(token)
    assert state._matcher.try_consume_tokens(state._tokenizer.greedy_tokenize(call)) > 0
    assert state._matcher.is_accepting() or read(state, vocabulary, "</tool_call>")


def test_only_single_spaces_pad_an_answer(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    for text, allowed in {'{"a": 1}': True, '{"a":1}': True, '{"a":  1}': False, '{ "a": 1}': False}.items():
        assert read(compiler.compile(response_grammar(ANY_OBJECT)), vocabulary, text) == allowed


def test_clones_go_their_own_ways(compiler: GrammarCompiler, vocabulary: Vocabulary) -> None:
    first = compiler.compile(response_grammar({"enum": ["on", "off"]}))
    second = first.clone()
    for token in vocabulary.tokenize('"on"', add_special=False, parse_special=False):
        first.accept(token)
    assert first.finished
    assert not second.finished
    assert second.mask().sum() > 0
