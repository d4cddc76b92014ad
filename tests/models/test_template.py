"""The built-in model's chat template, rendered by the node's own sandbox."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from edge.dialects.template import ChatTemplate, TemplateError
from models.recipe.catalogue import CATALOGUE
from models.recipe.dialogues import dialogue
from models.recipe.render import TEMPLATE_PATH, Renderer
from models.recipe.requests import Speaker

ARGUMENTS = {"device": "pump 3", "quantity": "speed", "value": 40, "unit": "percent"}
WRITTEN = '<tool_call>{"name": "set_value", "arguments": ' + json.dumps(ARGUMENTS) + "}</tool_call>"
USER = {"role": "user", "content": "set pump 3 to 40 percent"}


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE_PATH.read_text("utf-8"), bos="", eos="<|end|>")


def calling(arguments: Any, content: Any = None) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": "set_value", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def rendered(template: ChatTemplate, *messages: dict[str, Any], tools: Any = None, generation: bool = False) -> str:
    return template.render(list(messages), tools=tools, add_generation_prompt=generation)


def test_each_role_has_its_token(template: ChatTemplate) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
        {"role": "tool", "content": "T", "tool_call_id": "call_1"},
    ]
    assert rendered(template, *messages, generation=True) == (
        "<|system|>S<|end|><|user|>U<|end|><|assistant|>A<|end|><|tool|>T<|end|><|assistant|>"
    )


def test_turns_of_one_role_may_follow_each_other(template: ChatTemplate) -> None:
    assert rendered(template, USER, USER).count("<|user|>") == 2


def test_system_and_developer_messages_come_first_and_together(template: ChatTemplate) -> None:
    text = rendered(template, {"role": "system", "content": "a"}, USER, {"role": "developer", "content": "b"})
    assert text.startswith("<|system|>a\nb<|end|><|user|>")


def test_no_system_part_without_need(template: ChatTemplate) -> None:
    assert rendered(template, USER, generation=True) == f"<|user|>{USER['content']}<|end|><|assistant|>"


def test_tools_cost_few_characters(template: ChatTemplate) -> None:
    text = rendered(template, USER, tools=list(CATALOGUE))
    assert text.startswith("<|system|>tools: set_value(device, quantity, value, unit), read_value(device, quantity), ")
    assert "get_time()" in text
    assert "description" not in text
    assert len(text) < 400


def test_tools_come_after_the_system_prompt(template: ChatTemplate) -> None:
    text = rendered(template, {"role": "system", "content": "You are Max."}, USER, tools=list(CATALOGUE[:1]))
    assert text.startswith("<|system|>You are Max.\ntools: set_value(device, quantity, value, unit)<|end|>")


def test_a_tool_without_parameters_is_named(template: ChatTemplate) -> None:
    tool = {"type": "function", "function": {"name": "ping"}}
    assert "tools: ping()<|end|>" in rendered(template, USER, tools=[tool])


@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS)])
@pytest.mark.parametrize("content", [None, ""])
def test_calls_are_written_as_the_model_writes_them(template: ChatTemplate, arguments: Any, content: Any) -> None:
    text = rendered(template, USER, calling(arguments, content))
    assert text.endswith(f"<|assistant|>{WRITTEN}<|end|>")


def test_several_calls_stand_side_by_side(template: ChatTemplate) -> None:
    message = calling(json.dumps(ARGUMENTS))
    message["tool_calls"] *= 2
    assert rendered(template, USER, message).endswith(f"<|assistant|>{WRITTEN}{WRITTEN}<|end|>")


def test_content_in_parts_is_joined(template: ChatTemplate) -> None:
    parts = [{"type": "text", "text": "stop "}, {"type": "text", "text": "fan 2"}]
    assert "<|user|>stop fan 2<|end|>" in rendered(template, {"role": "user", "content": parts})


def test_an_unknown_role_is_refused(template: ChatTemplate) -> None:
    with pytest.raises(TemplateError, match="unknown role narrator"):
        rendered(template, {"role": "narrator", "content": "x"})


def test_the_node_sees_that_tools_are_supported(template: ChatTemplate) -> None:
    assert template.supports_tools


def test_the_node_renders_what_the_model_was_trained_on(template: ChatTemplate) -> None:
    said, renderer = Speaker(random.Random(31), evaluation=False), Renderer()
    for made in (dialogue(said, long_share=0.05) for _ in range(300)):
        mine = template.render(made.messages, tools=made.tools or None, add_generation_prompt=False)
        assert mine == renderer.text(made.messages, made.tools)
