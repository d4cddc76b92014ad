"""Requests for models of other dialects than the built-in one: what is refused, and by which name."""

from typing import Any

import pytest

from edge.api.schema import REFUSED, ChatRequest
from edge.api.translate import Dialect, chat_work
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import ToolFormat
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
    for neutral in (None, False, 0, []):
        chat_work(request(**{name: neutral}), QWEN)


def test_fields_that_nobody_knows_are_accepted() -> None:
    chat_work(request(x_vendor_note={"a": 1}), QWEN)


def test_template_arguments_and_effort_reach_the_prompt() -> None:
    work = chat_work(request(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low"), QWEN)
    assert isinstance(work.submit.prompt, ChatPrompt)
    assert work.submit.prompt.template_kwargs == {"reasoning_effort": "low", "enable_thinking": False}
    assert work.reasoning == QWEN.reasoning


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
