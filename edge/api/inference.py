"""The OpenAI routes that ask a model: chat completions, plain completions; and the tokenizer's two."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from edge.api.answers import ChatChoices, Choices, TextChoices
from edge.api.dispatch import Dispatch
from edge.api.front import Front
from edge.api.render import json_response
from edge.api.schema import ChatRequest, CompletionRequest, DetokenizeRequest, ErrorAnswer, TokenizeRequest
from edge.api.translate import Dialect, chat_messages, chat_work, completion_work
from edge.api.unsupported import refuse_unsupported
from edge.api.waiting import waited_for
from edge.errors import InvalidRequest
from edge.messages import ChatPrompt, Prompt, Submit, TextPrompt

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

    def work(dialect: Dialect) -> tuple[list[Submit], Choices]:
        chat = chat_work(body, dialect)
        return [chat.submit], ChatChoices(chat)

    return await Dispatch(request, front, body, work).answer()


@router.post("/v1/completions", responses=_STREAMED, response_model=None)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Go on with a text."""
    front: Front = request.app.state.front

    def work(_: Dialect) -> tuple[list[Submit], Choices]:
        prompts = completion_work(body)
        return prompts, TextChoices(len(prompts), body.n or 1, logprobs=body.logprobs is not None)

    return await Dispatch(request, front, body, work).answer()


@router.post("/tokenize", responses=ERRORS, response_model=None)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Tokens of a text, or of messages rendered by the model's template."""
    front: Front = request.app.state.front
    refuse_unsupported(body)
    special = body.add_special_tokens if body.add_special_tokens is not None else body.add_special
    prompt = _tokenize_prompt(body)
    adds = special if special is not None else isinstance(prompt, ChatPrompt)
    with await waited_for(request, front, body.model, front.served) as served:
        found = await served.engine.tokenize(prompt, add_special=adds, pieces=bool(body.with_pieces))
    tokens: list[Any] = found.tokens
    if body.with_pieces:
        tokens = [{"id": t, "piece": _piece(p)} for t, p in zip(found.tokens, found.pieces, strict=True)]
    return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": served.facts.context_tokens})


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
    with await waited_for(request, front, body.model, front.served) as served:
        text = await served.engine.detokenize(body.tokens)
    return json_response({"content": text, "prompt": text})
