"""The OpenAI routes: chat completions, plain completions, models; and the tokenizer's two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from edge.api.answers import ChatChoices, Choices, TextChoices, new_id
from edge.api.front import Front
from edge.api.gate import KEY_NAME, READ_AT
from edge.api.job import ClientGone, Job, unless_gone
from edge.api.render import json_response, usage
from edge.api.schema import ChatRequest, CompletionRequest, DetokenizeRequest, ErrorAnswer, Generation, TokenizeRequest
from edge.api.stream import ChunkWriter, EventStream, StreamWatch, frames
from edge.api.translate import chat_messages, chat_work, completion_work
from edge.api.unsupported import refuse_unsupported
from edge.errors import EngineFault, InvalidRequest
from edge.messages import ChatPrompt, Offer, Prompt, Submit, TextPrompt, Token

router = APIRouter()

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request is wrong; `param` names the field.",
        401: "No API key, or an unknown one.",
        403: "The key lacks the scope.",
        404: "No such model or path.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        429: "Overloaded, or the key's rate is used up; see Retry-After.",
        500: "The engine failed on this request.",
        503: "Loading, draining, or the engine is being replaced; see Retry-After.",
    }.items()
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer, or its chunks as server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    **ERRORS,
}


@router.post("/v1/chat/completions", responses=_STREAMED, response_model=None)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    front: Front = request.app.state.front
    front.require_model(body.model)
    work = chat_work(body, front.dialect())
    return await _answer(request, front, body, [work.submit], ChatChoices(work))


@router.post("/v1/completions", responses=_STREAMED, response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text."""
    front: Front = request.app.state.front
    front.require_model(body.model)
    front.facts()
    work = completion_work(body)
    return await _answer(
        request, front, body, work, TextChoices(len(work), body.n or 1, logprobs=body.logprobs is not None)
    )


async def _answer(request: Request, front: Front, body: Generation, work: list[Submit], choices: Choices) -> Response:
    stamps: dict[str, Any] = {"arrived_s": request.scope[READ_AT], "key": request.scope[KEY_NAME]}
    job = Job(front.engine, [msgspec.structs.replace(w, **stamps) for w in work])
    events = aiter(job)
    streaming = False
    try:
        # Nothing is promised by a 200 before the engine has really produced something.
        first = await unless_gone(request, asyncio.create_task(_first(events, choices)))
        fingerprint = f"fp_{front.facts().digest}"
        headers = {"server-timing": _server_timing(job), "x-edge-class": "slo" if job.admitted else "best-effort"}
        front.metrics.queue.observe(job.timing.queue_s)
        front.metrics.prefill.observe(job.timing.prefill_s)
        if body.stream:
            streaming = True
            with_usage = bool(body.stream_options and body.stream_options.include_usage)
            writer = ChunkWriter(choices, front, fingerprint, with_usage=with_usage)
            watch = StreamWatch(front, request.scope[READ_AT], admitted=job.admitted)
            chunks = frames(first, events, job=job, choices=choices, writer=writer, watch=watch, with_usage=with_usage)
            return EventStream(_counted(chunks, front, job), job, headers, front.config.write_timeout_s)
        await unless_gone(request, asyncio.create_task(_rest(first, events, choices)))
        _count(front, job)
        return json_response(_whole(front, job, choices, fingerprint), headers=headers)
    except ClientGone:
        return Response(status_code=499)
    finally:
        if not streaming:
            job.abort()


async def _first(events: AsyncIterator[tuple[int, Offer | Token]], choices: Choices) -> tuple[int, Token]:
    async for prompt, event in events:
        if isinstance(event, Token):
            return prompt, event
        choices.offer(prompt, event)
    raise EngineFault("the engine ended the request without an answer")


async def _rest(first: tuple[int, Token], events: AsyncIterator[tuple[int, Offer | Token]], choices: Choices) -> None:
    choices.deltas(*first)
    async for prompt, event in events:
        if isinstance(event, Token):
            choices.deltas(prompt, event)
        else:
            choices.offer(prompt, event)


async def _counted(chunks: AsyncIterator[bytes], front: Front, job: Job) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield chunk
    _count(front, job)


def _count(front: Front, job: Job) -> None:
    front.metrics.prompt_tokens.inc(sum(f.prompt_tokens for f in job.finished))
    front.metrics.answer_tokens.inc(sum(f.completion_tokens for f in job.finished))


def _whole(front: Front, job: Job, choices: Choices, fingerprint: str) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl" if choices.object_name.startswith("chat") else "cmpl"),
        "object": choices.object_name,
        "created": int(time.time()),
        "model": front.config.model_name,
        "system_fingerprint": fingerprint,
        "choices": choices.whole(),
        "usage": usage(job.finished),
    }


def _server_timing(job: Job) -> str:
    """W3C Server-Timing: the engine's own time from Submit to the first token, in milliseconds."""
    return f"queue;dur={job.timing.queue_s * 1000:.2f}, prefill;dur={job.timing.prefill_s * 1000:.2f}"


@router.get("/v1/models", responses={401: ERRORS[401], 403: ERRORS[403]}, response_model=None)
async def models(request: Request) -> Response:
    """The served model, as a list."""
    return json_response({"object": "list", "data": [_model(request.app.state.front)]})


@router.get("/v1/models/{model:path}", responses={s: ERRORS[s] for s in (401, 403, 404)}, response_model=None)
async def model(model: str, request: Request) -> Response:
    """One model."""
    front: Front = request.app.state.front
    front.require_model(model)
    return json_response(_model(front))


def _model(front: Front) -> dict[str, Any]:
    facts = front.engine.facts
    card: dict[str, Any] = {
        "id": front.config.model_name,
        "object": "model",
        "created": front.config.created,
        "owned_by": "edge",
    }
    if facts is not None:
        card["max_model_len"] = facts.context_tokens
        card["meta"] = {
            "n_ctx_train": facts.train_context_tokens,
            "n_params": facts.parameters,
            "n_vocab": facts.vocabulary,
            "size": facts.model_bytes,
        }
    return card


@router.post("/tokenize", responses=ERRORS, response_model=None)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Tokens of a text, or of messages rendered by the model's template."""
    front: Front = request.app.state.front
    front.require_model(body.model)
    refuse_unsupported(body)
    special = body.add_special_tokens if body.add_special_tokens is not None else body.add_special
    prompt = _tokenize_prompt(body)
    adds = special if special is not None else isinstance(prompt, ChatPrompt)
    found = await front.engine.tokenize(prompt, add_special=adds)
    tokens: list[Any] = found.tokens
    if body.with_pieces:
        tokens = [{"id": t, "piece": _piece(p)} for t, p in zip(found.tokens, found.pieces, strict=True)]
    return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": front.facts().context_tokens})


def _tokenize_prompt(body: TokenizeRequest) -> Prompt:
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise InvalidRequest("give either `prompt` (or `content`) or `messages`", param="prompt")
    if text is not None:
        return TextPrompt(text)
    tools = [t.model_dump(exclude_none=True) for t in body.tools] if body.tools else None
    return ChatPrompt(
        chat_messages(body.messages or []),
        tools,
        body.chat_template_kwargs or {},
        body.add_generation_prompt is not False,
        continue_final=body.continue_final_message is True,
    )


def _piece(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are no text by themselves."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


@router.post("/detokenize", responses=ERRORS, response_model=None)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Text of tokens."""
    front: Front = request.app.state.front
    front.require_model(body.model)
    text = await front.engine.detokenize(body.tokens)
    return json_response({"content": text, "prompt": text})
