"""By which names a node that asks for no key may be called, and what web pages may send it. Over real sockets."""

from __future__ import annotations

import json
import socket

import pytest

from edge.api import KeyStore
from edge.api.gate import HEALTH
from edge.api.hosts import HostNames
from tests.api.conftest import Node, Serve

CHAT = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}).encode()


def asked(
    node: Node, path: str = "/v1/models", *headers: str, body: bytes = b"", version: str = "1.1"
) -> tuple[int, str]:
    """Status, and the error's code if there is one."""
    method = "POST" if body else "GET"
    head = [f"{method} {path} HTTP/{version}", *headers, f"Content-Length: {len(body)}", "Connection: close"]
    with node.connect() as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    top, _, rest = answer.partition(b"\r\n\r\n")
    status = int(top.split()[1])
    error = json.loads(rest)["error"] if status >= 400 else ""  # of /v2 a text
    return status, error["code"] if isinstance(error, dict) else error


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:9", "localhost.", "edge.localhost:1", "[::1]:8080", "[::1]",
        "[fe80::1]:80", "10.42.0.7:8080", "192.168.1.5", "127.1", "", ":8080", "robot-12", "Robot-12.local:8080", "robot-12.lan",
        "loop.site", "box.tailnet.example:443", "BOX.tailnet.example",
    ],
)  # fmt: skip
def test_addresses_and_its_own_names_are_a_nodes(host: str) -> None:
    names = HostNames("loop.site", ("box.tailnet.example",))
    assert names.include(host, "robot-12.lan")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost",
        "robot-12.evil.example",
        "robot-13", "robot-12.local.evil.example", "box", "x.box.tailnet.example", "[evil.example]", "0x7f.evil",
        "evil.example.", "1.2.3.4.nip.io", "edge.default.svc.cluster.local",
    ],
)  # fmt: skip
def test_names_that_others_give_away_are_not(host: str) -> None:
    names = HostNames("127.0.0.1", ("box.tailnet.example",))
    assert not names.include(host, "robot-12.lan")
    assert HostNames("127.0.0.1", ("*",)).include(host, "robot-12.lan")


def test_a_request_by_another_name_is_refused_with_the_cure(serve: Serve) -> None:
    node = serve()
    for path in ("/", "/v1/models", "/metrics", "/edge/v1/load", "/edge/v1/decisions", "/openapi.json", "/nothing"):
        assert asked(node, path, "Host: evil.example") == (403, "host_not_allowed")
    assert asked(node, "/v1/chat/completions", "Host: evil.example", body=CHAT) == (403, "host_not_allowed")
    assert node.engine.streams == []
    with node.http(headers={"host": b"evil.example\x9b2J:8080"}) as client:
        message = client.get("/v1/models").json()["error"]["message"]
    assert "'evil.example2j'" in message and "server.allowed_hosts" in message and "auth.mode" in message


def test_a_node_is_called_as_before(serve: Serve) -> None:
    node = serve(hosts=HostNames("127.0.0.1", ("proxy.example",)))
    for host in ("127.0.0.1:1", "localhost", "[::1]:8080", socket.gethostname(), "proxy.example"):
        assert asked(node, "/v1/models", f"Host: {host}") == (200, "")
    assert asked(node, version="1.0") == (200, "")
    assert asked(serve(hosts=HostNames("127.0.0.1", ("*",))), "/v1/models", "Host: any.example") == (200, "")


def test_probes_call_a_node_as_they_like_and_who_has_a_key_too(serve: Serve, keys: KeyStore) -> None:
    node = serve()
    for path in HEALTH:
        assert asked(node, path, "Host: edge.default.svc:8080") == (200, "")
    key = keys.create("x", scopes=("inference",), requests_per_minute=None, created="")
    closed = serve(keys_required=True)
    assert asked(closed, "/v1/models", "Host: edge.default.svc", f"Authorization: Bearer {key}") == (200, "")
    assert asked(closed, "/v1/models", "Host: edge.default.svc") == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "kind", ["", "Content-Type: text/plain;charset=UTF-8", "Content-Type: multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize("path", ["/v1/detect", "/v2/models/fake/infer", "/v1/chat/completions"])
def test_a_page_cannot_make_the_node_work_by_what_it_sends_unasked(
    serve: Serve, keys: KeyStore, path: str, kind: str
) -> None:
    """Browsers ask first before they send anything else; nobody answers them."""
    node = serve()
    text = "a web page has to say what it sends: `Content-Type: application/json`, say"
    refused = (403, text if path.startswith("/v2") else "insufficient_scope")
    headers = ["Host: 127.0.0.1", *([kind] if kind else [])]
    assert asked(node, path, *headers, "Origin: https://evil.example", body=CHAT) == refused
    assert asked(node, path, *headers, "Origin: null", body=CHAT) == refused
    assert asked(node, path, *headers, body=CHAT) != refused
    with node.http(headers={"origin": "https://evil.example", "access-control-request-method": "POST"}) as client:
        asked_first = client.options(path)
    assert asked_first.status_code == 405 and "access-control-allow-origin" not in asked_first.headers


def test_a_page_that_a_proxy_serves_beside_the_node_may_ask(serve: Serve) -> None:
    headers = ("Host: 127.0.0.1:8080", "Origin: https://shop.example", "Content-Type: application/json")
    assert asked(serve(), "/v1/chat/completions", *headers, body=CHAT) == (200, "")
