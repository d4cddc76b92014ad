"""A node's life as its operator sees it: start, signals, service manager, keys, TLS."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import trustme

from bench.servers import free_port
from edge.durable import is_locked
from tests.conftest import RunEdge
from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.fleet.upstream import Upstream
from tests.fleet.upstream import running as upstream_running
from tests.waiting import until

LONG = {"prompt": "pump 3", "max_tokens": 1500, "stream": True, "ignore_eos": True}


@contextlib.contextmanager
def running(home: Path, *arguments: str, **env: str) -> Iterator[RunningNode]:
    node = start_node(home, *arguments, **env)
    try:
        yield node
    finally:
        if node.process.poll() is None:
            stop_node(node)


def model_of(node: RunningNode, client: httpx.Client) -> str:
    return str(client.get(f"{node.base_url}/v1/models").raise_for_status().json()["data"][0]["id"])


def account_of(node: RunningNode) -> str:
    """What it says once it serves, which is a moment after it is ready."""
    until(lambda: any(line.strip().startswith("curl ") for line in node.said().splitlines(True) if line.endswith("\n")))
    return node.said()


def test_it_says_what_it_loaded_where_and_how_to_try_it(node: RunningNode) -> None:
    said = account_of(node)
    assert re.search(r"^model +edge-builtin: .*M parameters, Q4_0, .*MB, ", said, re.MULTILINE)
    assert re.search(r"^runs on +CPU, \d+ threads?, 8 answers at a time, [\d,]+ tokens each$", said, re.MULTILINE)
    assert re.search(r"^memory +weights .*, attention .*, compute .*; processes: engine .*, front ", said, re.MULTILINE)
    assert f"{node.base_url}/v1 (no API key is required from this machine)" in said
    assert f'edge chat --url {node.base_url} "' in said
    assert "Traceback" not in said


def test_it_says_what_it_promises(home: Path) -> None:
    """With targets that a machine meets which is busy with other things while the node measures."""
    with running(home, "--set", "slo.ttft_ms=20000", "--set", "slo.itl_ms=20000") as node:
        said = account_of(node)
    assert re.search(r"promise +first token within 20000 ms.* up to [\d,]+ tokens and \d+ answers? at a time", said)


def test_health_is_one_word_and_an_exit_status(node: RunningNode, run_edge: RunEdge) -> None:
    for flags, word in (((), "ready\n"), (("--live",), "it runs\n")):
        done = run_edge("health", "--url", node.base_url, *flags)
        assert (done.returncode, done.stdout, done.stderr) == (0, word, "")


def test_the_curl_line_that_it_prints_works(node: RunningNode) -> None:
    line = next(line for line in account_of(node).splitlines() if line.strip().startswith("curl "))
    body = re.search(r"-d '(.*)'$", line)
    assert body is not None
    answer = httpx.post(f"{node.base_url}/v1/chat/completions", json=json.loads(body[1]), timeout=60, trust_env=False)
    assert answer.status_code == httpx.codes.OK
    assert answer.json()["choices"][0]["message"]["content"]


@pytest.fixture
def central() -> Iterator[Upstream]:
    with upstream_running(Upstream()) as upstream:
        yield upstream


def test_live_and_ready_answer_while_the_model_is_loading(home: Path, central: Upstream) -> None:
    """The socket is bound first; an engine that is not there yet is a reason, not a refused connection. A fleet is none for being
    ready: only who has answered once himself may be replaced by it."""
    seen: set[tuple[int, int]] = set()
    port = free_port()
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edge",
            "--home",
            str(home),
            "serve",
            "--port",
            str(port),
            "--set",
            f"fleet.url={central.url}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            while not any(ready == httpx.codes.OK for _, ready in seen):
                assert process.poll() is None
                with contextlib.suppress(httpx.ConnectError), httpx.Client(trust_env=False) as client:
                    ready = client.get(f"http://127.0.0.1:{port}/health/ready", timeout=60)
                    live = client.get(f"http://127.0.0.1:{port}/health/live", timeout=60)
                    seen.add((live.status_code, ready.status_code))
                    if ready.status_code != httpx.codes.OK:
                        assert ready.json()["code"] == "loading"
                    else:
                        assert ready.json()["by"] == "node"
        finally:
            process.terminate()
        assert process.wait(240) == 0
    assert {live for live, _ in seen} == {httpx.codes.OK}


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP, signal.SIGHUP]], ids=["told", "terminal closed"])
def test_sigterm_lets_a_stream_finish_and_refuses_new_work(home: Path, signals: list[signal.Signals]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup(1) a child would ignore it
    with running(home) as node, httpx.Client(trust_env=False, timeout=60) as client:
        signal.signal(signal.SIGHUP, before)
        model = model_of(node, client)
        with client.stream("POST", f"{node.base_url}/v1/completions", json={**LONG, "model": model}) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            engine = node.engine
            engine.suspend()  # the answer is not over before all that has happened
            group = [psutil.Process(node.process.pid), *psutil.Process(node.process.pid).children()]
            for number in signals:
                for process in group:
                    process.send_signal(number)
            while (refused := client.get(f"{node.base_url}/health/ready")).status_code == httpx.codes.OK:
                pass
            assert refused.status_code == httpx.codes.SERVICE_UNAVAILABLE
            late = client.post(f"{node.base_url}/v1/completions", json={"model": model, "prompt": "x", "max_tokens": 1})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
            assert float(late.headers["retry-after"]) > 0
            engine.resume()
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        events = [json.loads(line[6:]) for line in rest if line.startswith("data: {")]
        assert not [event for event in events if "error" in event]  # its text may well hold the word
        assert node.process.wait(240) == 0


def test_a_second_node_on_one_home_is_refused_until_the_first_is_gone_however(home: Path, run_edge: RunEdge) -> None:
    with running(home) as node:
        second = run_edge("serve", "--port", "0")
        assert (second.returncode, second.stderr) == (
            1,
            f"edge: another node runs on {home} already (process {node.process.pid}); stop it, or give this one a directory of "
            "its own: edge --home DIRECTORY serve\n",
        )
        assert run_edge("models", "list").returncode == run_edge("health", "--url", node.base_url).returncode == 0
        node.process.kill()
        node.process.wait(60)
        with running(home) as again:
            assert again.process.poll() is None


def test_a_node_that_is_killed_while_its_engine_saves_has_lost_no_telemetry(home: Path) -> None:
    flags = ("--set", "mqtt.url=mqtt://127.0.0.1:9", "--set", "cache.kept_mib=65536", "--set", "log.format=json")
    with running(home, *flags) as node:
        engine = node.engine
        engine.suspend()  # as one that writes to a slow disk
        node.process.send_signal(signal.SIGTERM)
        # If the outbox waits for the engine, that is in vain.
        until(lambda: node.process.poll() is not None or not is_locked(home / "outbox" / "outbox.lock"), 240)
        assert node.process.poll() is None and engine.is_running()
        node.process.kill()
        node.process.wait(60)
        with running(home, *flags) as again:
            assert '"event":"telemetry_gap"' not in again.said()


def test_a_second_signal_does_not_wait_for_an_engine_that_saves(home: Path) -> None:
    with running(home, "--set", "cache.kept_mib=65536") as node:  # which a slow disk may take two hours for
        node.engine.suspend()
        node.process.send_signal(signal.SIGINT)
        until(lambda: "stopping" in node.said(), 240)
        assert node.process.poll() is None
        node.process.send_signal(signal.SIGINT)
        assert node.process.wait(240) == 0
        assert "Traceback" not in node.said()


def test_a_second_signal_ends_it_at_once(home: Path) -> None:
    with running(home) as node, httpx.Client(trust_env=False, timeout=60) as client:
        model = model_of(node, client)
        with client.stream("POST", f"{node.base_url}/v1/completions", json={**LONG, "n": 32, "model": model}) as stream:
            lines = stream.iter_lines()
            next(lines)
            node.engine.suspend()  # this answer is not over before the second signal
            node.process.send_signal(signal.SIGINT)
            while client.get(f"{node.base_url}/health/ready").status_code == httpx.codes.OK:
                pass
            node.process.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx.TransportError):
                assert "data: [DONE]" not in list(lines)
        node.process.wait(240)
        assert "Traceback" not in node.said()


def test_the_service_manager_hears_of_each_stage(home: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        heard: list[str] = []

        def listen() -> None:
            while not heard or "STATUS=ending" not in heard[-1]:
                heard.append(manager.recv(4096).decode())

        listener = threading.Thread(target=listen)
        listener.start()
        kept = {"EDGE_CACHE__KEPT_MIB": "1000", "EDGE_SERVER__DRAIN_TIMEOUT_S": "7"}
        env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000", **kept}
        with running(home, **env) as node:
            until(lambda: any("READY=1" in message for message in heard))  # a moment after it is
            node.process.send_signal(signal.SIGTERM)
            assert node.process.wait(240) == 0
        listener.join(60)
    kinds = [message.split("=")[0] for message in heard]
    assert "EXTEND_TIMEOUT_USEC" in heard[0]
    assert "READY=1\nSTATUS=serving edge-builtin" in heard
    last_sign_of_life = len(kinds) - 1 - kinds[::-1].index("WATCHDOG")
    assert kinds.index("READY") < last_sign_of_life and kinds.index("READY") < kinds.index("STOPPING")
    asked = [
        int(message.partition("EXTEND_TIMEOUT_USEC=")[2]) / 1e6
        for message in (heard[kinds.index("STOPPING")], heard[-1])
    ]
    kept_s = (1000 << 20) / 10e6  # what the engine is given to write that much
    assert asked[0] >= 7 + kept_s and asked[1] >= kept_s and asked[0] - asked[1] == 7


def test_keys_are_created_checked_listed_and_revoked(home: Path, run_edge: RunEdge) -> None:
    key = run_edge("keys", "create", "robot-7").stdout.split()[-1]
    with running(home, "--set", "auth.mode=always") as node, httpx.Client(trust_env=False, timeout=60) as client:
        models = f"{node.base_url}/v1/models"
        assert client.get(models).status_code == httpx.codes.UNAUTHORIZED
        assert client.get(models, headers={"Authorization": f"Bearer {key}"}).status_code == httpx.codes.OK
        assert key not in run_edge("keys", "list").stdout
        assert "robot-7" in run_edge("keys", "list").stdout
        assert "an API key is required" in account_of(node)
        refused = run_edge("chat", "hello", "--url", node.base_url)
        assert refused.returncode == 1
        assert "`edge keys create NAME` makes one" in refused.stderr


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def test_tls_and_client_certificates(home: Path, tmp_path: Path, authority: trustme.CA, run_edge: RunEdge) -> None:
    server, person = authority.issue_cert("localhost"), authority.issue_cert("robot@example.com")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    server.private_key_pem.write_to_path(tmp_path / "key.pem")
    server.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    person.private_key_and_cert_chain_pem.write_to_path(tmp_path / "person.pem")
    (home / "edge.toml").write_text(
        f'[server]\nport = 0\ntls_cert = "{tmp_path}/cert.pem"\ntls_key = "{tmp_path}/key.pem"\n'
        f'tls_client_ca = "{tmp_path}/ca.pem"\n'
    )
    trusting = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    knowing = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    knowing.load_cert_chain(tmp_path / "person.pem")
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "edge", "--home", str(home), "serve"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        address = next(
            found[1] for line in process.stdout if (found := re.search(r"https://127\.0\.0\.1(:\d+)/v1", line))
        )
        live = f"https://localhost{address}/health/live"
        try:
            assert httpx.get(live, verify=knowing, timeout=60, trust_env=False).status_code == httpx.codes.OK
            with pytest.raises(httpx.TransportError):
                httpx.get(live, verify=trusting, timeout=60, trust_env=False)
            asked = run_edge("health", "--url", f"https://127.0.0.1{address}")
            assert (asked.returncode, asked.stdout) == (
                0,
                "it runs; whether it is ready it tells those with a client certificate only\n",
            )
            untrusted = run_edge("chat", "hello", "--url", f"https://localhost{address}")
            assert "is not trusted; name its CA's file with --ca" in untrusted.stderr
        finally:
            process.terminate()
            process.communicate(timeout=240)


def test_tls_files_that_do_not_belong_together_are_named(
    home: Path, tmp_path: Path, authority: trustme.CA, run_edge: RunEdge
) -> None:
    one, other = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    one.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    other.private_key_pem.write_to_path(tmp_path / "key.pem")
    arguments = ("--set", f"server.tls_cert={tmp_path}/cert.pem", "--set", f"server.tls_key={tmp_path}/key.pem")
    done = run_edge("serve", "--port", "0", *arguments)
    assert done.returncode == 1  # whoever renews them may be half way through
    assert done.stderr.startswith("edge: TLS files cannot be used")
    assert done.stderr.count("\n") == 1
