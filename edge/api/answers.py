"""Engine events become choices: whole ones for a plain answer, deltas for a stream. One object per request."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, Protocol

from edge.api.render import chat_logprob, completion_logprobs
from edge.api.translate import ChatWork
from edge.dialects.parse import AnswerParser, ContentPiece, Piece, ReasoningPiece, ToolCallArguments, ToolCallStart
from edge.messages import Offer, Token, TokenLogprob


class Choices(Protocol):
    """What a route's answers are made with."""

    object_name: str
    chunk_name: str

    def offer(self, prompt: int, offer: Offer) -> None:
        """The engine accepted a prompt."""
        ...

    def opening(self) -> list[dict[str, Any]]:
        """Deltas that a stream begins with."""
        ...

    def deltas(self, prompt: int, token: Token) -> list[dict[str, Any]]:
        """Choices of the chunks that a Token makes; remembered for `whole` too."""
        ...

    def whole(self) -> list[dict[str, Any]]:
        """All choices of the finished answer."""
        ...

    def begun(self) -> str | None:
        """What the one answer has said so far; None if there are several, or if it said more than text."""
        ...


def new_id(prefix: str) -> str:
    """An id for an answer."""
    return f"{prefix}-{secrets.token_hex(12)}"


@dataclass(slots=True)
class _ChatAnswer:
    parser: AnswerParser
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None


class ChatChoices:
    """Choices of POST /v1/chat/completions."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, work: ChatWork) -> None:
        self._work = work
        self._answers: list[_ChatAnswer] = []

    def offer(self, prompt: int, offer: Offer) -> None:
        """Start the parsers, now that it is known whether the answer begins inside reasoning tags."""
        work = self._work
        self._answers = [
            _ChatAnswer(
                AnswerParser(
                    fmt=work.tool_format,
                    tools=work.tool_names or None,
                    reasoning=work.reasoning,
                    reasoning_open=offer.reasoning_open,
                    parallel=work.parallel,
                )
            )
            for _ in range(work.submit.n)
        ]

    def opening(self) -> list[dict[str, Any]]:
        """The role, once per choice, with empty content."""
        return [self._choice(i, {"role": "assistant", "content": ""}) for i in range(self._work.submit.n)]

    def deltas(self, prompt: int, token: Token) -> list[dict[str, Any]]:
        """Parsed pieces as deltas; the finish reason comes last, with an empty delta."""
        answer = self._answers[token.index]
        pieces = answer.parser.feed(token.text)
        if token.finish is not None:
            pieces += answer.parser.finish()
        logprobs = [chat_logprob(e) for e in token.logprobs]
        answer.logprobs += logprobs
        made = [self._choice(token.index, self._keep(answer, p)) for p in pieces]
        if logprobs:
            if not made:
                made.append(self._choice(token.index, {}))
            made[0]["logprobs"] = {"content": logprobs, "refusal": None}
        if token.finish is not None:
            answer.finish = _chat_finish(answer.parser, token.finish)
            made.append(self._choice(token.index, {}, answer.finish))
        return made

    def whole(self) -> list[dict[str, Any]]:
        """One message per choice."""
        return [self._message(i, a) for i, a in enumerate(self._answers)]

    def begun(self) -> str | None:
        """The content, if that is all that was sent."""
        if len(self._answers) != 1 or self._answers[0].calls or self._answers[0].reasoning:
            return None
        return "".join(self._answers[0].content)

    def _keep(self, answer: _ChatAnswer, piece: Piece) -> dict[str, Any]:
        match piece:
            case ContentPiece(text=text):
                answer.content.append(text)
                return {"content": text}
            case ReasoningPiece(text=text):
                answer.reasoning.append(text)
                return {"reasoning_content": text}
            case ToolCallStart(index=index, id=call_id, name=name):
                answer.calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": ""}})
                return {
                    "tool_calls": [
                        {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
                    ]
                }
            case ToolCallArguments(index=index, text=text):
                answer.calls[index]["function"]["arguments"] += text
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    def _message(self, index: int, answer: _ChatAnswer) -> dict[str, Any]:
        content = "".join(answer.content)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not answer.calls else None,
            "refusal": None,
        }
        if answer.reasoning:
            message["reasoning_content"] = "".join(answer.reasoning)
        if answer.calls:
            message["tool_calls"] = answer.calls
        logprobs = {"content": answer.logprobs, "refusal": None} if self._work.logprobs else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": answer.finish}

    @staticmethod
    def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _chat_finish(parser: AnswerParser, reason: str) -> str:
    """`tool_calls` when the answer ended with whole calls; a call that was cut short is `length`."""
    if not parser.saw_tool_calls:
        return reason
    return "tool_calls" if reason == "stop" and parser.tool_call_complete else "length"


@dataclass(slots=True)
class _TextAnswer:
    text: list[str] = field(default_factory=list)
    characters: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str | None = None


class TextChoices:
    """Choices of POST /v1/completions: index = prompt * n + answer."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def __init__(self, prompts: int, n: int, *, logprobs: bool) -> None:
        self._n = n
        self._wants_logprobs = logprobs
        self._answers = [_TextAnswer() for _ in range(prompts * n)]

    def offer(self, prompt: int, offer: Offer) -> None:
        """Nothing to prepare."""

    def opening(self) -> list[dict[str, Any]]:
        """Text streams begin with text."""
        return []

    def deltas(self, prompt: int, token: Token) -> list[dict[str, Any]]:
        """New text, and the finish reason."""
        index = prompt * self._n + token.index
        answer = self._answers[index]
        offset = answer.characters
        answer.text.append(token.text)
        answer.characters += len(token.text)
        answer.logprobs += token.logprobs
        answer.finish = token.finish
        if not token.text and not token.logprobs and token.finish is None:
            return []
        logprobs = completion_logprobs(list(token.logprobs), offset) if token.logprobs else None
        return [{"index": index, "text": token.text, "logprobs": logprobs, "finish_reason": token.finish}]

    def whole(self) -> list[dict[str, Any]]:
        """One text per choice."""
        return [
            {
                "index": index,
                "text": "".join(answer.text),
                "logprobs": completion_logprobs(answer.logprobs, 0) if self._wants_logprobs else None,
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(self._answers)
        ]

    def begun(self) -> str | None:
        """The text of the only answer."""
        return "".join(self._answers[0].text) if len(self._answers) == 1 else None
