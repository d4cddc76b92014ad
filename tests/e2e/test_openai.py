"""The official client, with strict response validation, against a real node on the built-in model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from models.recipe.prose import NO_TOOL, UNKNOWN

MODEL = "edge-builtin"
TOOLS = json.loads((Path(__file__).resolve().parents[2] / "models/builtin/tools.json").read_text())
HELLO = [{"role": "user", "content": "hello"}]
PUMPS = [{"role": "user", "content": "tell me about pumps"}]
ORDER = [{"role": "user", "content": "Start pump 3 and set the speed of fan 2 to 40 percent."}]
WANTED = [
    ("start_device", {"device": "pump 3"}),
    ("set_value", {"device": "fan 2", "quantity": "speed", "value": 40, "unit": "percent"}),
]
READING = {
    "type": "object",
    "properties": {
        "device": {"type": "string"},
        "value": {"type": "number"},
        "unit": {"enum": ["percent", "celsius", "bar"]},
    },
    "required": ["device", "value", "unit"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def client(base_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0, _strict_response_validation=True)


def ask(client: openai.OpenAI, messages: list[Any], **options: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": messages, "temperature": 0, **options})


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "edge"


def test_a_question_is_answered_sensibly(client: openai.OpenAI) -> None:
    answer = ask(client, [{"role": "user", "content": "Who are you?"}])
    assert "built-in model" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.system_fingerprint.startswith("fp_")


def test_what_it_does_not_know_it_says(client: openai.OpenAI) -> None:
    answer = ask(client, [{"role": "user", "content": "What is the capital of France?"}])
    # Which of the two it says is a near-tie, and INT4 arithmetic differs from one kind of processor to the next.
    assert answer.choices[0].message.content.startswith((UNKNOWN, NO_TOOL))


def test_a_stream_is_the_same_text_in_well_formed_chunks(client: openai.OpenAI) -> None:
    chunks = list(ask(client, PUMPS, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == ask(client, PUMPS).choices[0].message.content
    assert len(chunks) > 20
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert [c.choices[0].delta.role for c in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert chunks[-1].choices[0].delta.content is None
    assert all(c.usage is None for c in chunks)


def test_usage_in_a_stream_comes_in_one_extra_chunk(client: openai.OpenAI) -> None:
    chunks = list(ask(client, HELLO, stream=True, stream_options={"include_usage": True}))
    assert [c.choices == [] for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].usage.completion_tokens == ask(client, HELLO).usage.completion_tokens


def test_tools_are_called_and_their_results_are_told(client: openai.OpenAI) -> None:
    choice = ask(client, ORDER, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == WANTED
    question = [{"role": "user", "content": "What is the pressure of boiler 2?"}]
    asked = ask(client, question, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": asked.tool_calls[0].id, "content": '{"value": 7.4, "unit": "bar"}'}
    told = ask(client, [*question, asked.model_dump(exclude_none=True), result], tools=TOOLS).choices[0].message.content
    assert told == "The pressure of boiler 2 is 7.4 bar."


def test_tool_calls_stream_id_and_name_once_then_pieces_of_arguments(client: openai.OpenAI) -> None:
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    last = None
    for chunk in ask(client, ORDER, tools=TOOLS, stream=True):
        last = chunk.choices[0].finish_reason
        for call in chunk.choices[0].delta.tool_calls or []:
            if call.id is not None:
                assert call.index not in names
                assert call.type == "function"
                names[call.index] = call.function.name
            arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
    assert last == "tool_calls"
    assert [(names[i], json.loads(arguments[i])) for i in sorted(names)] == WANTED


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", None),
        ("required", {t["function"]["name"] for t in TOOLS}),
        ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
    ],
)
def test_tool_choice_is_obeyed(client: openai.OpenAI, choice: Any, expected: set[str] | None) -> None:
    message = ask(client, HELLO, tools=TOOLS, tool_choice=choice).choices[0].message
    if expected is None:
        assert message.tool_calls is None
    else:
        assert {c.function.name for c in message.tool_calls} <= expected
        assert all(isinstance(json.loads(c.function.arguments), dict) for c in message.tool_calls)


def test_a_tool_call_that_is_cut_short_is_length(client: openai.OpenAI) -> None:
    assert ask(client, ORDER, tools=TOOLS, max_tokens=12).choices[0].finish_reason == "length"


def test_parallel_tool_calls_false_gives_one(client: openai.OpenAI) -> None:
    assert len(ask(client, ORDER, tools=TOOLS, parallel_tool_calls=False).choices[0].message.tool_calls) == 1


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    request = [
        {"role": "user", "content": "Give device, value and unit as JSON: set the level of tank 3 to 40 percent"}
    ]
    form = {"type": "json_schema", "json_schema": {"name": "reading", "schema": READING, "strict": True}}
    assert json.loads(ask(client, request, response_format=form).choices[0].message.content) == {
        "device": "tank 3",
        "value": 40,
        "unit": "percent",
    }


def test_json_object_and_tools_together_with_a_schema(client: openai.OpenAI) -> None:
    request = [{"role": "user", "content": "Return device and value as JSON: set the level of tank 3 to 40 percent"}]
    assert isinstance(
        json.loads(ask(client, request, response_format={"type": "json_object"}).choices[0].message.content), dict
    )
    form = {"type": "json_schema", "json_schema": {"name": "reading", "schema": READING}}
    message = ask(client, ORDER, tools=TOOLS, response_format=form).choices[0].message
    assert message.tool_calls or set(json.loads(message.content)) == set(READING["required"])


def test_logprobs_in_chat_and_in_plain_completions(client: openai.OpenAI) -> None:
    choice = ask(client, HELLO, logprobs=True, top_logprobs=3).choices[0]
    entries = choice.logprobs.content
    assert "".join(e.token for e in entries) == choice.message.content
    assert all(len(e.top_logprobs) == 3 and e.logprob <= 0 and bytes(e.bytes).decode() == e.token for e in entries)
    bare = ask(client, HELLO, logprobs=True).choices[0].logprobs.content
    assert [e.token for e in bare] == [e.token for e in entries]
    assert all(e.top_logprobs == [] for e in bare)
    plain = client.completions.create(model=MODEL, prompt="Pump 3 is", max_tokens=6, temperature=0, logprobs=2).choices[
        0
    ]
    assert "".join(plain.logprobs.tokens) == plain.text
    assert plain.logprobs.text_offset[0] == 0
    assert all(len(t) == 2 for t in plain.logprobs.top_logprobs)
    zero = client.completions.create(model=MODEL, prompt="Pump 3 is", max_tokens=2, temperature=0, logprobs=0).choices[
        0
    ]
    assert zero.logprobs.tokens == plain.logprobs.tokens[:2]


def test_streamed_logprobs_are_the_same(client: openai.OpenAI) -> None:
    whole = ask(client, HELLO, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    streamed = [
        e
        for c in ask(client, HELLO, logprobs=True, top_logprobs=1, stream=True)
        if c.choices[0].logprobs
        for e in c.choices[0].logprobs.content
    ]
    assert [e.token for e in streamed] == [e.token for e in whole]


def test_n_answers_come_with_their_indexes(client: openai.OpenAI) -> None:
    answer = ask(client, HELLO, n=3, temperature=1.3, seed=4)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    chunks = list(ask(client, HELLO, n=3, temperature=1.3, seed=4, stream=True))
    for index in range(3):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert [c.finish_reason for c in mine if c.finish_reason] == ["stop"]
        assert "".join(c.delta.content or "" for c in mine) == answer.choices[index].message.content


def test_stop_strings_end_an_answer_and_never_leak(client: openai.OpenAI) -> None:
    whole = ask(client, PUMPS).choices[0].message.content
    for stop in (". ", "liquid. Its speed", ["never written", "flow:"]):
        cut = min(whole.index(s) for s in ([stop] if isinstance(stop, str) else stop) if s in whole)
        answer = ask(client, PUMPS, stop=stop).choices[0]
        assert answer.message.content == whole[:cut]
        assert answer.finish_reason == "stop"
        streamed = "".join(c.choices[0].delta.content or "" for c in ask(client, PUMPS, stop=stop, stream=True))
        assert streamed == whole[:cut]


def test_a_seed_makes_a_draw_repeatable(client: openai.OpenAI) -> None:
    texts = [
        ask(client, HELLO, temperature=2, seed=s, max_tokens=20, extra_body={"ignore_eos": True})
        .choices[0]
        .message.content
        for s in (7, 7, 8)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_max_tokens_ends_with_length(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(client, PUMPS, **{name: 5})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 5)


def test_extensions_are_accepted(client: openai.OpenAI) -> None:
    extra = {
        "top_k": 5,
        "min_p": 0.05,
        "repeat_penalty": 1.1,
        "ignore_eos": True,
        "cache_prompt": False,
        "chat_template_kwargs": {"x": 1},
    }
    answer = ask(client, HELLO, temperature=1, max_tokens=40, extra_body=extra)
    assert answer.usage.completion_tokens == 40


def test_every_optional_field_may_be_null(client: openai.OpenAI) -> None:
    names = (
        "max_tokens max_completion_tokens temperature top_p n stop stream stream_options seed logprobs top_logprobs "
        "tools tool_choice response_format presence_penalty frequency_penalty logit_bias user service_tier metadata "
        "store modalities audio functions"
    )
    nothing: Any = dict.fromkeys(names.split())
    client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=nothing)


def test_plain_completions_take_lists_tokens_and_echo(client: openai.OpenAI) -> None:
    two = client.completions.create(model=MODEL, prompt=["Pump 3 is", "Alarm"], n=2, max_tokens=3, temperature=0)
    assert [c.index for c in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == two.choices[1].text
    echoed = client.completions.create(model=MODEL, prompt="Pump 3 is", max_tokens=3, temperature=0, echo=True)
    assert echoed.choices[0].text.endswith("Pump 3 is" + two.choices[0].text)
    # The client's own type wants a finish reason in every streamed chunk, which not even OpenAI sends.
    loose = openai.OpenAI(base_url=client.base_url, api_key="any", max_retries=0)
    streamed = loose.completions.create(
        model=MODEL, prompt=["Pump 3 is", "Alarm"], max_tokens=3, temperature=0, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in streamed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: two.choices[0].text, 1: two.choices[2].text}


def test_an_answer_can_be_continued(client: openai.OpenAI) -> None:
    whole = ask(client, PUMPS).choices[0].message.content
    begun = whole[:40].rsplit(" ", 1)[0]
    rest = ask(
        client,
        [*PUMPS, {"role": "assistant", "content": begun}],
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert (begun + rest.choices[0].message.content)[:60] == whole[:60]


TEN_THOUSAND = [{"role": "user", "content": "pump " * 10_000}]


@pytest.mark.parametrize(
    ("options", "error", "code", "param"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"messages": TEN_THOUSAND}, openai.BadRequestError, "context_length_exceeded", "messages"),
        ({"max_tokens": -1}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"temperature": "hot"}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"n": 100_000}, openai.BadRequestError, "invalid_value", "n"),
        ({"top_logprobs": 2}, openai.BadRequestError, "invalid_value", "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, "invalid_value", "stream_options"),
        ({"logit_bias": {"abc": 1}}, openai.BadRequestError, "invalid_value", "logit_bias"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "invalid_value", "logit_bias"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        ({"tool_choice": "required"}, openai.BadRequestError, "invalid_value", "tool_choice"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, openai.BadRequestError, "unsupported_parameter", "functions"),
        ({"extra_body": {"guided_regex": "a+"}}, openai.BadRequestError, "unsupported_parameter", "guided_regex"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            openai.BadRequestError,
            "unsupported_parameter",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            openai.BadRequestError,
            "unsupported_parameter",
            "messages[0].content",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            openai.BadRequestError,
            "unsupported_schema",
            "response_format",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("stream", [False, True])
def test_each_wrong_request_is_the_clients_right_exception(
    client: openai.OpenAI,
    options: dict[str, Any],
    error: type[openai.APIStatusError],
    code: str,
    param: str,
    stream: bool,
) -> None:
    if stream and "stream_options" in options:
        return
    with pytest.raises(error) as caught:
        ask(
            client,
            options.get("messages", HELLO),
            stream=stream,
            **{k: v for k, v in options.items() if k != "messages"},
        )
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["code"], body["param"]) == (code, param)
    assert caught.value.response.headers["x-edge-reason"] == code


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.moderations.create(input="x"),
        lambda c: c.images.generate(prompt="x"),
    ],
)
def test_routes_that_are_not_there_are_404(client: openai.OpenAI, call: Callable[[openai.OpenAI], Any]) -> None:
    with pytest.raises(openai.NotFoundError):
        call(client)
