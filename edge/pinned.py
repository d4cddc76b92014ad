"""The file of pinned prompts: beginnings that an operator wants ready before the first request."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import BaseModel, ConfigDict, ValidationError

from edge.api.schema import ChatMessage, Tool
from edge.api.translate import chat_messages
from edge.errors import ConfigurationError, EdgeError, NotYet
from edge.messages import ChatPrompt, Prompt, TextPrompt

MAX_FILE_BYTES = 16 << 20
MAX_ENTRIES = 64


class PinnedEntry(BaseModel):
    """One line: the beginning of a chat, or plain text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    messages: Annotated[list[ChatMessage], MinLen(1)] | None = None
    tools: list[Tool] | None = None
    text: Annotated[str, MinLen(1)] | None = None

    def prompt(self) -> Prompt:
        """What the engine computes. Raises EdgeError."""
        if self.text is not None and self.messages is None and self.tools is None:
            return TextPrompt(self.text)
        if self.messages is None or self.text is not None:
            raise ConfigurationError("give either `messages` (and perhaps `tools`) or `text`")
        tools: list[dict[str, Any]] | None = [t.model_dump(exclude_none=True) for t in self.tools or ()] or None
        return ChatPrompt(chat_messages(self.messages), tools, add_generation_prompt=False)


def read_pinned(path: Path) -> list[Prompt]:
    """All entries of a file. Raises ConfigurationError that names the line."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigurationError(f"cache.pinned_file {path} is over {MAX_FILE_BYTES >> 20} MiB; make it shorter")
        lines = path.read_text("utf-8").split("\n")  # not splitlines: JSON strings may hold U+2028
    except OSError as error:
        raise NotYet(f"cache.pinned_file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"cache.pinned_file {path} cannot be read: it is not UTF-8 text") from None
    prompts = [_entry(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if len(prompts) > MAX_ENTRIES:
        raise ConfigurationError(f"cache.pinned_file {path} has {len(prompts)} entries; at most {MAX_ENTRIES}")
    return prompts


def _entry(path: Path, number: int, line: str) -> Prompt:
    try:
        return PinnedEntry.model_validate_json(line).prompt()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}, line {number}: {where + ': ' if where else ''}{first['msg']}") from None
    except EdgeError as error:
        raise ConfigurationError(f"{path}, line {number}: {error.message}") from None
