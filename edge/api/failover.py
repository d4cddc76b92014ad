"""The engine died in the middle of an answer: the fleet goes on where it broke off, without a gap and without a repeated word.

What was sent becomes the beginning of the assistant's message. An upstream that cannot go on with a message begins anew, and
what it repeats is left out (edge.api.seam). What cannot be gone on with honestly (tool calls, reasoning, log-probabilities,
several answers, an answer under a grammar) ends with an error at once.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from edge.admission.decisions import Entry
from edge.admission.policy import Ask, may_leave
from edge.api.answers import Choices
from edge.api.front import Front
from edge.api.job import Job
from edge.api.render import token_counts
from edge.api.schema import ChatRequest, CompletionRequest, Generation
from edge.api.seam import LEAST_SENT, Seam
from edge.api.stream import ChunkWriter
from edge.api.tracing import RequestTrace
from edge.errors import EdgeError, EngineDown, FleetUnavailable
from edge.fleet.answer import FleetAnswer
from edge.fleet.events import Event
from edge.fleet.member import FleetRefused

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Continuation:
    """What is needed to go on with one streamed answer. Called with the engine's failure, it yields the rest of the stream."""

    front: Front
    ask: Ask
    entry: Entry
    body: Generation
    choices: Choices
    job: Job
    writer: ChunkWriter
    with_usage: bool
    trace: RequestTrace

    async def __call__(self, failure: EdgeError) -> AsyncIterator[bytes]:
        """Raises the failure itself, or why the fleet could not go on."""
        fleet = self.front.fleet
        sent = self.choices.begun()
        view = self.front.fleet_view(self.body.model)
        leaves = may_leave(self.ask, self.front.config.mode, view) is None
        stays = not leaves or self.front.drain.draining or not self._is_plain()
        if not isinstance(failure, EngineDown) or fleet is None or sent is None or stays:
            raise failure
        model = self.front.fleet_name(self.body.model)
        upstream = fleet.continuing(model) if len(sent) >= LEAST_SENT else None
        left = self._tokens_left()
        if left == 0:
            yield self._finish("length", 0)
            return
        given = sent.rstrip() if isinstance(self.body, ChatRequest) else sent
        seam = Seam(sent, anew=upstream is None, tail=sent[len(given) :])
        asked = self._asked(given if upstream is not None else "", left)
        path = "chat/completions" if isinstance(self.body, ChatRequest) else "completions"
        try:
            answer = await fleet.ask(
                path,
                asked,
                model=model,
                request_id=self.entry.request_id,
                trace=self.trace.forwarded(),
                only=upstream.name if upstream is not None else "",
            )
        except FleetRefused as refused:
            raise FleetUnavailable(f"the engine failed, and the fleet cannot go on: {refused}") from None
        self.entry.continued, self.entry.continued_at = answer.upstream, len(sent)
        self.front.metrics.continued.inc()
        log.warning(
            "answer continued by the fleet",
            extra={"event": "answer_continued", "request_id": self.entry.request_id, "upstream": answer.upstream},
        )
        try:
            async for data in self._rest(answer, seam):
                yield data
        finally:
            await answer.close()

    def _is_plain(self) -> bool:
        body = self.body
        single = (body.n or 1) == 1 and self.job.prompts == 1
        if isinstance(body, ChatRequest):
            free = body.response_format is None or body.response_format.type == "text"
            continues = bool(body.continue_final_message)
            return (
                single
                and free
                and not body.logprobs
                and not (continues and not isinstance(body.messages[-1].content, str))
            )
        assert isinstance(body, CompletionRequest)
        return single and body.logprobs is None and not body.echo and isinstance(body.prompt, str)

    def _limit(self) -> int | None:
        """Most tokens of the whole answer."""
        body = self.body
        return (
            (body.max_completion_tokens or body.max_tokens) if isinstance(body, ChatRequest) else body.max_tokens or 16
        )

    def _tokens_left(self) -> int | None:
        limit = self._limit()
        return None if limit is None else max(0, limit - self.job.sent_tokens)

    def _asked(self, sent: str, left: int | None) -> dict[str, Any]:
        """The request for the fleet: to go on after `sent`, or for the whole answer if that is empty."""
        body = self.body.model_dump(exclude_none=True, exclude={"max_completion_tokens"})
        limit = left if sent else self._limit()
        body |= {
            "model": self.body.model or self.front.pool.roster.main,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if limit is not None:
            body["max_tokens"] = limit
        if not sent:
            return body
        if isinstance(self.body, CompletionRequest):
            return {**body, "prompt": f"{self.body.prompt}{sent}"}
        assert isinstance(self.body, ChatRequest)
        messages: list[dict[str, Any]] = body["messages"]
        if self.body.continue_final_message:  # the answer's beginning was given by the client already
            messages = [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + sent}]
        else:
            messages = [*messages, {"role": "assistant", "content": sent}]
        return {**body, "messages": messages, "continue_final_message": True, "add_generation_prompt": False}

    async def _rest(self, answer: FleetAnswer, seam: Seam) -> AsyncIterator[bytes]:
        """The rest of the answer as our own chunks."""
        finish, counted, usage = "", 0, 0
        async for event in _each(answer):
            if event.body is not None and isinstance(found := event.body.get("usage"), dict):
                usage = told if isinstance(told := found.get("completion_tokens"), int) else 0
            for choice in event.choices:
                finish = choice.get("finish_reason") or finish
                if text := seam.feed(_text(choice)):
                    counted += 1
                    yield self.writer.chunk(self._choice(text, None))
        if text := seam.end():
            yield self.writer.chunk(self._choice(text, None))
        anew = seam.repeated and usage >= self.job.sent_tokens
        yield self._finish(finish or "stop", (usage - self.job.sent_tokens if anew else usage) if usage else counted)

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        if not isinstance(self.body, ChatRequest):
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
        return {"index": 0, "delta": {"content": text} if text else {}, "logprobs": None, "finish_reason": finish}

    def _finish(self, reason: str, more: int) -> bytes:
        data = self.writer.chunk(self._choice("", reason))
        if self.with_usage:
            job = self.job
            data += self.writer.usage(token_counts(job.prompt_tokens, job.sent_tokens + more, job.cached_tokens))
        return data


async def _each(answer: FleetAnswer) -> AsyncIterator[Event]:
    async for events in answer.events():
        for event in events:
            yield event


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return str(choice.get("text") or "")
    if delta.get("tool_calls") or delta.get("reasoning_content"):
        raise FleetUnavailable("the engine failed, and the fleet's answer goes on with something else than text")
    return str(delta.get("content") or "")
