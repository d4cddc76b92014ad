"""Which models there are: OpenAI's list, and what operators see and do."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from edge.admission.policy import Mode
from edge.api.front import Front
from edge.api.render import json_response
from edge.api.schema import ErrorAnswer
from edge.errors import NodeDraining
from edge.messages import ModelFacts
from edge.onnx.messages import TensorFacts
from edge.registry.resolve import ResolvedModel
from edge.residency import ModelState

router = APIRouter()

_KEYED: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {401: "No API key, or an unknown one.", 403: "The key lacks the scope."}.items()
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer, "description": "No such model."}}
_LOADED: dict[int | str, dict[str, Any]] = {
    202: {"description": "It begins; `wait` was false."},
    400: {"model": ErrorAnswer, "description": "`wait` is neither true nor false."},
    409: {"model": ErrorAnswer, "description": "The model stays loaded."},
    503: {"model": ErrorAnswer, "description": "The file cannot be used, or there is no memory for it."},
}


@router.get("/v1/models", responses=_KEYED, response_model=None)
async def models(request: Request) -> Response:
    """All models, loaded or not, the main one first."""
    front: Front = request.app.state.front
    cards = [_card(state, front.config.mode) for state in front.pool.roster.states()]
    return json_response({"object": "list", "data": cards})


@router.get("/v1/models/{model:path}", responses={**_KEYED, **_NOT_FOUND}, response_model=None)
async def model(model: str, request: Request) -> Response:
    """One model, by name or alias."""
    front: Front = request.app.state.front
    return json_response(_card(front.pool.roster.state(front.pool.roster.require(model)), front.config.mode))


@router.get("/edge/v1/models", responses=_KEYED, response_model=None)
async def states(request: Request) -> Response:
    """All models as operators see them, and the memory that they share."""
    front: Front = request.app.state.front
    room = {"room_bytes": front.pool.limits.room_bytes, "planned_bytes": front.pool.planned_bytes}
    data = [model_state(state, front.config.mode) for state in front.pool.roster.states()]
    return json_response({"memory": room, "models": data})


@router.post("/edge/v1/models/{name:path}/load", responses={**_KEYED, **_NOT_FOUND, **_LOADED}, response_model=None)
async def load(name: str, request: Request, wait: bool = True) -> Response:
    """Load a model; if its file has changed, load the new version and swap. Answers when it is ready, or at once if `wait` is
    false."""
    front: Front = request.app.state.front
    name = _taken(front, name)
    await front.pool.load(name, wait=wait)
    return json_response(model_state(front.pool.roster.state(name), front.config.mode), status=200 if wait else 202)


@router.post("/edge/v1/models/{name:path}/unload", responses={**_KEYED, **_NOT_FOUND, **_LOADED}, response_model=None)
async def unload(name: str, request: Request, wait: bool = True) -> Response:
    """Unload a model when its last answer has ended. The next request for it loads it again."""
    front: Front = request.app.state.front
    name = _taken(front, name)
    await front.pool.unload(name, wait=wait)
    return json_response(model_state(front.pool.roster.state(name), front.config.mode), status=200 if wait else 202)


def _taken(front: Front, name: str) -> str:
    """The model that is meant. Raises ModelNotFound, NodeDraining."""
    found = front.pool.roster.require(name)
    if front.drain.draining:
        raise NodeDraining("the node is shutting down and takes no new work")
    return found


def model_state(state: ModelState, mode: Mode) -> dict[str, Any]:
    """One model for operators."""
    spec = state.spec
    return {
        "name": spec.name,
        **_brief(state, mode),
        "reason": state.reason,
        "progress": round(state.progress, 3),
        "main": spec.main,
        "path": str(state.version.model.path) if state.version is not None else None,
        "waiting": state.waiting,
        "idle_s": round(state.idle_s, 1) if state.idle_s is not None else None,
        "unloads_after_s": spec.idle_s or None,
        "replacing": state.replacing,
        "loads": state.loads,
        "unloads": state.unloads,
        "failures": state.failures,
    }


def _brief(state: ModelState, mode: Mode) -> dict[str, Any]:
    spec = state.spec
    return {
        "state": state.standing,
        "class": "slo" if spec.main and mode != "off" else "best-effort",
        "pinned": spec.fixed,
        "aliases": list(spec.aliases),
        "bytes_planned": state.bytes_planned,
        "bytes_resident": state.bytes_resident,
        "in_flight": state.in_flight,
    }


def _card(state: ModelState, mode: Mode) -> dict[str, Any]:
    """One model as OpenAI's clients read it."""
    version = state.version
    card: dict[str, Any] = {
        "id": state.spec.name,
        "object": "model",
        "created": version.modified if version is not None else 0,
        "owned_by": "edge",
        "edge": _brief(state, mode),
    }
    if isinstance(state.facts, TensorFacts):
        card |= _tensor_measures(state.facts)
    elif state.facts is not None:
        card |= _measures(state.facts)
    elif version is not None and isinstance(version.model, ResolvedModel):
        header = version.model.header
        card["meta"] = {
            "n_ctx_train": header.context_tokens,
            "n_params": header.parameters,
            "n_vocab": header.vocabulary,
            "size": sum(header.tensor_bytes.values()),
        }
    return card


def _tensor_measures(facts: TensorFacts) -> dict[str, Any]:
    card: dict[str, Any] = {"meta": {"size": facts.weights_bytes, "task": facts.task, "provider": facts.provider}}
    if facts.max_tokens:
        card["max_model_len"] = facts.max_tokens
        card["meta"] |= {"width": facts.width, "most_rows": facts.most_rows, "one_ms": round(facts.one_s * 1000, 2)}
    return card


def _measures(facts: ModelFacts) -> dict[str, Any]:
    return {
        "max_model_len": facts.context_tokens,
        "meta": {
            "n_ctx_train": facts.train_context_tokens,
            "n_params": facts.parameters,
            "n_vocab": facts.vocabulary,
            "size": facts.model_bytes,
        },
    }
