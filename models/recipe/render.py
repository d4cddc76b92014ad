"""Dialogues to text, through the same Jinja template that is written into the GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from jinja2.sandbox import ImmutableSandboxedEnvironment

TEMPLATE_PATH = Path(__file__).with_name("template.jinja")
SPECIAL = ("<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MARKERS = ("<tool_call>", "</tool_call>")


class Renderer:
    """Renders messages as a server does; `bos_token` is left out because the tokenizer adds it."""

    def __init__(self) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        self._template = environment.from_string(TEMPLATE_PATH.read_text())

    def text(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, prompt_only: bool = False) -> str:
        """The rendered dialogue; `prompt_only` opens the assistant's turn at the end."""
        return self._template.render(
            messages=messages, tools=tools or None, bos_token="", add_generation_prompt=prompt_only
        )


def _tojson(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
