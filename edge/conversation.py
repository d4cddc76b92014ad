"""A conversation with a running node, over its HTTP API like any other client's."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from edge.errors import ConfigurationError, InvalidApiKey, NodeUnreachable, from_code

_CONNECT_S = 5.0
_SILENCE_S = 120.0


@dataclass(slots=True)
class ToolCall:
    """One call that the model wants made; `arguments` is JSON as the model wrote it."""

    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The answer is complete."""

    finish_reason: str
    tool_calls: tuple[ToolCall, ...]


Event = Text | Reasoning | End


@dataclass(slots=True)
class _Answer:
    text: str = ""
    finish_reason: str = ""
    calls: dict[int, ToolCall] = field(default_factory=dict)

    def take(self, chunk: dict[str, Any]) -> Iterator[Event]:
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                yield Reasoning(thought)
            if text := delta.get("content"):
                self.text += text
                yield Text(text)
            for piece in delta.get("tool_calls") or []:
                call = self.calls.setdefault(piece.get("index", 0), ToolCall())
                function = piece.get("function") or {}
                call.id = piece.get("id") or call.id
                call.name += function.get("name") or ""
                call.arguments += function.get("arguments") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def message(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.text or None}
        if self.calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.calls.values()
            ]
        return message


class Conversation:
    """Messages so far, and the next answer. Closes its connection as a context manager."""

    def __init__(
        self, base_url: str, *, key: str = "", tools: list[dict[str, Any]] | None = None, authority: Path | None = None
    ) -> None:
        self._url = base_url.rstrip("/")
        self._http = httpx.Client(
            timeout=httpx.Timeout(_SILENCE_S, connect=_CONNECT_S),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            verify=_trusting(authority) if authority else True,
            trust_env=False,  # a proxy between this machine and its own node is never meant
        )
        self._tools = tools
        self._model = ""
        self.messages: list[dict[str, Any]] = []

    def __enter__(self) -> Conversation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def model(self) -> str:
        """Name of the model that the node serves. Raises EdgeError."""
        if not self._model:
            try:
                response = self._http.get(f"{self._url}/v1/models")
                self._refuse_errors(response)
                self._model = str(response.json()["data"][0]["id"])
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._unreachable(error) from None
            except (ValueError, LookupError, TypeError):
                raise NodeUnreachable(f"what answers at {self._url} is not an edge node; check --url") from None
        return self._model

    def say(self, text: str) -> Iterator[Event]:
        """Add a person's message and stream the answer. Raises EdgeError; then the message is taken back."""
        return self._answer({"role": "user", "content": text})

    def report(self, call: ToolCall, result: str) -> None:
        """Add the result of a tool call; `go_on` then asks for the answer to it."""
        self.messages.append({"role": "tool", "tool_call_id": call.id, "content": result})

    def go_on(self) -> Iterator[Event]:
        """Stream the answer to what stands there."""
        return self._answer(None)

    def _answer(self, message: dict[str, Any] | None) -> Iterator[Event]:
        model = self.model()
        kept = len(self.messages)
        if message is not None:
            self.messages.append(message)
        body: dict[str, Any] = {"model": model, "messages": self.messages, "stream": True}
        if self._tools:
            body["tools"] = self._tools
        answer = _Answer()
        complete = False
        try:
            with self._http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                self._refuse_errors(response)
                for chunk in _events(response):
                    yield from answer.take(chunk)
            complete = True
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        finally:
            if complete:
                self.messages.append(answer.message())
            else:  # failed or interrupted: as if nothing had been said
                del self.messages[kept:]
        yield End(answer.finish_reason, tuple(answer.calls.values()))

    def _refuse_errors(self, response: httpx.Response) -> None:
        if not response.is_error:
            return
        try:
            detail = response.json()["error"]
            error = from_code(str(detail["code"]), str(detail["message"]), param=detail.get("param"))
        except (ValueError, LookupError, TypeError):
            raise NodeUnreachable(
                f"what answers at {self._url} is not an edge node (HTTP {response.status_code}); check --url"
            ) from None
        if response.status_code == httpx.codes.UNAUTHORIZED:
            cure = "give a key with --key or EDGE_API_KEY (`edge keys create NAME` makes one)"
            raise InvalidApiKey(f"{error.message}; {cure}")
        raise error

    def _unreachable(self, error: httpx.HTTPError | httpx.InvalidURL) -> NodeUnreachable:
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return NodeUnreachable(f"{self._url!r} is no address; write it like http://127.0.0.1:8080")
        if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return NodeUnreachable(f"the certificate of {self._url} is not trusted; name its CA's file with --ca")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return NodeUnreachable(
                f"nothing answers at {self._url}; start a node with `edge serve`, or name one with --url"
            )
        if isinstance(error, httpx.TimeoutException):
            return NodeUnreachable(f"the node at {self._url} said nothing for {_SILENCE_S:.0f} s; see its log")
        return NodeUnreachable(f"the connection to {self._url} broke ({error}); see the node's log")


def _trusting(authority: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:  # SSLError is one
        raise ConfigurationError(f"{authority} is no PEM file of certificates ({error.strerror}); check --ca") from None


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON events of a server-sent event stream, until [DONE]. Raises EdgeError for an error event."""
    for line in _lines(response):
        if not line.startswith("data:"):
            continue
        payload = line.removeprefix("data:").strip()
        if payload == "[DONE]":
            return
        try:
            event = json.loads(payload)
        except ValueError:
            raise NodeUnreachable("the answer cannot be read: one of its events is not JSON") from None
        if detail := event.get("error"):
            raise from_code(str(detail.get("code")), str(detail.get("message")))
        yield event
    raise NodeUnreachable("the answer broke off; see the node's log")


def _lines(response: httpx.Response) -> Iterator[str]:
    """Ended by line feeds alone: httpx also takes U+2028 and U+0085 for ends, and an answer may hold them."""
    rest = ""
    for text in response.iter_text():
        *lines, rest = (rest + text).split("\n")
        yield from lines
