"""Paths that machines ask all day: load balancers, autoscalers, Prometheus, the kubelet.

The gate answers these itself. They take neither parameters nor a body, and a framework's way to a route (matching all paths,
dependencies, exit stacks) takes longer than their answers, between the tokens of somebody's answer. The same functions stand
behind the routes, which describe them in /openapi.json and answer other methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.responses import Response

from edge.api.front import Front
from edge.api.health import alive, readiness, scraped
from edge.api.load import node_load_answer

POLLED: Mapping[str, Callable[[Front], Awaitable[Response]]] = {
    "/health/live": alive,
    "/health/ready": readiness,
    "/health": readiness,
    "/healthz": readiness,
    "/metrics": scraped,
    "/edge/v1/load": node_load_answer,
}
