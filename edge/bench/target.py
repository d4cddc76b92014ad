"""A server to measure: its address, its model, and which fields of a request it takes. Asked once, before measuring."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from edge.bench.stream import read
from edge.bench.trace import Api
from edge.bench.workload import Job
from edge.errors import (
    ConfigurationError,
    EdgeError,
    EngineFault,
    InvalidApiKey,
    InvalidRequest,
    ModelNotFound,
    NodeUnreachable,
    Overloaded,
    PermissionDenied,
)

_CONNECT_S = 5.0
_OPTIONAL: dict[str, Any] = {
    "ignore_eos": True,
    "stream_options": {"include_usage": True},
    "temperature": 0,
}
"""Fields that make a measurement better and that a server may refuse: then they are left out."""
_PATHS: dict[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is and how reports call it. `url` ends in its version, such as /v1."""

    name: str
    url: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read URL or NAME=URL. Raises ConfigurationError."""
        found = re.fullmatch(r"(?:([^=:/]+)=)?(https?://\S+)", text.strip())
        try:
            parts = urlsplit(found[2]) if found else None
            if parts is None or not parts.hostname or parts.query or parts.fragment or parts.port == 0:
                raise ValueError
        except ValueError:  # a port that is none as well
            raise ConfigurationError(f"{text!r} is no address; write it like http://127.0.0.1:8080/v1") from None
        if "@" in parts.netloc:
            raise ConfigurationError("an address must not hold a password: reports show it; use --key")
        path = parts.path.rstrip("/")
        if not re.search(r"/v\d+(beta)?$", path):
            path += "/v1"
        assert found is not None
        return cls((found[1] or parts.netloc).strip(), f"{parts.scheme}://{parts.netloc}{path}")


@dataclass(frozen=True, slots=True)
class Target:
    """A server that has answered a first request. `dropped` names the optional fields that it refused."""

    name: str
    url: str
    model: str
    api: Api
    key: str = ""
    tls: ssl.SSLContext | None = None
    dropped: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The path to post to."""
        return urlsplit(self.url).path + _PATHS[self.api]

    def body(self, job: Job) -> bytes:
        """The request for a job, in JSON."""
        fields: dict[str, Any] = {"model": self.model, "stream": True, "max_tokens": job.max_tokens}
        if self.api == "chat":
            fields["messages"] = job.messages
        else:
            fields["prompt"] = job.prompt
        return orjson.dumps(fields | {name: value for name, value in _OPTIONAL.items() if name not in self.dropped})


def tls_context(authority: Path | None) -> ssl.SSLContext:
    """What to trust: the system's authorities, or those in a PEM file. Raises ConfigurationError."""
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:  # SSLError is one
        raise ConfigurationError(f"{authority} is no PEM file of certificates ({error.strerror}); check --ca") from None


def find_target(
    address: Address, *, api: Api, model: str, key: str, authority: Path | None, timeout_s: float, first: Job
) -> Target:
    """Ask a server for its model unless `model` is given, and let it answer `first`, which also warms it up.

    Raises EdgeError: unreachable, wrong key, unknown model, overloaded, or not an OpenAI-compatible server.
    """
    tls = tls_context(authority) if address.url.startswith("https:") else None
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # http needs no trust, and the system's takes long to load
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S)
    with httpx.Client(headers=headers, timeout=timeout, verify=tls or nobody, trust_env=False) as http:
        try:
            target = Target(address.name, address.url, model or _model_of(http, address), api, key, tls)
            return _try(http, target, first)
        except httpx.HTTPError as error:
            raise _unreachable(address.url, error, timeout_s) from None


def _model_of(http: httpx.Client, address: Address) -> str:
    response = http.get(f"{address.url}/models")
    if response.status_code in (401, 403, 429, 503):
        raise _refusal(address.url, "", response)
    try:
        if response.is_error:
            raise ValueError
        return str(response.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        raise NodeUnreachable(
            f"what answers at {address.url} is no OpenAI-compatible server (HTTP {response.status_code} for /models "
            "without a model in it); check the URL, or name a model with --model"
        ) from None


def _try(http: httpx.Client, target: Target, job: Job) -> Target:
    """Send `job`, dropping the optional fields that the server refuses."""
    while True:
        response = http.post(
            target.url + _PATHS[target.api], content=target.body(job), headers={"Content-Type": "application/json"}
        )
        if response.status_code not in (400, 422):
            break
        left = [name for name in _OPTIONAL if name not in target.dropped]
        if not left:
            break
        named = next((name for name in left if name in response.text), left[0])
        target = Target(
            target.name, target.url, target.model, target.api, target.key, target.tls, (*target.dropped, named)
        )
    if response.is_error:
        raise _refusal(target.url, target.model, response)
    reading = read([(0.0, response.content)])
    if reading.error and reading.events:
        raise EngineFault(f"the server at {target.url} failed on a first request: {reading.error}; see its log")
    if not reading.events:
        raise NodeUnreachable(
            f"what answers at {target.url} does not stream as OpenAI's API does (no event in its answer, HTTP "
            f"{response.status_code}); check the URL and --api"
        )
    return target


def _refusal(url: str, model: str, response: httpx.Response) -> EdgeError:
    status = response.status_code
    try:
        detail = response.json()["error"]
        message = str(detail["message"] if isinstance(detail, dict) else detail).rstrip(".")
    except (ValueError, LookupError, TypeError):
        message = ""
    said = f"the server at {url} answers HTTP {status}" + (f", {message}" if message else "")
    if status == httpx.codes.UNAUTHORIZED:
        return InvalidApiKey(f"{said}; give its key with --key or EDGE_API_KEY")
    if status == httpx.codes.FORBIDDEN:
        return PermissionDenied(f"{said}; give a key that may do this with --key or EDGE_API_KEY")
    if status in (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE):
        return Overloaded(f"{said}, to a single request; wait until it is ready and idle")
    if status == httpx.codes.NOT_FOUND and message and "model" in message.lower():
        return ModelNotFound(f"{said}; choose the model with --model, or leave it out to take the server's first")
    if status == httpx.codes.NOT_FOUND:
        return NodeUnreachable(f"what answers at {url} is no OpenAI-compatible server (HTTP 404); check the URL")
    if httpx.codes.is_client_error(status):
        return InvalidRequest(f"{said}; check --model ({model}), --api and the prompt lengths")
    return EngineFault(f"{said}; see the server's log")


def _unreachable(url: str, error: httpx.HTTPError, timeout_s: float) -> NodeUnreachable:
    if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return NodeUnreachable(f"the certificate of {url} is not trusted; name its CA's file with --ca")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NodeUnreachable(f"nothing answers at {url}; start a node with `edge serve`, or check the URL")
    if isinstance(error, httpx.TimeoutException):
        return NodeUnreachable(f"the server at {url} did not end a first answer within {timeout_s:g} s; see its log")
    return NodeUnreachable(f"what answers at {url} does not speak HTTP as expected ({error}); check the URL")
