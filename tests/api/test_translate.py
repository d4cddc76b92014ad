"""Requests for models of other dialects than the built-in one: what is refused, and by which name."""

from dataclasses import replace
from typing import Any

import pytest

from edge.api.schema import ChatRequest, CompletionRequest
from edge.api.translate import Dialect, chat_work, completion_work
from edge.api.unsupported import REFUSED
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import ToolFormat, response_grammar
from edge.errors import InvalidRequest, UnsupportedParameter
from edge.messages import ChatPrompt

PLAIN = Dialect(None, None)
QWEN = Dialect(ToolFormat.HERMES, ReasoningTags("<think>", "</think>"))
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def request(**fields: Any) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})


def test_tools_are_refused_where_the_model_has_no_form_for_them() -> None:
    with pytest.raises(UnsupportedParameter, match="no tool format") as refused:
        chat_work(request(tools=[TOOL]), PLAIN)
    assert refused.value.param == "tools"


def test_tools_that_may_not_be_called_do_not_matter() -> None:
    work = chat_work(request(tools=[TOOL], tool_choice="none"), PLAIN)
    assert work.tool_names == frozenset()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_every_field_that_cannot_be_honoured_is_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=f"`{name}`") as refused:
        chat_work(request(**{name: "something"}), QWEN)
    assert refused.value.param == name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_their_neutral_values_pass(name: str) -> None:
    for neutral in REFUSED[name][1]:
        chat_work(request(**{name: neutral}), QWEN)


@pytest.mark.parametrize("name", ["enable_thinking", "skip_special_tokens"])
def test_a_switch_that_is_off_is_not_nothing(name: str) -> None:
    with pytest.raises(UnsupportedParameter, match=name):
        chat_work(request(**{name: False}), QWEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("response_format", {"type": "json_object"}), ("tools", [TOOL]), ("max_completion_tokens", 3)],
)
def test_fields_of_the_chat_route_are_refused_on_the_plain_one(name: str, value: Any) -> None:
    body = CompletionRequest.model_validate({"model": "m", "prompt": "x", name: value})
    with pytest.raises(UnsupportedParameter, match="/v1/chat/completions") as refused:
        completion_work(body)
    assert refused.value.param == name


@pytest.mark.parametrize(("name", "value"), [("prompt", "x"), ("echo", True), ("best_of", 2)])
def test_fields_of_the_plain_route_are_refused_on_the_chat_one(name: str, value: Any) -> None:
    with pytest.raises(UnsupportedParameter, match=f"`{name}`"):
        chat_work(request(**{name: value}), QWEN)


def test_a_schema_beside_json_object_is_followed() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    work = chat_work(request(response_format={"type": "json_object", "schema": schema}), PLAIN)
    assert work.submit.grammar == response_grammar(schema)


def test_fields_that_nobody_knows_are_accepted() -> None:
    chat_work(request(x_vendor_note={"a": 1}), QWEN)


def template_kwargs(dialect: Dialect, **fields: Any) -> dict[str, Any]:
    prompt = chat_work(request(**fields), dialect).submit.prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.template_kwargs


def test_template_arguments_and_effort_reach_the_prompt() -> None:
    given = {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}
    levels = replace(QWEN, takes_effort=True)
    assert template_kwargs(levels, **given) == {"reasoning_effort": "low", "enable_thinking": True}


def test_effort_is_honoured_as_far_as_the_model_can_and_else_refused() -> None:
    assert template_kwargs(PLAIN, reasoning_effort="none") == {}
    assert template_kwargs(QWEN, reasoning_effort="none") == {"enable_thinking": False}
    for dialect in (PLAIN, QWEN):
        with pytest.raises(UnsupportedParameter, match="levels of reasoning"):
            chat_work(request(reasoning_effort="high"), dialect)


def test_markers_of_the_family_are_made_visible_only_with_tools() -> None:
    assert chat_work(request(), QWEN).submit.visible_tokens == ()
    assert "<tool_call>" in chat_work(request(tools=[TOOL]), QWEN).submit.visible_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": [{"role": "user", "content": "a"}], "continue_final_message": True}, "messages"),
        ({"messages": [{"role": "tool"}]}, "messages[0].content"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "messages[0].tool_calls",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat_work(request(**fields), QWEN)
    assert refused.value.param == param
