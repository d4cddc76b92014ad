"""Asks a running node over its HTTP API, for commands that look at one or steer it."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from edge.cli.flags import node_url
from edge.errors import EdgeError, InvalidApiKey, NodeUnreachable, PermissionDenied

_TIMEOUT_S = 5.0


class NodeRefused(EdgeError):
    """The node answered, and did not do it."""

    code = "refused"


@dataclass(frozen=True, slots=True)
class RunningNode:
    """Where a node answers, and with which key."""

    url: str
    key: str
    authority: Path | None
    scope: str
    """That the key needs for what is asked."""

    def get(self, path: str) -> dict[str, Any]:
        """The object at that path. Raises NodeUnreachable, InvalidApiKey, PermissionDenied, NodeRefused."""
        return self._ask("GET", path, _TIMEOUT_S)

    def post(self, path: str) -> dict[str, Any]:
        """The same for what changes something; waits as long as it takes."""
        return self._ask("POST", path, None)

    def _ask(self, method: str, path: str, timeout_s: float | None) -> dict[str, Any]:
        import httpx

        try:
            verify = ssl.create_default_context(cafile=self.authority) if self.authority else True
            headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
            with httpx.Client(verify=verify, headers=headers, trust_env=False) as client:
                timeout = httpx.Timeout(timeout_s, connect=_TIMEOUT_S)
                answer = client.request(method, self.url + path, timeout=timeout)
        except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol):
            said = f"nothing answers at {self.url}; start a node with `edge serve`, or name one with --url"
            raise NodeUnreachable(said) from None
        except OSError as error:
            raise NodeUnreachable(f"{self.authority} cannot be read: {error.strerror or error}") from None
        return self._understood(answer)

    def _understood(self, answer: Any) -> dict[str, Any]:
        if answer.status_code == 401:
            raise InvalidApiKey(f"the node at {self.url} wants an API key: give --key, or set EDGE_API_KEY")
        if answer.status_code == 403:
            raise PermissionDenied(f"this key may not do that; make one: edge keys create NAME --scope {self.scope}")
        try:
            found = answer.json()
        except ValueError:
            found = None
        if isinstance(found, dict) and answer.is_success:
            return found
        error = found.get("error") if isinstance(found, dict) else None
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            raise NodeRefused(error["message"])
        raise NodeUnreachable(f"what answers at {self.url} is no edge node of this version")


def node_options(scope: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command `--url`, `--key` and `--ca`; it gets a RunningNode as `node`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(url: str | None, key: str, ca: Path | None, **rest: Any) -> Any:
            return function(node=RunningNode(node_url(url), key, ca, scope), **rest)

        options = (
            click.option(
                "--url", envvar="EDGE_URL", help="Address of the node [default: where `edge serve` would listen]."
            ),
            click.option(
                "--key",
                envvar="EDGE_API_KEY",
                default="",
                help=f"API key with the scope `{scope}` [default: $EDGE_API_KEY].",
            ),
            click.option(
                "--ca", type=click.Path(path_type=Path), help="PEM file of the CA that signed the node's certificate."
            ),
        )
        decorated: Callable[..., Any] = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate
