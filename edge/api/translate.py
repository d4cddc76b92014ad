"""From a checked request body to what the engine is asked. Pure; raises InvalidRequest and UnsupportedParameter."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edge.api.schema import ChatMessage, ChatRequest, CompletionRequest, Generation, NamedTool, Tool
from edge.api.unsupported import refuse_unsupported
from edge.dialects.reasoning import ReasoningTags, detect_reasoning
from edge.dialects.tools import (
    ANY_OBJECT,
    GrammarSpec,
    ToolFormat,
    ToolSpec,
    detect_tool_format,
    response_grammar,
    tool_grammar,
    visible_tokens,
)
from edge.errors import InvalidRequest, UnsupportedParameter
from edge.messages import ChatPrompt, Prompt, Sampling, Submit, TextPrompt, TokenPrompt


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the loaded model writes; derived from its template once per load."""

    tool_format: ToolFormat | None
    reasoning: ReasoningTags | None
    takes_effort: bool = False
    """The template reads `reasoning_effort`."""

    @classmethod
    def of(cls, template: str) -> Dialect:
        """The dialect that a chat template shows."""
        return cls(detect_tool_format(template), detect_reasoning(template), "reasoning_effort" in template)


@dataclass(frozen=True, slots=True)
class ChatWork:
    """One chat request, ready for the engine, and how its answer is to be read."""

    submit: Submit
    tool_names: frozenset[str]
    tool_format: ToolFormat | None
    reasoning: ReasoningTags | None
    parallel: bool
    logprobs: bool


def chat_work(body: ChatRequest, dialect: Dialect) -> ChatWork:
    """Translate a chat request."""
    refuse_unsupported(body)
    _check_chat(body)
    tools, choice = _tools(body, dialect)
    parallel = body.parallel_tool_calls is not False
    grammar = _chat_grammar(body, dialect, tools, choice, parallel)
    fmt = dialect.tool_format if tools else None
    prompt = ChatPrompt(
        messages=chat_messages(body.messages),
        tools=[t.model_dump(exclude_none=True) for t in body.tools or ()] if tools else None,
        template_kwargs={**_effort(body, dialect), **(body.chat_template_kwargs or {})},
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=body.continue_final_message is True,
    )
    submit = _submit(
        body,
        prompt,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
        visible=visible_tokens(fmt) if fmt is not None else (),
    )
    names = frozenset(t.name for t in tools)
    return ChatWork(submit, names, fmt, dialect.reasoning, parallel, bool(body.logprobs))


def _effort(body: ChatRequest, dialect: Dialect) -> dict[str, Any]:
    """Template variables for `reasoning_effort`. Not to reason is what a model without reasoning does anyway."""
    effort = body.reasoning_effort
    if effort is None or (effort == "none" and dialect.reasoning is None):
        return {}
    if dialect.takes_effort:
        return {"reasoning_effort": effort}
    if effort == "none":
        return {"enable_thinking": False}
    raise UnsupportedParameter(
        "this model's chat template knows no levels of reasoning; leave `reasoning_effort` out",
        param="reasoning_effort",
    )


def completion_work(body: CompletionRequest) -> list[Submit]:
    """Translate a plain completion: one Submit per prompt."""
    refuse_unsupported(body)
    _check_stream(body)
    if body.best_of is not None and body.best_of > (body.n or 1):
        raise UnsupportedParameter("`best_of` is not supported: ask for `n` answers and choose", param="best_of")
    if body.echo and body.logprobs is not None:
        raise UnsupportedParameter("`echo` together with `logprobs` is not supported", param="echo")
    return [
        _submit(body, prompt, max_tokens=body.max_tokens or 16, top_logprobs=body.logprobs, echo=bool(body.echo))
        for prompt in _prompts(body.prompt)
    ]


def _prompts(prompt: str | list[Any]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [TextPrompt(prompt)]
    if isinstance(prompt[0], int):
        return [TokenPrompt(prompt)]
    return [TextPrompt(p) if isinstance(p, str) else TokenPrompt(p) for p in prompt]


def _submit(
    body: Generation,
    prompt: Prompt,
    *,
    max_tokens: int | None,
    top_logprobs: int | None,
    grammar: GrammarSpec | None = None,
    visible: tuple[str, ...] = (),
    echo: bool = False,
) -> Submit:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if any(not s for s in stop):
        raise InvalidRequest("a stop string is empty", param="stop")
    return Submit(
        request_id=0,
        prompt=prompt,
        sampling=_sampling(body),
        max_tokens=max_tokens,
        n=body.n or 1,
        stop=stop,
        top_logprobs=top_logprobs,
        grammar=grammar,
        ignore_eos=bool(body.ignore_eos),
        visible_tokens=visible,
        echo=echo,
        cache=body.cache_prompt is not False,
    )


def _sampling(body: Generation) -> Sampling:
    plain = Sampling()
    penalty = body.repeat_penalty if body.repeat_penalty is not None else body.repetition_penalty
    return Sampling(
        temperature=_or(body.temperature, plain.temperature),
        top_p=_or(body.top_p, plain.top_p),
        top_k=max(0, body.top_k or 0),
        min_p=_or(body.min_p, plain.min_p),
        repeat_penalty=_or(penalty, plain.repeat_penalty),
        presence_penalty=_or(body.presence_penalty, plain.presence_penalty),
        frequency_penalty=_or(body.frequency_penalty, plain.frequency_penalty),
        logit_bias=_bias(body.logit_bias),
        seed=body.seed % (1 << 32) if body.seed is not None else None,
    )


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _bias(given: dict[str, float] | None) -> dict[int, float]:
    bias: dict[int, float] = {}
    for key, value in (given or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest(f"the keys of `logit_bias` are token ids; {key[:20]!r} is none", param="logit_bias")
        # -100 and 100 mean a ban and an exclusive choice in OpenAI's definition; a bias of that size has that effect.
        bias[int(key)] = value
    return bias


def _check_stream(body: Generation) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("`stream_options` goes with `stream: true` only", param="stream_options")


def _check_chat(body: ChatRequest) -> None:
    _check_stream(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("`top_logprobs` goes with `logprobs: true` only", param="top_logprobs")
    if body.modalities is not None and set(body.modalities) - {"text"}:
        raise UnsupportedParameter("this node makes text only", param="modalities")
    if body.store:
        raise UnsupportedParameter("this node stores no answers; leave `store` out", param="store")
    if body.continue_final_message and body.add_generation_prompt:
        raise InvalidRequest(
            "`continue_final_message` excludes `add_generation_prompt`", param="continue_final_message"
        )
    if body.continue_final_message and body.messages[-1].role != "assistant":
        raise InvalidRequest("`continue_final_message` needs an assistant's message at the end", param="messages")


def chat_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Messages in the form that templates take. Raises InvalidRequest, UnsupportedParameter."""
    return [_message(m, i) for i, m in enumerate(messages)]


def _message(message: ChatMessage, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    shaped: dict[str, Any] = {"role": message.role, "content": _content(message.content, where)}
    if message.role == "assistant":
        if message.tool_calls:
            shaped["tool_calls"] = [_earlier_call(c.model_dump(exclude_none=True), where) for c in message.tool_calls]
        if message.reasoning_content:
            shaped["reasoning_content"] = message.reasoning_content
    elif message.role == "tool":
        shaped["tool_call_id"] = message.tool_call_id or ""
    if shaped["content"] is None and message.role != "assistant":
        raise InvalidRequest(f"{where}.content is missing", param=f"{where}.content")
    if message.name:
        shaped["name"] = message.name
    return shaped


def _earlier_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        parsed = json.loads(call["function"]["arguments"] or "{}")
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequest(
            f"{where}.tool_calls: the arguments must be a JSON object as text", param=f"{where}.tool_calls"
        )
    return call


def _content(content: str | list[dict[str, Any]] | None, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise UnsupportedParameter(
                f"{where}: content of type {str(kind)[:40]!r} is not supported; this model reads text only",
                param=f"{where}.content",
            )
        text = part.get(kind)
        if not isinstance(text, str):
            raise InvalidRequest(
                f"{where}: a part of type `{kind}` needs `{kind}` as a string", param=f"{where}.content"
            )
        texts.append(text)
    return "".join(texts)


def _tools(body: ChatRequest, dialect: Dialect) -> tuple[list[ToolSpec], str]:
    """Tools that may be called, and the choice: auto, required, or a name. No tools when the choice is none."""
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest("`tool_choice` asks for a tool, but there are no `tools`", param="tool_choice")
        return [], "auto"
    if body.tool_choice == "none":
        return [], "auto"
    if dialect.tool_format is None:
        raise UnsupportedParameter(
            "this model's chat template has no tool format that the node can read; send the request without `tools`, "
            "or serve a model of the Hermes, Qwen, Llama 3 or Mistral family",
            param="tools",
        )
    specs = [_spec(t) for t in body.tools]
    if len({s.name for s in specs}) != len(specs):
        raise InvalidRequest("two tools have the same name", param="tools")
    if isinstance(body.tool_choice, NamedTool):
        name = body.tool_choice.function.name
        if name not in {s.name for s in specs} or name in ("auto", "required"):
            raise InvalidRequest(f"`tool_choice` names {name!r}, which is not among the tools", param="tool_choice")
        return specs, name
    return specs, body.tool_choice or "auto"


def _spec(tool: Tool) -> ToolSpec:
    return ToolSpec(tool.function.name, tool.function.parameters or {})


def _chat_grammar(
    body: ChatRequest, dialect: Dialect, tools: list[ToolSpec], choice: str, parallel: bool
) -> GrammarSpec | None:
    schema = _response_schema(body)
    if tools:
        assert dialect.tool_format is not None
        return tool_grammar(dialect.tool_format, tools, choice=choice, parallel=parallel, answer=schema)
    return response_grammar(schema) if schema is not None else None


def _response_schema(body: ChatRequest) -> dict[str, Any] | None:
    """The schema that the answer must follow; None for free text."""
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return wanted.schema_ or ANY_OBJECT
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise InvalidRequest(
            "`response_format` of type json_schema needs `json_schema.schema`", param="response_format"
        )
    return wanted.json_schema.schema_
