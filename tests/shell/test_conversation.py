"""The client behind `edge chat`, against real HTTP servers that answer as written here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from edge.conversation import Conversation, End, Reasoning, Text, ToolCall
from edge.errors import EdgeError, InvalidApiKey, NodeUnreachable

Serve = Callable[..., str]
MODELS = {"object": "list", "data": [{"id": "tiny"}]}


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that knows the models and answers each chat request with the next of the bodies given."""
    servers: list[ThreadingHTTPServer] = []

    def start(*bodies: str, models: Any = MODELS, status: int = 200, received: list[Any] | None = None) -> str:
        waiting = list(bodies)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(status, models if isinstance(models, str) else json.dumps(models))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if received is not None:
                    received.append(body)
                self._send(200, waiting.pop(0))

            def _send(self, status: int, text: str) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def stream(*deltas: dict[str, Any], finish: str = "stop", done: bool = True) -> str:
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + ("data: [DONE]\n\n" if done else "")


def test_an_answer_comes_in_pieces_and_is_remembered(serve: Serve) -> None:
    received: list[Any] = []
    url = serve(
        stream({"reasoning_content": "hm"}, {"content": "two "}, {"content": "words"}), stream(), received=received
    )
    with Conversation(url) as conversation:
        assert list(conversation.say("hello")) == [Reasoning("hm"), Text("two "), Text("words"), End("stop", ())]
        list(conversation.say("again"))
    assert [m["content"] for m in received[1]["messages"]] == ["hello", "two words", "again"]
    assert received[1]["model"] == "tiny"


def test_tool_calls_are_put_together_and_answered(serve: Serve) -> None:
    function = {"index": 0, "id": "c1", "function": {"name": "set_value", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    received: list[Any] = []
    url = serve(
        stream({"tool_calls": [function]}, {"tool_calls": [rest]}, finish="tool_calls"), stream(), received=received
    )
    with Conversation(url, tools=[{"type": "function"}]) as conversation:
        call = ToolCall("c1", "set_value", '{"a": 1}')
        assert list(conversation.say("set it"))[-1] == End("tool_calls", (call,))
        conversation.report(call, "done")
        list(conversation.go_on())
    assert received[1]["messages"][-1] == {"role": "tool", "tool_call_id": "c1", "content": "done"}
    assert received[1]["messages"][-2]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


@pytest.mark.parametrize(
    "body",
    [
        'data: {"error": {"code": "engine_down", "message": "gone"}}\n\n',
        "data: {broken\n\n",
        stream({"content": "a"}, done=False),
    ],
)
def test_a_failed_answer_leaves_no_trace(serve: Serve, body: str) -> None:
    with Conversation(serve(body)) as conversation:
        with pytest.raises(EdgeError):
            list(conversation.say("hello"))
        assert conversation.messages == []


def test_an_answer_that_is_given_up_leaves_no_trace(serve: Serve) -> None:
    with Conversation(serve(stream({"content": "a"}, {"content": "b"}))) as conversation:
        answer = conversation.say("hello")
        assert next(answer) == Text("a")
        answer.close()
        assert conversation.messages == []


@pytest.mark.parametrize("models", ["<html>", "[]", '{"data": []}'])
def test_what_is_no_node_is_said_to_be_none(serve: Serve, models: str) -> None:
    with (
        Conversation(serve(models=models)) as conversation,
        pytest.raises(NodeUnreachable, match="is not an edge node"),
    ):
        conversation.model()


def test_a_foreign_servers_error_is_not_taken_for_ours(serve: Serve) -> None:
    url = serve(models="<html>", status=404)
    with Conversation(url) as conversation, pytest.raises(NodeUnreachable, match=r"\(HTTP 404\); check --url"):
        conversation.model()


def test_a_missing_key_comes_with_the_cure(serve: Serve) -> None:
    url = serve(models={"error": {"code": "invalid_api_key", "message": "no API key"}}, status=401)
    with Conversation(url) as conversation, pytest.raises(InvalidApiKey, match="edge keys create NAME"):
        conversation.model()


def test_line_ends_that_are_none_in_json_break_no_event(serve: Serve) -> None:
    said = "one\u2028two\u0085three"
    body = f'data: {{"choices": [{{"index": 0, "delta": {{"content": "{said}"}}, "finish_reason": "stop"}}]}}\n\ndata: [DONE]\n\n'
    with Conversation(serve(body)) as conversation:
        events = list(conversation.say("hi"))
    assert events == [Text(said), End("stop", ())]


def test_what_other_servers_leave_out_or_send_as_null_is_nothing(serve: Serve) -> None:
    """A fleet's answers are passed on as they come."""
    chunks: list[dict[str, Any]] = [
        {"choices": None},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"delta": {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": None}}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": None}]}, "finish_reason": "tool_calls"}]},
    ]
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    with Conversation(serve(body)) as conversation:
        assert list(conversation.say("hi")) == [End("tool_calls", (ToolCall("a", "f", ""),))]
