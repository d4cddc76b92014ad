"""Errors and answers as JSON bytes. The one place that formats an error for a client."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

from edge.errors import EdgeError
from edge.messages import Finished, TokenLogprob

_LEAST_LOGPROB = -9999.0
"""JSON has no minus infinity; this is OpenAI's stand-in for it."""


V2 = "/v2"
"""Below it errors look as the Open Inference Protocol has them."""


def error_object(error: EdgeError, path: str = "") -> dict[str, Any]:
    """OpenAI's error object, or the plain one of the Open Inference Protocol."""
    if path == V2 or path.startswith(V2 + "/"):
        return {"error": error.message}
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def error_headers(error: EdgeError) -> dict[str, str]:
    """Why, for machines; and when to come back, in the forms that HTTP and the official SDKs read."""
    headers = {"x-edge-reason": error.reason or error.code or error.kind}
    if error.retryable and error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
        headers["x-should-retry"] = "true"
    elif error.status >= 500 or error.status == 429:
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: EdgeError, path: str, extra: Mapping[str, str] | None = None) -> Response:
    """A whole error answer to a request for `path`."""
    return json_response(
        error_object(error, path), status=error.status, headers={**error_headers(error), **(extra or {})}
    )


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(value), status, dict(headers or {}), media_type="application/json")


def usage(finished: list[Finished]) -> dict[str, Any]:
    """Token counts of a request, summed over its prompts."""
    return token_counts(
        sum(f.prompt_tokens for f in finished),
        sum(f.completion_tokens for f in finished),
        sum(f.cached_tokens for f in finished),
    )


def token_counts(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    """OpenAI's `usage` object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chat_logprob(entry: TokenLogprob) -> dict[str, Any]:
    """One token of `logprobs.content`."""
    top = [{"token": _text(t), "bytes": list(t), "logprob": _finite(p)} for t, p in entry.top]
    return {
        "token": _text(entry.token),
        "bytes": list(entry.token),
        "logprob": _finite(entry.logprob),
        "top_logprobs": top,
    }


def completion_logprobs(entries: list[TokenLogprob], offset: int) -> dict[str, Any]:
    """`logprobs` of a plain completion; `offset`: where the first token's text begins in the answer, in characters."""
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(_text(entry.token))
    return {
        "tokens": [_text(e.token) for e in entries],
        "token_logprobs": [_finite(e.logprob) for e in entries],
        "top_logprobs": [{_text(t): _finite(p) for t, p in e.top} for e in entries],
        "text_offset": offsets,
    }


def _text(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LEAST_LOGPROB
