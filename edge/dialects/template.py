"""Chat templates: the model's own Jinja source, in a sandbox, with the functions that template authors rely on.

What templates may use follows Hugging Face transformers (`apply_chat_template`): trim_blocks, lstrip_blocks, loop
controls,
`tojson` without HTML escapes, `raise_exception`, `strftime_now`, and `{% generation %}` blocks, which are passed
through.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]

MAX_PROMPT_CHARACTERS = 32 * 1024 * 1024
DEFAULT_CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + (message.content or '') + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
"""For files that carry no template: ChatML, which most of those understand."""

_PROBE_ARGUMENT = "edge_probe_argument"
_SHORT_ID = "call00001"
"""Mistral's templates take ids of nine letters and digits only."""
_CONTINUE_MARK = "\ue000edge\ue000"
"""Stands where an answer is to be continued. Searching for the message's own text could find it in an end token."""


class TemplateError(ValueError):
    """A template that does not compile, or that refuses these messages; the text is the template's own."""


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's tokens for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's template. Raises TemplateError when the source does not compile."""

    def __init__(self, source: str, *, bos: str, eos: str, now: Callable[[], datetime] | None = None) -> None:
        clock = now or (lambda: datetime.now(UTC))
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda pattern: clock().strftime(pattern)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template does not compile: {error}") from error
        self._fixed = {"bos_token": bos, "eos_token": eos}
        self.supports_tools = self._probe_tools()
        self._arguments_as_mapping = self._probe_mapping()
        self._wants_short_ids = self._probe_short_ids()
        self._knows_developer = "developer" in source

    def render(
        self,
        messages: list[Message],
        *,
        tools: list[dict[str, Any]] | None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The prompt. `continue_final`: it ends within the last message, so that the model goes on from there.

        Raises TemplateError when the template refuses the messages, or when the result is absurdly long.
        """
        shaped = [self._shaped(m) for m in messages]
        if continue_final:
            shaped = _marked_at_end(shaped)
        text = self._run(
            {
                **(kwargs or {}),
                "messages": shaped,
                "tools": tools,
                "add_generation_prompt": add_generation_prompt and not continue_final,
            }
        )
        return _cut_at_mark(text) if continue_final else text

    def _run(self, variables: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate({**self._fixed, **variables}):
                size += len(part)
                if size > MAX_PROMPT_CHARACTERS:
                    raise TemplateError(f"the rendered prompt is over {MAX_PROMPT_CHARACTERS} characters")
                parts.append(part)
        except TemplateError:
            raise
        except Exception as error:  # a template is a program that came with the file: it may raise anything
            raise TemplateError(str(error) or type(error).__name__) from error
        return "".join(parts)

    def _shaped(self, message: Message) -> Message:
        shaped = {**message, "content": _text(message.get("content"))}
        if shaped["role"] == "developer" and not self._knows_developer:
            shaped["role"] = "system"
        if calls := message.get("tool_calls"):
            shaped["tool_calls"] = [self._shaped_call(c) for c in calls]
        if "tool_call_id" in message:
            shaped["tool_call_id"] = self._shaped_id(message["tool_call_id"])
        return shaped

    def _shaped_call(self, call: dict[str, Any]) -> dict[str, Any]:
        function = dict(call.get("function") or {})
        arguments = function.get("arguments")
        if self._arguments_as_mapping and isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}")
            except json.JSONDecodeError as error:
                raise TemplateError(f"the arguments of a tool call are not JSON: {error}") from error
            function["arguments"] = parsed
        shaped = {**call, "function": function}
        if "id" in call:
            shaped["id"] = self._shaped_id(call["id"])
        return shaped

    def _shaped_id(self, given: Any) -> Any:
        """Ids as the template takes them. Clients bring whatever the server before gave out."""
        if not self._wants_short_ids or not isinstance(given, str) or len(given) == len(_SHORT_ID):
            return given
        return hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()[: len(_SHORT_ID)]

    def _probe_tools(self) -> bool:
        tool = {
            "type": "function",
            "function": {"name": "edge_probe", "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        return "edge_probe" in self._try([{"role": "user", "content": "x"}], [tool])

    def _probe_mapping(self) -> bool:
        """Whether this template wants arguments as a mapping: with a string it would quote them or fail."""
        written = self._try(_probe_call(json.dumps({_PROBE_ARGUMENT: 1}), _SHORT_ID), None)
        return f'"{_PROBE_ARGUMENT}"' not in written or f'\\"{_PROBE_ARGUMENT}' in written

    def _probe_short_ids(self) -> bool:
        """Whether this template refuses all ids but those of Mistral's length."""
        arguments = {_PROBE_ARGUMENT: 1} if self._arguments_as_mapping else json.dumps({_PROBE_ARGUMENT: 1})
        usual = self._try(_probe_call(arguments, "call_0123456789abcdef"), None)
        return not usual and bool(self._try(_probe_call(arguments, _SHORT_ID), None))

    def _try(self, messages: list[Message], tools: list[dict[str, Any]] | None) -> str:
        try:
            return self._run({"messages": messages, "tools": tools, "add_generation_prompt": True})
        except TemplateError:
            return ""


def _probe_call(arguments: Any, call_id: str) -> list[Message]:
    call = {"id": call_id, "type": "function", "function": {"name": "edge_probe", "arguments": arguments}}
    return [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "y", "tool_call_id": call_id, "name": "edge_probe"},
    ]


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)


def _marked_at_end(messages: list[Message]) -> list[Message]:
    """The messages with a mark behind the last one's text, where its answer goes on."""
    text = messages[-1]["content"].rstrip() if messages else ""
    if not text:
        raise TemplateError("the last message has no text that could be continued")
    return [*messages[:-1], {**messages[-1], "content": text + _CONTINUE_MARK}]


def _cut_at_mark(text: str) -> str:
    """Drop what the template writes after the last message's text: end tokens, newlines."""
    before, mark, _ = text.rpartition(_CONTINUE_MARK)
    if not mark:
        raise TemplateError("the template does not show the last message as it is; its answer cannot be continued")
    return before


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
