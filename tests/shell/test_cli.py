"""What a person reads on the terminal. The real command line runs, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import trustme

from edge import __version__
from tests.conftest import RunEdge
from tests.e2e.test_onnx import put_models as put_onnx_models
from tests.fleet.upstream import Upstream, running


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line on standard error, after a look that nothing else is there."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("edge: ")
    return lines[0].removeprefix("edge: ")


def test_help_names_every_command_and_loads_none(run_edge: RunEdge) -> None:
    done = run_edge("--help")
    assert done.returncode == 0
    for command in ("serve", "chat", "bench", "plan", "doctor", "health", "install", "keys", "settings", "version"):
        assert re.search(rf"^  {command} ", done.stdout, re.MULTILINE)
        assert run_edge(command, "--help").returncode == 0
    imported = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edge", "--help"], capture_output=True, text=True, check=True
    ).stderr
    for heavy in ("pydantic", "fastapi", "uvicorn", "httpx", "numpy", "rich", "edge.cli.serve"):
        assert not re.search(rf"\| +{re.escape(heavy)}$", imported, re.MULTILINE), heavy


def test_version(run_edge: RunEdge) -> None:
    assert run_edge("version").stdout.startswith(f"edge {__version__} (llama-cpp-python 0.3.")
    assert run_edge("--version").stdout == f"edge {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["fly"], "No such command 'fly' (see `edge --help`)"),
        (["serve", "--colour"], "No such option '--colour' (see `edge serve --help`)"),
        (["serve", "--set", "engine.slots"], "--set wants SECTION.NAME=VALUE, not 'engine.slots'"),
        (["keys", "create"], "Missing argument 'NAME'"),
    ],
)
def test_wrong_usage_is_one_line_with_a_pointer(run_edge: RunEdge, arguments: list[str], part: str) -> None:
    assert part in complaint(run_edge(*arguments), 2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--port", "99999"],
            "server.port = '99999' (from --port) is refused: it must be a whole number from 0 to 65535",
        ),
        (["--set", "engine.slot=4"], "unknown setting `engine.slot` in --set engine.slot: engine has context_tokens, "),
        (["--host", "256.1.1.1"], "server.host '256.1.1.1' is no address of this machine"),
        (["--host", "0.0.0.0"], "edge keys create NAME"),
    ],
)
def test_serve_refuses_what_cannot_work(run_edge: RunEdge, arguments: list[str], part: str, tiny_gguf: Path) -> None:
    assert part in complaint(run_edge("serve", "--port", "0", "--model", str(tiny_gguf), *arguments), 78)


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ("server.host=box.invalid", "no name that can be looked up now"),
        ("server.tls_cert=/no.pem server.tls_key=/no.pem", "cannot read a TLS file"),
        ("fleet.url=https://fleet.invalid/v1 fleet.ca_file=/no.pem", "ca_file /no.pem is no file"),
        ("fleet.file=/no.toml", "fleet.file /no.toml cannot be read"),
        ("cache.pinned_file=/no.jsonl", "cache.pinned_file /no.jsonl cannot be read"),
        ("mqtt.url=mqtt://127.0.0.1:9 mqtt.command_keys_file=/no.pem", "mqtt.command_keys_file /no.pem cannot be read"),
    ],
)
def test_what_may_be_there_later_ends_a_start_so_that_it_is_tried_again(
    run_edge: RunEdge, settings: str, part: str
) -> None:
    flags = [word for setting in settings.split() for word in ("--set", setting)]
    assert part in complaint(run_edge("serve", "--port", "0", *flags), 1)


def test_serve_refuses_a_wrong_environment(run_edge: RunEdge) -> None:
    message = complaint(run_edge("serve", EDGE_ENGINE__SLOTS="many"), 78)
    assert message == (
        "engine.slots = 'many' (from EDGE_ENGINE__SLOTS) is refused: it must be a whole number from 0 to 128"
    )


def test_serve_refuses_a_wrong_file(run_edge: RunEdge, home: Path) -> None:
    (home / "edge.toml").write_text("[server]\nprot = 1\n")
    assert "unknown setting `server.prot`" in complaint(run_edge("serve"), 78)


def test_serve_names_what_is_wrong_with_a_model(run_edge: RunEdge, tmp_path: Path, tiny_gguf: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny_gguf.read_bytes()[:-600])
    (tmp_path / "page.gguf").write_text("<html>")
    for name, part in {
        "cut.gguf": "its tensor table needs",
        "page.gguf": "is not a GGUF file: it starts with b'<htm'",
        "missing.gguf": "there is no file",
    }.items():
        assert part in complaint(run_edge("serve", "--port", "0", "--model", str(tmp_path / name)), 1)
    assert "unknown model 'nonesuch': known are " in complaint(
        run_edge("serve", "--port", "0", "--model", "nonesuch"), 1
    )


def test_serve_refuses_a_model_that_only_looks_right(run_edge: RunEdge, tiny_gguf: Path) -> None:
    """Its header is sound, it is no llama all the same: libllama itself refuses it, in the engine's process."""
    done = run_edge("serve", "--port", "0", "--model", str(tiny_gguf))
    assert done.returncode == 1
    assert f"edge: {tiny_gguf} cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_serve_names_a_busy_port(run_edge: RunEdge, tiny_gguf: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = complaint(run_edge("serve", "--model", str(tiny_gguf), "--port", str(port)), 1)
    assert message.startswith(f"port {port} on 127.0.0.1 is in use already; stop what listens there or choose another")


def test_chat_says_how_to_start_a_node_when_none_answers(run_edge: RunEdge) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        message = complaint(run_edge("chat", "hello", "--url", url), 1)
    assert message == f"nothing answers at {url}; start a node with `edge serve`, or name one with --url"


@pytest.mark.parametrize("url", ["http://", "ftp://127.0.0.1"])
def test_chat_refuses_what_is_no_address(run_edge: RunEdge, url: str) -> None:
    assert "is no address" in complaint(run_edge("chat", "hello", "--url", url), 1)


@pytest.mark.parametrize("form", ["http://{}", "http://{}/v1", "{}", "{}/v1/"])
def test_an_address_may_be_written_as_the_node_prints_it_or_shorter(run_edge: RunEdge, form: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}"
        for command in (("status",), ("chat", "hello")):
            message = complaint(run_edge(*command, "--url", form.format(place)), 1)
            assert message.startswith(f"nothing answers at http://{place};")


class _Draining(BaseHTTPRequestHandler):
    """Answers as a node does that takes no new work."""

    def do_GET(self) -> None:
        body = b'{"status": "unavailable", "code": "draining", "reason": "the node is stopping"}'
        self.send_response(503)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is written."""


def test_health_says_why_a_node_takes_no_requests(run_edge: RunEdge) -> None:
    with HTTPServer(("127.0.0.1", 0), _Draining) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run_edge("health", "--url", f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "not ready: the node is stopping\n")


class _ByTheFleet(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "ok", "by": "fleet", "code": "engine_down", "reason": "down: killed"}')

    def log_message(self, *_: object) -> None:
        """Nothing is written."""


def test_health_says_that_the_fleet_answers_in_the_nodes_place(run_edge: RunEdge) -> None:
    with HTTPServer(("127.0.0.1", 0), _ByTheFleet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = run_edge("health", "--url", f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "ready by the fleet alone, its own model is not: down: killed\n"


def test_health_says_that_nothing_answers(run_edge: RunEdge) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert complaint(run_edge("health", "--url", url), 1).startswith(f"nothing answers at {url} (")


@pytest.mark.parametrize("asks", [False, True], ids=["hangs up", "asks for a certificate"])
def test_health_over_tls_tells_a_hang_up_from_a_node_that_asks_for_a_certificate(
    asks: bool, run_edge: RunEdge, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    if asks:
        authority.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED

    def answer(listening: socket.socket) -> None:
        with (
            listening.accept()[0] as plain,
            contextlib.suppress(ssl.SSLError),
            context.wrap_socket(plain, server_side=True) as secured,
        ):
            secured.recv(1 << 16)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}"
        done = run_edge("health", "--url", url)
        thread.join()
    if asks:
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "it runs; whether it is ready it tells those with a client certificate only\n"
    else:
        assert complaint(done, 1).startswith(f"nothing answers at {url} (")


def test_chat_names_a_wrong_tools_file(run_edge: RunEdge, tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text("{")
    assert "is not valid JSON" in complaint(run_edge("chat", "x", "--tools", str(tmp_path / "tools.json")), 78)
    assert "cannot read" in complaint(run_edge("chat", "x", "--tools", str(tmp_path / "none.json")), 78)


def test_chat_names_a_wrong_authority(run_edge: RunEdge, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    assert "is no PEM file of certificates" in complaint(run_edge("chat", "x", "--ca", str(tmp_path / "ca.pem")), 78)
    assert "No such file" in complaint(run_edge("chat", "x", "--ca", str(tmp_path / "none.pem")), 78)


def test_keys_are_made_shown_and_dropped(run_edge: RunEdge) -> None:
    made = run_edge("keys", "create", "robot-7", "--scope", "metrics", "--requests-per-minute", "60")
    assert made.returncode == 0
    assert re.fullmatch(r"edge-\S{40,}\n", made.stdout)
    listed = run_edge("keys", "list").stdout
    assert re.search(r"^robot-7  edge-....\.\.\.  \S+Z  metrics  60/min$", listed, re.MULTILINE)
    assert made.stdout.strip() not in listed
    assert "already" in complaint(run_edge("keys", "create", "robot-7"), 78)
    assert run_edge("keys", "revoke", "robot-7").stdout == "revoked robot-7\n"
    assert "there is no key named 'robot-7'" in complaint(run_edge("keys", "revoke", "robot-7"), 78)
    assert "there are no keys" in run_edge("keys", "list").stderr


def test_a_home_that_cannot_be_made_is_named(run_edge: RunEdge, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = complaint(run_edge("keys", "create", "x", EDGE_HOME=str(tmp_path / "file" / "home")), 78)
    assert str(tmp_path / "file") in message


def test_alone_it_shows_its_help(run_edge: RunEdge) -> None:
    for arguments in ([], ["keys"]):
        done = run_edge(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: edge")


def test_settings_show_values_with_their_source(run_edge: RunEdge, home: Path) -> None:
    (home / "edge.toml").write_text("[engine]\nslots = 3\n")
    done = run_edge("settings", "--changed", EDGE_LOG__LEVEL="debug")
    assert done.returncode == 0
    assert re.search(rf"^slots = 3 +# {re.escape(str(home / 'edge.toml'))}$", done.stdout, re.MULTILINE)
    assert re.search(r'^level = "debug" +# EDGE_LOG__LEVEL$', done.stdout, re.MULTILINE)
    assert "port" not in done.stdout


def test_the_output_of_settings_is_a_settings_file(run_edge: RunEdge, home: Path) -> None:
    first = run_edge("settings", "--set", "engine.slots=3").stdout
    (home / "edge.toml").write_text(first)
    second = run_edge("settings")
    assert second.returncode == 0
    assert re.search(r"^slots = 3 +# .*edge\.toml$", second.stdout, re.MULTILINE)


def test_doctor_finds_a_sound_machine(run_edge: RunEdge) -> None:
    done = run_edge("doctor", EDGE_SERVER__PORT="0")
    assert done.returncode == 0, done.stdout
    for subject in ("python", "native library", "cores", "memory", "EDGE_HOME", "clock", "settings", "model", "port"):
        assert re.search(rf"^(ok  |warn)  {subject} ", done.stdout, re.MULTILINE), done.stdout


def absent(directory: Path, *names: str) -> str:
    """A PYTHONPATH on which these packages cannot be imported, as where they are not installed."""
    for name in names:
        directory.mkdir(exist_ok=True)
        (directory / f"{name}.py").write_text(
            f"raise ModuleNotFoundError(\"No module named '{name}'\", name='{name}')\n"
        )
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_doctor_looks_for_what_onnx_models_need(run_edge: RunEdge, home: Path, tmp_path: Path) -> None:
    put_onnx_models(home)
    done = run_edge("doctor", EDGE_SERVER__PORT="0")
    assert re.search(r"ok +ONNX runtime +onnxruntime \d.* with .*CPUExecutionProvider; tokenizers \d", done.stdout), (
        done.stdout
    )
    done = run_edge("doctor", EDGE_SERVER__PORT="0", PYTHONPATH=absent(tmp_path / "absent", "onnxruntime"))
    assert done.returncode == 0, "the node starts without it"
    assert re.search(r"warn +ONNX runtime +onnxruntime, which \S+ needs, does not load: .*No module named", done.stdout)
    assert "pip install 'edge-node[onnx]'" in done.stdout


def test_doctor_checks_what_serve_would_meet_with_the_same_flags(run_edge: RunEdge) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run_edge("doctor", "--model", "nonesuch", "--set", f"server.port={port}")
    assert done.returncode == 1
    assert re.search(r"^ok +settings +valid, .*server.port.* set$", done.stdout, re.MULTILINE)
    assert re.search(r"^fail +model +unknown model 'nonesuch'", done.stdout, re.MULTILINE)
    assert re.search(rf"^(warn|fail) +port +.*{port}", done.stdout, re.MULTILINE)
    wrong = run_edge("doctor", "--port", "high")
    assert wrong.returncode == 1 and "server.port = 'high' (from --port) is refused" in wrong.stdout
    assert run_edge("doctor", "--set", "server.port").returncode == 2


def test_doctor_names_each_fault_and_its_cure(run_edge: RunEdge, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_edge("doctor", EDGE_HOME=str(tmp_path / "file" / "home"))
    assert done.returncode == 1
    assert re.search(r"^fail  EDGE_HOME .*\n +do: give this user the directory", done.stdout, re.MULTILINE)
    done = run_edge("doctor", EDGE_MODEL__NAME="nonesuch", EDGE_SERVER__HOST="0.0.0.0", EDGE_SERVER__PORT="0")
    assert done.returncode == 1
    assert re.search(r"^fail  API keys +none, .*\n +do: edge keys create NAME", done.stdout, re.MULTILINE)
    assert re.search(r"^fail  model +unknown model 'nonesuch'.*; or give the path of a", done.stdout, re.MULTILINE)
    done = run_edge("doctor", EDGE_SERVER__PORT="high")
    assert re.search(r"^fail  settings +server\.port = 'high'", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, r"ok +fleet +fleet at http.* answers; it has central$"),
        (
            {"EDGE_FLEET__MODEL": "large"},
            r"warn +fleet .* has no model 'large'\n +do: set the model to one of these: central$",
        ),
        (
            {"EDGE_FLEET__URL": "http://127.0.0.1:9/v1"},
            r"warn +fleet +fleet at http://127\.0\.0\.1:9/v1: .*\n +do: see that it runs",
        ),
        ({"EDGE_FLEET__API_KEY_FILE": "no.key"}, r"fail +fleet +upstream 'fleet': api_key_file .*no\.key is no file$"),
    ],
)
def test_doctor_asks_the_fleet(run_edge: RunEdge, settings: dict[str, str], line: str) -> None:
    with running(Upstream()) as fleet:
        done = run_edge("doctor", **{"EDGE_FLEET__URL": fleet.url, **settings})
    assert re.search(line, done.stdout, re.MULTILINE), done.stdout
