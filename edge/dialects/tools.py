"""Tool calls: which form a model family writes them in, and the grammar that keeps a call well-formed.

Forms: Hermes and Qwen (`<tool_call>{"name": .., "arguments": {..}}</tool_call>`; the built-in model too), Llama 3 (bare
`{"name": .., "parameters": {..}}`), Mistral (`[TOOL_CALLS][{..}]`, and since v11 `[TOOL_CALLS]name[ARGS]{..}`).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ",[ ]?",
    "key_separator": ":[ ]?",
    # Not \\uXXXX: in a name that the schema leaves open it could spell one that the schema declares.
    "json_allowed_escapes": 'nrbtf\\"',
}
"""How llguidance writes JSON: compactly, and every text in one spelling."""


class ToolFormat(enum.StrEnum):
    """The form that a family's models write tool calls in."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral-args"


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as the client offered it: its name and the JSON schema of its arguments."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """What an answer must look like. Crosses the pipe.

    `lark` sources may hold `@@text@@` for markers: the compiler turns them into the vocabulary's control token of that
    text where there is one, into plain text otherwise. Each `%json` ends its line, and is left as it is. `trigger`: the
    grammar begins after this text; None: at once. With a `lead`, the trigger counts only where the answer begins or
    right behind the lead (white space aside); without one, anywhere.
    """

    kind: Literal["json_schema", "lark"]
    source: str
    trigger: str | None = None
    lead: str | None = None


class UnsupportedSchema(ValueError):
    """A JSON schema that cannot be enforced; the text names the keyword or the fault."""


def detect_tool_format(template_source: str) -> ToolFormat | None:
    """The form that a chat template shows, None if it knows no tools (or a form that we do not parse)."""
    if "tools" not in template_source:
        return None
    if "[TOOL_CALLS]" in template_source:
        return ToolFormat.MISTRAL_ARGS if "[ARGS]" in template_source else ToolFormat.MISTRAL
    if "<tool_call>" in template_source and "<arg_key>" not in template_source and "<function=" not in template_source:
        return ToolFormat.HERMES
    if '"parameters"' in template_source and ("<|python_tag|>" in template_source or "ipython" in template_source):
        return ToolFormat.LLAMA3
    return None


_VISIBLE = {
    ToolFormat.HERMES: ("<tool_call>", "</tool_call>"),
    ToolFormat.LLAMA3: ("<|python_tag|>",),
    ToolFormat.MISTRAL: ("[TOOL_CALLS]",),
    ToolFormat.MISTRAL_ARGS: ("[TOOL_CALLS]", "[ARGS]"),
}


def visible_tokens(fmt: ToolFormat) -> tuple[str, ...]:
    """Markers that belong into the answer's text even where they are control tokens."""
    return _VISIBLE[fmt]


_BARE_HEAD = '{"name":'
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def response_grammar(schema: dict[str, Any]) -> GrammarSpec:
    """Grammar of `response_format`: a schema's instances (ANY_OBJECT for json_object)."""
    return GrammarSpec("json_schema", json.dumps(schema))


def tool_grammar(
    fmt: ToolFormat, tools: Sequence[ToolSpec], *, choice: str, parallel: bool, answer: dict[str, Any] | None = None
) -> GrammarSpec:
    """Grammar of an answer's calls. `choice`: auto (from the first marker on), required, or a tool's name (at once).

    The tools' names are fixed and the arguments follow their schemas; `parallel` allows several calls. With `auto`
    and a schema as `answer`, what is no call must be an instance of that schema.
    """
    offered = [t for t in tools if choice in ("auto", "required") or t.name == choice]
    single = not parallel or choice not in ("auto", "required")
    if choice == "auto" and answer is not None:
        calls = tool_grammar(fmt, tools, choice="required", parallel=parallel)
        start, rest = calls.source.split("\n", 1)
        schema = json.dumps({**answer, "x-guidance": JSON_STYLE})
        return GrammarSpec("lark", f"{start} | answer\nanswer: %json {schema}\n{rest}")
    at_once = choice != "auto"
    match fmt:
        case ToolFormat.HERMES:
            return _hermes(offered, single=single, at_once=at_once)
        case ToolFormat.LLAMA3:
            return _llama3(offered, single=single, at_once=at_once)
        case ToolFormat.MISTRAL:
            return _mistral(offered, single=single, at_once=at_once)
        case ToolFormat.MISTRAL_ARGS:
            return _mistral_args(offered, single=single, at_once=at_once)


def _hermes(tools: Sequence[ToolSpec], *, single: bool, at_once: bool) -> GrammarSpec:
    first = "@@<tool_call>@@ call" if at_once else "call"
    start = first if single else f"{first} (WS @@<tool_call>@@ call)*"
    calls = [
        f"WS {_quoted(_head(t.name, 'arguments'))} args_{i} {_quoted('}')} WS @@</tool_call>@@"
        for i, t in enumerate(tools)
    ]
    return _lark(start, calls, tools, None if at_once else "<tool_call>")


def _llama3(tools: Sequence[ToolSpec], *, single: bool, at_once: bool) -> GrammarSpec:
    heads = [_head(t.name, "parameters") for t in tools]
    calls = [f"{_quoted(h)} args_{i} {_quoted('}')}" for i, h in enumerate(heads)]
    more = "" if single else f" ({_quoted(';')} WS call)*"
    if at_once:
        return _lark(f"call{more}", calls, tools, None)
    # The bare form has no marker, and JSON that an answer quotes may well have a "name": so only text that begins with
    # a call's head is held to be one, as the parser does.
    rest = [f"WS {_quoted(h.removeprefix(_BARE_HEAD).lstrip())} args_{i} {_quoted('}')}" for i, h in enumerate(heads)]
    return _lark(f"({' | '.join(rest)}){more}", calls, tools, _BARE_HEAD, lead="<|python_tag|>")


def _mistral(tools: Sequence[ToolSpec], *, single: bool, at_once: bool) -> GrammarSpec:
    calls = [f"{_quoted(_head(t.name, 'arguments'))} args_{i} {_quoted('}')}" for i, t in enumerate(tools)]
    more = "" if single else f" ({_quoted(', ')} call)*"
    marker = "@@[TOOL_CALLS]@@ WS " if at_once else "WS "
    return _lark(f"{marker}{_quoted('[')} call{more} {_quoted(']')}", calls, tools, None if at_once else "[TOOL_CALLS]")


def _mistral_args(tools: Sequence[ToolSpec], *, single: bool, at_once: bool) -> GrammarSpec:
    calls = [f"{_quoted(t.name)} @@[ARGS]@@ args_{i}" for i, t in enumerate(tools)]
    more = "" if single else " (@@[TOOL_CALLS]@@ call)*"
    return _lark(
        f"{'@@[TOOL_CALLS]@@ ' if at_once else ''}call{more}", calls, tools, None if at_once else "[TOOL_CALLS]"
    )


def _head(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{key}": '


def _quoted(text: str) -> str:
    return json.dumps(text)


def _lark(
    start: str, calls: list[str], tools: Sequence[ToolSpec], trigger: str | None, lead: str | None = None
) -> GrammarSpec:
    lines = [f"start: {start}", f"call: {' | '.join(f'call_{i}' for i in range(len(calls)))}"]
    lines += [f"call_{i}: {body}" for i, body in enumerate(calls)]
    lines += [f"args_{i}: %json {json.dumps(arguments_schema(t))}" for i, t in enumerate(tools)]
    lines.append("WS: /[ \\n]{0,2}/")
    return GrammarSpec("lark", "\n".join(lines), trigger, lead)


def arguments_schema(tool: ToolSpec) -> dict[str, Any]:
    """The schema that a tool's arguments are held to: an object, written compactly."""
    schema = tool.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    return {"type": "object", **schema, "x-guidance": JSON_STYLE}
