"""Open Inference Protocol, version 2: any ONNX model by its tensors, in JSON or as bytes after a JSON part.

Source: KServe's Open Inference Protocol (REST), and Triton's binary tensor data extension.
"""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from edge import __version__
from edge.api.faults import invalid_body
from edge.api.front import Front
from edge.api.render import json_response
from edge.api.schema import InferInput, InferRequest
from edge.api.served import ServedTensors
from edge.api.tensors import HEADERS, answered, model_of
from edge.errors import InvalidRequest, ModelUnusable, UnsupportedParameter
from edge.onnx.datatypes import check_inputs, to_bytes, to_values
from edge.onnx.messages import Tensor, TensorFacts, TensorSpec

router = APIRouter(prefix="/v2")

_LENGTH = "inference-header-content-length"
_VERSION = "1"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "The request is wrong; `error` says what was expected.",
        401: "No API key, or an unknown one.",
        403: "The key lacks the scope.",
        404: "No such model.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        429: "Overloaded; see Retry-After.",
        500: "The model failed on this request.",
        503: "Loading, draining, or the engine is being replaced; see Retry-After.",
    }.items()
}
_INFER = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")},
            "application/octet-stream": {},
        },
    }
}


@router.get("", response_model=None)
async def server() -> Response:
    """Which server this is, and which extensions it has."""
    extensions = ["binary_tensor_data", "model_repository"]
    return json_response({"name": "edge", "version": __version__, "extensions": extensions})


@router.get("/health/live", response_model=None)
async def live() -> Response:
    """The process runs and its loop answers."""
    return json_response({"live": True})


@router.get("/health/ready", responses={503: {"description": "Not ready."}}, response_model=None)
async def ready(request: Request) -> Response:
    """Whether a request sent now would be worked on."""
    front: Front = request.app.state.front
    why = front.unready()
    if why is not None and not front.covered():
        return json_response({"error": f"{why[0]}: {why[1]}"}, status=503, headers={"retry-after": "1"})
    return json_response({"ready": True})


@router.get("/models/{model:path}/ready", responses=_ANSWERS, response_model=None)
async def model_ready(model: str, request: Request) -> Response:
    """Whether a request for this model would be answered: it is loaded, or will be for the first that asks."""
    front: Front = request.app.state.front
    state = front.pool.roster.state(front.pool.roster.require(_unversioned(model)))
    if front.drain.draining or state.standing == "failed":
        raise ModelUnusable(state.reason or "the node is shutting down")
    return json_response({"name": state.spec.name, "ready": True})


@router.post("/models/{model:path}/infer", responses=_ANSWERS, response_model=None, openapi_extra=_INFER)
async def infer(model: str, request: Request) -> Response:
    """One pass with the tensors given."""
    body, binary = _parts(await request.body(), request)
    tensors = _tensors(body, binary)
    wanted = _wanted(body)

    async def ask(served: ServedTensors) -> list[Tensor]:
        check_inputs(tensors, served.facts.inputs)
        known = [spec.name for spec in served.facts.outputs]
        for name in wanted:
            if name not in known:
                raise InvalidRequest(
                    f"unknown output {name[:100]!r}: the model has {', '.join(map(repr, known))}", param="outputs"
                )
        return await served.engine.infer(tensors, list(wanted))

    outputs, served = await answered(request, _unversioned(model), (), ask)
    return _answer(outputs, served, body, wanted)


@router.get("/models/{model:path}", responses=_ANSWERS, response_model=None)
async def metadata(model: str, request: Request) -> Response:
    """Names, number formats and shapes of a model's inputs and outputs; it is loaded if need be."""
    with await model_of(request, _unversioned(model), ()) as served:
        facts = served.facts
        return json_response(_metadata(served.name, facts))


@router.post("/repository/index", responses=_ANSWERS, response_model=None)
async def index(request: Request) -> Response:
    """All models of this node that answer with numbers, as far as they are known to."""
    front: Front = request.app.state.front
    rows = []
    for state in front.pool.roster.states():
        if state.spec.main:
            continue
        loaded = state.standing in ("ready", "restarting", "draining")
        shown = "READY" if loaded else "LOADING" if state.standing in ("loading", "waiting") else "UNAVAILABLE"
        rows.append({"name": state.spec.name, "version": _VERSION, "state": shown, "reason": state.reason})
    return json_response(rows)


def _metadata(name: str, facts: TensorFacts) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [_VERSION],
        "platform": "onnxruntime_onnx",
        "inputs": [_spec(spec) for spec in facts.inputs],
        "outputs": [_spec(spec) for spec in facts.outputs],
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


def _unversioned(model: str) -> str:
    """A model's name without `/versions/1`; there is one version of each at a time. Raises InvalidRequest for another."""
    name, mark, version = model.rpartition("/versions/")
    if not mark:
        return model
    if version != _VERSION:
        raise InvalidRequest(f"the model has version {_VERSION} only, not {version[:20]!r}")
    return name


# --- request ----------------------------------------------------------------------------------------------------------


def _parts(body: bytes, request: Request) -> tuple[InferRequest, bytes]:
    """The JSON part and what follows. Raises InvalidRequest."""
    declared = request.headers.get(_LENGTH)
    size = len(body)
    if declared is not None:
        if not declared.isdecimal() or len(declared) > 18 or int(declared) > len(body):
            raise InvalidRequest(
                f"Inference-Header-Content-Length is {declared[:40]!r}, and the body has {len(body)} bytes; it must be the "
                "length of the JSON part"
            )
        size = int(declared)
    try:
        parsed = InferRequest.model_validate(orjson.loads(body[:size]))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the JSON part cannot be read: {error}") from None
    except ValidationError as error:
        raise invalid_body(error.errors()) from None
    return parsed, body[size:]


def _tensors(body: InferRequest, binary: bytes) -> list[Tensor]:
    """Inputs as bytes, in whichever form they came. Raises InvalidRequest."""
    tensors, at = [], 0
    for given in body.inputs:
        parameters = given.parameters or {}
        _refuse_shared_memory(given.name, parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            tensors.append(Tensor(given.name, given.datatype, given.shape, _from_json(given)))
            continue
        if type(size) is not int or size < 0 or at + size > len(binary):
            raise InvalidRequest(
                f"the input {given.name!r} has a binary_data_size of {size!r}, and {len(binary) - at} bytes are left of the body",
                param="inputs",
            )
        if given.data is not None:
            raise InvalidRequest(f"the input {given.name!r} has `data` and binary_data_size: give one", param="inputs")
        tensors.append(Tensor(given.name, given.datatype, given.shape, binary[at : at + size]))
        at += size
    if at != len(binary):
        raise InvalidRequest(f"{len(binary) - at} bytes of the body belong to no input", param="inputs")
    return tensors


def _from_json(given: InferInput) -> bytes:
    if given.data is None:
        raise InvalidRequest(f"the input {given.name!r} has neither `data` nor binary_data_size", param="inputs")
    return to_bytes(given.name, given.datatype, given.data)


def _refuse_shared_memory(name: str, parameters: dict[str, Any]) -> None:
    for key in ("shared_memory_region", "classification"):
        if parameters.get(key):
            raise UnsupportedParameter(f"{name!r}: `{key}` is not supported; leave it out", param=key)


def _wanted(body: InferRequest) -> dict[str, bool]:
    """Outputs by name, and whether each is wanted as bytes. Empty: all."""
    whole = bool((body.parameters or {}).get("binary_data_output"))
    wanted: dict[str, bool] = {}
    for output in body.outputs or []:
        parameters = output.parameters or {}
        _refuse_shared_memory(output.name, parameters)
        wanted[output.name] = bool(parameters.get("binary_data", whole))
    return wanted


# --- answer -----------------------------------------------------------------------------------------------------------


def _answer(outputs: list[Tensor], served: ServedTensors, body: InferRequest, wanted: dict[str, bool]) -> Response:
    whole = bool((body.parameters or {}).get("binary_data_output"))
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for tensor in outputs:
        one: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if wanted.get(tensor.name, whole):
            one["parameters"] = {"binary_data_size": len(tensor.data)}
            binary.append(tensor.data)
        else:
            one["data"] = to_values(tensor)
        described.append(one)
    answer: dict[str, Any] = {"model_name": served.name, "model_version": _VERSION, "outputs": described}
    if body.id is not None:
        answer["id"] = body.id
    if not binary:
        return json_response(answer, headers=HEADERS)
    head = orjson.dumps(answer)
    headers = {**HEADERS, _LENGTH: str(len(head))}
    return Response(b"".join([head, *binary]), headers=headers, media_type="application/octet-stream")
