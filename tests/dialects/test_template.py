"""Templates of the families, in short: what each trait asks of the renderer."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge.dialects.reasoning import ReasoningTags, detect_reasoning, prompt_opens_reasoning
from edge.dialects.template import DEFAULT_CHATML, ChatTemplate, TemplateError
from edge.dialects.tools import ToolFormat, detect_tool_format
from tests.dialects.families import DEEPSEEK_R1, GEMMA, LLAMA3, MISTRAL_V3, MISTRAL_V13, QWEN

BUILTIN = (Path(__file__).resolve().parents[2] / "models/recipe/template.jinja").read_text()
ARGUMENTS_FILTERED = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"
)
ARGUMENTS_PLAIN = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}({{ c.function.arguments }}){% endfor %}{% endfor %}"
)
USER = {"role": "user", "content": "hi"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>", now=lambda: datetime(2026, 11, 24, tzinfo=UTC))


def call(arguments: str) -> dict[str, Any]:
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


def test_chatml_is_the_form_for_files_without_a_template() -> None:
    text = template(DEFAULT_CHATML).render([USER], tools=None)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_the_built_in_template_renders_every_role_and_tools() -> None:
    tools = [{"type": "function", "function": {"name": "g", "parameters": {"properties": {"a": {}, "b": {}}}}}]
    messages = [
        {"role": "system", "content": "be short"},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call('{"a": 1}')]},
        {"role": "tool", "tool_call_id": "c", "content": "3"},
    ]
    assert template(BUILTIN).render(messages, tools=tools) == (
        "<s><|system|>be short\ntools: g(a, b)<|end|><|user|>hi<|end|>"
        '<|assistant|><tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call><|end|><|tool|>3<|end|><|assistant|>'
    )


def test_whether_a_template_knows_tools_is_found_out_by_trying() -> None:
    assert template(BUILTIN).supports_tools
    assert not template(DEFAULT_CHATML).supports_tools


def test_arguments_become_a_mapping_where_the_template_serialises_them() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call('{"a": "ü"}')]}
    assert '<tool_call>{"a": "ü"}</tool_call>' in template(ARGUMENTS_FILTERED).render([message], tools=None)


def test_arguments_stay_text_where_the_template_prints_them() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call('{"a": true}')]}
    assert template(ARGUMENTS_PLAIN).render([message], tools=None) == '({"a": true})'


def test_text_parts_are_joined_and_none_is_empty() -> None:
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert template(source).render([parts, {"role": "assistant", "content": None}], tools=None) == "[ab][]"


def test_developer_is_system_for_templates_that_do_not_know_it() -> None:
    source = "{% for m in messages %}{{ m.role }}{% endfor %}"
    assert template(source).render([{"role": "developer", "content": "x"}], tools=None) == "system"


def test_an_answer_is_continued_from_the_end_of_its_text() -> None:
    messages = [USER, {"role": "assistant", "content": "The pump is "}]
    text = template(DEFAULT_CHATML).render(messages, tools=None, continue_final=True)
    assert text.endswith("assistant\nThe pump is")


@pytest.mark.parametrize("content", ["<", "</s", "im_end", "a |", "assistant"])
def test_text_that_end_tokens_contain_is_continued_at_its_own_place(content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    text = template(DEFAULT_CHATML).render(messages, tools=None, continue_final=True)
    assert text == f"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n{content}"


def test_a_message_without_text_cannot_be_continued() -> None:
    with pytest.raises(TemplateError, match="no text that could be continued"):
        template(DEFAULT_CHATML).render([USER, {"role": "assistant", "content": " "}], tools=None, continue_final=True)


def test_a_template_that_hides_the_last_message_cannot_continue_it() -> None:
    with pytest.raises(TemplateError, match="cannot be continued"):
        template("{{ messages[0].content }}").render(
            [USER, {"role": "assistant", "content": "x"}], tools=None, continue_final=True
        )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (QWEN, '<tool_call>\n{"name": "f", "arguments": {"a": "ü"}}\n</tool_call>'),
        (LLAMA3, '{"name": "f", "parameters": {"a": "ü"}}<|eot_id|>'),
        (MISTRAL_V3, '[TOOL_CALLS] [{"name": "f", "arguments": {"a": "ü"}, "id": "'),
        (MISTRAL_V13, '[TOOL_CALLS]f[ARGS]{"a": "ü"}</s>'),
    ],
)
def test_every_family_renders_an_earlier_call_and_its_result(source: str, expected: str) -> None:
    asked = {"id": "call_0123456789abcdef01234567", "type": "function"}
    messages = [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**asked, "function": {"name": "f", "arguments": '{"a": "ü"}'}}],
        },
        {"role": "tool", "tool_call_id": asked["id"], "content": "42"},
    ]
    text = template(source).render(messages, tools=[{"type": "function", "function": {"name": "f"}}])
    assert expected in text
    assert text.index("42") > text.index(expected)


def test_ids_of_any_length_fit_templates_that_want_nine_characters() -> None:
    calls = [
        {"id": i, "type": "function", "function": {"name": "f", "arguments": "{}"}} for i in ("call_1", "nine00001")
    ]
    messages = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    ]
    text = template(MISTRAL_V3).render(messages, tools=None)
    short = text.partition('"id": "')[2][:9]
    assert short.isalnum()
    assert f'"call_id": "{short}"' in text
    assert '"id": "nine00001"' in text


@pytest.mark.parametrize(
    ("source", "tools", "fmt", "reasons"),
    [
        (QWEN, True, ToolFormat.HERMES, True),
        (LLAMA3, True, ToolFormat.LLAMA3, False),
        (MISTRAL_V3, True, ToolFormat.MISTRAL, False),
        (MISTRAL_V13, True, ToolFormat.MISTRAL_ARGS, False),
        (DEEPSEEK_R1, False, None, True),
        (GEMMA, False, None, False),
    ],
)
def test_what_a_family_can_do_is_seen_from_its_template(
    source: str, tools: bool, fmt: ToolFormat | None, reasons: bool
) -> None:
    assert template(source).supports_tools == tools
    assert detect_tool_format(source) == fmt
    assert (detect_reasoning(source) is not None) == reasons


def test_a_prompt_that_opens_reasoning_is_told_from_one_that_closes_it() -> None:
    tags = ReasoningTags("<think>", "</think>")
    assert prompt_opens_reasoning(template(DEEPSEEK_R1).render([USER], tools=None), tags)
    closed = template(QWEN).render([USER], tools=None, kwargs={"enable_thinking": False})
    assert closed.endswith("</think>\n\n")
    assert not prompt_opens_reasoning(closed, tags)
    assert not prompt_opens_reasoning(template(QWEN).render([USER], tools=None), tags)


def test_a_family_that_refuses_a_role_says_so() -> None:
    with pytest.raises(TemplateError, match="System role not supported"):
        template(GEMMA).render([{"role": "system", "content": "x"}, USER], tools=None)


def test_kwargs_reach_the_template() -> None:
    source = "{% if enable_thinking %}think{% else %}answer{% endif %}"
    assert template(source).render([USER], tools=None, kwargs={"enable_thinking": True}) == "think"


def test_functions_that_authors_rely_on_are_there() -> None:
    source = "{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}{{ strftime_now('%Y') }}"
    assert template(source + "{% generation %}g{% endgeneration %}").render([USER], tools=None) == "12026g"


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(TemplateError, match="no system here"):
        template("{{ raise_exception('no system here') }}").render([USER], tools=None)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}xxxxxxxx{% endfor %}",
        "{{ 1 // 0 }}",
        "{{ messages[99].content.x }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ strftime_now(3) }}",
        "{{ messages | tojson(nonsense=1) }}",
    ],
)
def test_a_hostile_template_is_an_error_and_no_harm(source: str) -> None:
    with pytest.raises(TemplateError):
        template(source).render([USER], tools=None)


def test_a_template_with_a_syntax_error_is_refused_at_load() -> None:
    with pytest.raises(TemplateError, match="does not compile"):
        template("{% if %}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ tools }} <tool_call> </tool_call>", ToolFormat.HERMES),
        ('{{ tools }} {"name": function name, "parameters": dict} "parameters" <|python_tag|>', ToolFormat.LLAMA3),
        ("{{ tools }} [TOOL_CALLS]", ToolFormat.MISTRAL),
        ("{{ tools }} [TOOL_CALLS] [ARGS]", ToolFormat.MISTRAL_ARGS),
        ("{{ tools }} <tool_call> <arg_key>", None),
        (DEFAULT_CHATML, None),
    ],
)
def test_the_family_is_known_by_its_template(source: str, expected: ToolFormat | None) -> None:
    assert detect_tool_format(source) == expected
