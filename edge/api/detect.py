"""What is in a picture: labels, scores, and boxes in the picture's own pixels."""

from __future__ import annotations

import base64
import binascii
import re
import time
from typing import Any

import orjson
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from edge.api.answers import new_id
from edge.api.bodies import media_type
from edge.api.faults import invalid_body
from edge.api.inference import ERRORS
from edge.api.render import json_response
from edge.api.schema import DetectRequest, PictureQuestion
from edge.api.served import ServedTensors
from edge.api.tensors import HEADERS, answered
from edge.api.unsupported import refuse_unsupported
from edge.errors import InvalidRequest
from edge.onnx.messages import Found

router = APIRouter()

_MOST_THINGS = 100
_DATA_URL = re.compile(r"data:[\w.+/-]*(;[\w.=-]+)*;base64,", re.ASCII)
_JSON = "application/json"
_PICTURE = {"schema": {"type": "string", "format": "binary"}}
_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": "For a picture as the body."}
    for name, schema in (
        ("model", {"type": "string"}),
        ("threshold", {"type": "number", "minimum": 0, "maximum": 1}),
        ("max_detections", {"type": "integer", "minimum": 1, "maximum": 1000}),
    )
]
_BODY = {
    "parameters": _QUERY,
    "requestBody": {
        "required": True,
        "content": {
            _JSON: {"schema": DetectRequest.model_json_schema(ref_template="#/components/schemas/{model}")},
            **dict.fromkeys(("image/jpeg", "image/png", "image/webp"), _PICTURE),
        },
    },
}


@router.post("/v1/detect", responses=ERRORS, response_model=None, openapi_extra=_BODY)
async def detect(request: Request) -> Response:
    """Things in a picture: a JSON body with the picture in base64, or the picture itself with `?model=NAME`."""
    body = await request.body()
    kind = media_type(request.headers, _JSON)
    if kind == _JSON:
        question, picture = _from_json(body)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        question, picture = _from_query(request), body
    else:
        raise InvalidRequest(
            f"Content-Type is {kind[:100]!r}; send the picture itself (image/jpeg, image/png, image/webp) with ?model=NAME, or "
            "JSON"
        )
    if not picture:
        raise InvalidRequest("the picture is empty", param="image")

    async def ask(served: ServedTensors) -> Found:
        return await served.engine.detect(picture, question.threshold, question.max_detections or _MOST_THINGS)

    found, served = await answered(request, question.model, ("detection",), ask)
    return json_response(_answer(found, served), headers=HEADERS)


def _answer(found: Found, served: ServedTensors) -> dict[str, Any]:
    labels = served.facts.labels
    data = []
    for thing in found.things:
        box = dict(zip(("xmin", "ymin", "xmax", "ymax"), (round(side, 2) for side in thing.box), strict=True))
        data.append({"label": labels[thing.label], "score": round(thing.score, 5), "box": box})
    return {
        "id": new_id("detect"),
        "object": "list",
        "created": int(time.time()),
        "model": served.name,
        "image": {"width": found.width, "height": found.height},
        "data": data,
    }


def _from_json(body: bytes) -> tuple[PictureQuestion, bytes]:
    try:
        question = DetectRequest.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}") from None
    except ValidationError as error:
        raise invalid_body(error.errors()) from None
    refuse_unsupported(question)
    text = question.image
    if mark := _DATA_URL.match(text):
        text = text[mark.end() :]
    elif text.startswith(("http:", "https:", "file:")):
        raise InvalidRequest(
            "`image` is an address; nothing is fetched here: send the picture in base64", param="image"
        )
    try:
        return question, base64.b64decode("".join(text.split()), validate=True)  # encoders break lines
    except (binascii.Error, ValueError):
        raise InvalidRequest("`image` is neither base64 nor a data URL of it", param="image") from None


def _from_query(request: Request) -> PictureQuestion:
    """What stands in the address, as a JSON body would have it."""
    given: dict[str, Any] = dict(request.query_params)
    for key, number in (("threshold", float), ("max_detections", int)):
        if key in given:
            try:
                given[key] = number(given[key])
            except ValueError:
                raise InvalidRequest(f"`{key}` is no number", param=key) from None
    try:
        question = PictureQuestion.model_validate(given)
    except ValidationError as error:
        raise invalid_body(error.errors()) from None
    refuse_unsupported(question)
    return question
