"""A task with right answers: cases in a JSON file that a manifest names, and whether an answer is right.

The file holds `tools` (OpenAI tool definitions, by name) and `cases`. A case has `group`, `messages` (in OpenAI's form; the last
one is the right answer of the assistant) and the names of the `tools` that are offered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edge.dialects.parse import AnswerParser, ContentPiece, ToolCallArguments, ToolCallStart
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.tools import ToolFormat
from edge.errors import ConfigurationError

Message = dict[str, Any]


class Case(BaseModel):
    """One question with its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: Annotated[str, Field(min_length=1)]
    tools: list[str] = []
    messages: Annotated[list[Message], Field(min_length=2)]

    @model_validator(mode="after")
    def _ends_with_an_answer(self) -> Case:
        last = self.messages[-1]
        if last.get("role") != "assistant" or not (last.get("content") or last.get("tool_calls")):
            raise ValueError("the last message must be the assistant's right answer")
        try:
            _wanted(last)
        except (ValueError, TypeError, LookupError):
            raise ValueError("a call of the right answer has no name, or no arguments in JSON") from None
        return self


class Task(BaseModel):
    """All cases of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]
    most_tokens: Annotated[int, Field(gt=0, le=4096)] = 200
    """Tokens after which an answer is cut off, and wrong."""
    tools: dict[str, dict[str, Any]] = {}
    cases: Annotated[list[Case], Field(min_length=1)]

    @model_validator(mode="after")
    def _tools_are_known(self) -> Task:
        for number, case in enumerate(self.cases):
            for name in case.tools:
                if name not in self.tools:
                    raise ValueError(f"case {number} offers the tool {name!r}, which is not in `tools`")
        return self

    def offered(self, case: Case) -> list[dict[str, Any]]:
        """Definitions of the tools that a case offers."""
        return [self.tools[name] for name in case.tools]


def read_task(path: Path) -> Task:
    """Parse a file of cases. Raises ConfigurationError with what is wrong with it."""
    try:
        return Task.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"cannot read the cases {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {f'`{where}`: ' if where else ''}{first['msg']}") from None


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a model writes calls and thoughts; None where it does not."""

    tools: ToolFormat | None
    reasoning: ReasoningTags | None


def right(expected: Message, answer: str, *, dialect: Dialect, offered: frozenset[str], reasoning_open: bool) -> bool:
    """Exactly the calls that were asked for (names, all arguments, in order) and no words beside them; or exactly the words."""
    parser = AnswerParser(fmt=dialect.tools, tools=offered, reasoning=dialect.reasoning, reasoning_open=reasoning_open)
    content, names, arguments = "", [], []
    for piece in [*parser.feed(answer), *parser.finish()]:
        match piece:
            case ContentPiece(text):
                content += text
            case ToolCallStart(_, _, name):
                names.append(name)
                arguments.append("")
            case ToolCallArguments(index, text):
                arguments[index] += text
    wanted = _wanted(expected)
    try:
        made = [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]
    except ValueError:
        return False
    return made == wanted and content.strip() == ("" if wanted else str(expected["content"]).strip())


def _wanted(answer: Message) -> list[tuple[str, Any]]:
    """Names and arguments of an answer's calls."""
    calls = [call["function"] for call in answer.get("tool_calls") or ()]
    return [(call["name"], _arguments(call["arguments"])) for call in calls]


def _arguments(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given
