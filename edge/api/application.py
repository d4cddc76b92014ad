"""The ASGI application: routes, the gate around them, and one renderer for every error."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from edge.api import detect, embeddings, health, inference, load, models, page, v2
from edge.api.faults import invalid_body
from edge.api.front import Front
from edge.api.gate import Gate
from edge.api.job import ClientGone
from edge.api.render import error_response
from edge.errors import EdgeError, EngineFault, InvalidRequest, MethodNotAllowed, RouteNotFound


def build_application(front: Front, version: str) -> FastAPI:
    """Routes over `front`."""
    app = FastAPI(
        title="edge node",
        version=version,
        description="OpenAI-compatible inference on one box.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.front = front
    app.include_router(inference.router, tags=["inference"])
    app.include_router(embeddings.router, tags=["inference"])
    app.include_router(detect.router, tags=["inference"])
    app.include_router(v2.router, tags=["open inference protocol"])
    app.include_router(models.router, tags=["models"])
    app.include_router(health.router, tags=["health"])
    app.include_router(load.router, tags=["node"])
    app.include_router(page.router)
    app.add_exception_handler(EdgeError, _edge_error)
    app.add_exception_handler(ClientGone, _client_gone)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Gate, front=front)
    return app


async def _edge_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeError)
    return error_response(error, request.url.path)


async def _client_gone(_: Request, error: Exception) -> Response:
    """Nobody reads it."""
    return Response(status_code=499)


async def _validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's 422 becomes OpenAI's 400 with the field's name."""
    assert isinstance(error, RequestValidationError)
    errors, path = error.errors(), request.url.path
    first = errors[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", first["msg"])
        return error_response(InvalidRequest(f"the body is not JSON: {why}"), path)
    if isinstance(first.get("input"), bytes):  # FastAPI reads nothing as JSON that is not called so
        kind = request.headers.get("content-type", "")
        said = f"Content-Type is {kind[:100]!r}" if kind else "Content-Type is missing"
        return error_response(InvalidRequest(f"{said}; send JSON, with `Content-Type: application/json`"), path)
    return error_response(invalid_body(errors), path)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            return error_response(RouteNotFound("no such path; the API is described at /openapi.json"), path)
        case 405:
            return error_response(MethodNotAllowed("this path has no such method"), path, dict(error.headers or {}))
        case status if status < 500:
            return error_response(InvalidRequest(f"the body cannot be read: {_unread(error)}"), path)
    return error_response(EngineFault(str(error.detail)), path)


def _unread(error: HTTPException) -> str:
    """Why, where FastAPI only says that it is so."""
    match error.__cause__:
        case UnicodeDecodeError(object=found, start=at):
            return f"it is not UTF-8, from byte {at} on (0x{found[at]:02x})"
        case RecursionError():
            return "it is nested too deeply"
    return str(error.detail)
