"""Vectors of texts, as OpenAI's clients ask for them; relevance in the shape of Jina and Cohere; and what a text is."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from edge.api.answers import new_id
from edge.api.inference import ERRORS
from edge.api.render import json_response
from edge.api.schema import ClassifyRequest, EmbeddingRequest, RerankRequest, RerankText, TextInput
from edge.api.served import ServedTensors
from edge.api.tensors import HEADERS, answered
from edge.api.turns import in_turns
from edge.api.unsupported import refuse_unsupported
from edge.errors import InvalidRequest
from edge.onnx.datatypes import floats
from edge.onnx.messages import Embedded, Kind, Scored, Text

router = APIRouter()

_KINDS: dict[str | None, Kind] = {None: "", "query": "query", "document": "document", "passage": "document"}
_FLOAT_BYTES = 4


@router.post("/v1/embeddings", responses=ERRORS, response_model=None)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """A vector for each text, or for each list of tokens."""
    refuse_unsupported(body)
    texts = texts_of(body.input)

    async def ask(served: ServedTensors) -> Embedded:
        _require_dimensions(body.dimensions, served)
        return await served.engine.embed(texts, _KINDS[body.input_type], body.dimensions)

    found, served = await answered(request, body.model, ("embedding",), ask)
    rest = orjson.dumps({"object": "list", "model": served.name, "usage": _usage(found.tokens)})[1:]
    data = await listed(found, coded=body.encoding_format == "base64")
    return Response(b'{"data":' + data + b"," + rest, headers=HEADERS, media_type="application/json")


async def listed(found: Embedded, *, coded: bool) -> bytes:
    """Vectors as OpenAI's list of embeddings, in JSON; `coded`: as base64 of little-endian float32."""
    size = found.width * _FLOAT_BYTES

    def each() -> Iterator[bytes]:
        for number, at in enumerate(range(0, len(found.vectors), size)):
            part = found.vectors[at : at + size]
            vector = base64.b64encode(part).decode() if coded else floats(part)
            yield orjson.dumps({"object": "embedding", "index": number, "embedding": vector})

    return b"[" + b",".join(await in_turns(each())) + b"]"


@router.post("/v1/rerank", responses=ERRORS, response_model=None)
async def rerank(body: RerankRequest, request: Request) -> Response:
    """How well each document answers a query, the best first."""
    refuse_unsupported(body)
    documents = [d.text if isinstance(d, RerankText) else d for d in body.documents]
    if not body.query.strip():
        raise InvalidRequest("`query` is empty", param="query")

    async def ask(served: ServedTensors) -> Scored:
        return await served.engine.rerank(body.query, documents)

    found, served = await answered(request, body.model, ("rerank",), ask)
    order = sorted(range(len(documents)), key=lambda n: (-found.scores[n][0], n))
    results: list[dict[str, Any]] = [{"index": n, "relevance_score": found.scores[n][0]} for n in order[: body.top_n]]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    answer = {"id": new_id("rerank"), "model": served.name, "results": results, "usage": _usage(found.tokens)}
    return json_response(answer, headers=HEADERS)


@router.post("/v1/classify", responses=ERRORS, response_model=None)
async def classify(body: ClassifyRequest, request: Request) -> Response:
    """The likeliest label of each text, and the probability of every one."""
    refuse_unsupported(body)
    texts = texts_of(body.input)

    async def ask(served: ServedTensors) -> Scored:
        return await served.engine.classify(texts)

    found, served = await answered(request, body.model, ("classification",), ask)
    labels = served.facts.labels
    data = []
    for number, probs in enumerate(found.scores):
        best = max(range(len(probs)), key=lambda n: probs[n])
        data.append(
            {
                "index": number,
                "label": labels[best],
                "probs": probs,
                "scores": dict(zip(labels, probs, strict=True)),
                "num_classes": len(probs),
            }
        )
    answer = {
        "id": new_id("classify"),
        "object": "list",
        "created": int(time.time()),
        "model": served.name,
        "data": data,
        "usage": _usage(found.tokens),
    }
    return json_response(answer, headers=HEADERS)


def texts_of(given: TextInput) -> list[Text]:
    """One text or several, as text or as tokens. Raises InvalidRequest for an empty text."""
    texts: list[Text]
    if isinstance(given, str):
        texts = [given]
    elif isinstance(given[0], int):
        texts = [[token for token in given if isinstance(token, int)]]
    else:
        texts = [text for text in given if not isinstance(text, int)]
    for number, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"`input`: text {number} is empty", param="input")
    return texts


def _require_dimensions(wanted: int | None, served: ServedTensors) -> None:
    facts = served.facts
    if wanted in (None, facts.width, *facts.dimensions):
        return
    known = ", ".join(str(n) for n in sorted({*facts.dimensions, facts.width}))
    raise InvalidRequest(
        f"`dimensions`: the model {served.name!r} was made for vectors of {known} numbers, not {wanted}",
        param="dimensions",
    )


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": tokens, "total_tokens": tokens}
