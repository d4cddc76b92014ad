"""`edge models` as a person uses it. The real command line runs, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.file_server import Cut, FileServer, Served, Status
from edge.errors import DownloadFailed
from edge.quantities import size
from edge.registry.fetch import Patience
from tests.conftest import RunEdge
from tests.registry.conftest import Node, sha
from tests.waiting import until


def test_list_says_what_is_here(run_edge: RunEdge, node: Node) -> None:
    node.know("far", "hf:a/b:Q4_K_M", size_bytes=1_500_000_000)
    node.know("eyes", "hf:a/b:model.onnx", task="detection")
    lines = {line.split()[0]: line.split() for line in run_edge("models", "list").stdout.splitlines()}
    assert lines["edge-builtin"][1:] == ["chat", "4", "M", "2.6", "MB", "here", "Apache-2.0", "shipped"]
    assert lines["far"][1:] == ["chat", "?", "1.50", "GB", "not", "here", "Apache-2.0", "own"]
    assert " ".join(lines["eyes"]) == "eyes detection* ? ? not here Apache-2.0 own"
    rows = {row["name"]: row for row in json.loads(run_edge("models", "list", "--json").stdout)}
    assert rows["far"] == {
        "name": "far",
        "task": "chat",
        "served": True,
        "state": "not_here",
        "have_bytes": 0,
        "size_bytes": 1_500_000_000,
        "licence": "Apache-2.0",
        "parameters": None,
        "context_tokens": 128,
        "source": "hf:a/b:Q4_K_M",
        "manifest": "own",
        "description": "A test model.",
    }


def test_a_download_that_is_not_finished_is_listed_without_its_signature(
    run_edge: RunEdge, node: Node, server: FileServer, served: Served
) -> None:
    server.faults.append(Cut(1_000_000))
    server.choose = lambda: Status(503)
    with pytest.raises(DownloadFailed):
        node.pull(f"{server.url}/m.gguf?signature=abc", Patience(tries=2, pause_s=0.001))
    listed, programs = run_edge("models", "list"), run_edge("models", "list", "--json")
    assert (
        f"m is not finished: `edge models pull` with the whole address of {server.url}/m.gguf goes on" in listed.stderr
    )
    assert "abc" not in listed.stderr + listed.stdout + programs.stdout


def test_pull_serve_verify_remove(
    run_edge: RunEdge, node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    pulled = run_edge("models", "pull", f"{server.url}/m.gguf", "--sha256", sha(model_bytes), "--licence", "MIT")
    assert pulled.stdout == "m is here, 3.0 MB; try it: edge serve --model m\n"
    assert len(re.findall(r"^  \d\d%, \d\S* .B$", pulled.stderr, re.MULTILINE)) >= 5, pulled.stderr
    assert "\x1b" not in pulled.stderr, "plain lines where there is no terminal"
    assert "nobody states" not in pulled.stderr
    assert "is here already" in run_edge("models", "pull", "m").stdout
    verified = run_edge("models", "verify")
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "m  m.gguf  good")
    assert run_edge("models", "remove", "m").stdout == "removed m, 3.0 MB freed\n"
    assert node.blobs() == []
    assert "\nm " not in run_edge("models", "list").stdout


def test_a_first_fetch_that_nobody_vouches_for_is_said(run_edge: RunEdge, server: FileServer, served: Served) -> None:
    done = run_edge("models", "pull", f"{server.url}/m.gguf")
    assert (
        f"nobody states a checksum for m.gguf; from now on it must be what came now, sha256 {sha(served.data)}"
        in done.stderr
    )


def test_a_wrong_sum_ends_with_one_and_keeps_nothing(
    run_edge: RunEdge, node: Node, server: FileServer, served: Served
) -> None:
    done = run_edge("models", "pull", f"{server.url}/m.gguf", "--sha256", "0" * 64)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"edge: {server.url}/m.gguf is refused: its sha256 is ")
    assert (node.blobs(), node.partials()) == ([], [])
    assert not (node.home / "models").exists()


def test_ctrl_c_keeps_what_came_and_says_so(
    run_edge: RunEdge, node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    served.hold_at = 1_000_000  # however slow this test is, it is not over
    child = subprocess.Popen(
        [sys.executable, "-m", "edge", "models", "pull", f"{server.url}/m.gguf"],
        env={**os.environ, "EDGE_HOME": str(node.home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(lambda: [part.stat().st_size for part in node.partials()] == [served.hold_at])
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=120)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert errors.strip().splitlines()[-1].endswith("is here and kept: the same command goes on from there")
    kept = node.partials()[0].stat().st_size
    assert kept == served.hold_at
    shown = run_edge("models", "list")
    assert re.search(r"^m +\? +\? +3.0 MB +partial \d\d% +\? +none$", shown.stdout, re.MULTILINE)
    assert f"m is not finished: `edge models pull {server.url}/m.gguf` goes on with it" in shown.stderr
    [row] = [row for row in json.loads(run_edge("models", "list", "--json").stdout) if row["state"] == "partial"]
    assert (row["name"], row["have_bytes"], row["size_bytes"], row["manifest"]) == ("m", kept, len(model_bytes), None)
    served.hold_at = None
    assert run_edge("models", "remove", "nothing").returncode == 1
    done = run_edge("models", "pull", f"{server.url}/m.gguf")
    assert done.returncode == 0
    assert f"m.gguf, 3.0 MB, {size(kept)} of it are here" in done.stderr
    assert server.gets("/m.gguf")[-1].headers["range"] == f"bytes={kept}-"


def test_damage_is_named_and_ends_with_one(
    run_edge: RunEdge, node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    run_edge("models", "pull", f"{server.url}/m.gguf", "--name", "mine")
    blob = node.store / "blobs" / sha(model_bytes)
    blob.chmod(0o644)
    blob.write_bytes(model_bytes[:-1] + b"!")
    done = run_edge("models", "verify", "mine")
    assert done.returncode == 1
    assert "mine  m.gguf  DAMAGED, set aside as " in done.stdout
    assert "`edge models pull mine` fetches it again" in done.stdout
    assert run_edge("models", "pull", "mine").returncode == 0
    assert run_edge("models", "verify", "mine").returncode == 0
    would = run_edge("models", "prune", "--dry-run").stdout.splitlines()
    assert would[-1] == "3.0 MB would be freed"
    assert run_edge("models", "prune").stdout.splitlines()[-1] == "3.0 MB were freed"
    assert run_edge("models", "prune").stdout == "nothing to remove\n"


def test_a_stick_needs_no_network(run_edge: RunEdge, node: Node, tmp_path: Path, model_bytes: bytes) -> None:
    stick = tmp_path / "Some Model.gguf"
    stick.write_bytes(model_bytes)
    done = run_edge("models", "add", str(stick), HTTPS_PROXY="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    assert done.stdout == "some-model is here, 3.0 MB; try it: edge serve --model some-model\n"
    stick.unlink()
    assert run_edge("models", "verify", "some-model").returncode == 0


def test_a_linked_model_that_is_removed_is_said_to_be(run_edge: RunEdge, tmp_path: Path, model_bytes: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(model_bytes)
    assert run_edge("models", "add", "--link", str(tmp_path / "m.gguf")).returncode == 0
    assert (
        run_edge("models", "remove", "m").stdout
        == "removed m, no file went with it: linked, another model's too, or not here\n"
    )
    assert run_edge("models", "remove", "m").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["pull", "nothing"], 1, "no model of that name is known, and 'nothing' is no source"),
        (["pull", "hf:x"], 1, "write hf:OWNER/REPO:FILE_OR_QUANT"),
        (["pull", "edge-builtin"], 1, "edge-builtin is here already"),
        (["pull", "hf:a/b:Q4/m-00001-of-00003.gguf"], 1, "m-00001-of-00003.gguf is one part of a model in several"),
        (["pull", "http://127.0.0.1:9/m-00001-of-00003.gguf"], 1, "llama-gguf-split --merge"),
        (["pull", "x", "--name", "Not A Name"], 2, "up to 63 of a-z"),
        (["pull", "x", "--sha256", "12"], 2, "64 hexadecimal digits"),
        (["add", "/nowhere.gguf"], 1, "there is no file /nowhere.gguf"),
        (["add", "/nowhere.gguf", "--licence", " "], 2, "leave it out where the licence is not known"),
        (["remove", "edge-builtin"], 1, "is part of the installation and stays"),
        (["verify", "nothing"], 1, "unknown model 'nothing'"),
    ],
)
def test_mistakes_are_one_line(run_edge: RunEdge, arguments: list[str], code: int, part: str) -> None:
    done = run_edge("models", *arguments)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1 and part in done.stderr


def test_an_unusable_home_is_named(run_edge: RunEdge, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_edge("--home", str(tmp_path / "file"), "models", "pull", "http://127.0.0.1:9/m.gguf")
    assert done.returncode == 78
    assert "cannot be written" in done.stderr and "EDGE_HOME or --home" in done.stderr


def test_an_unusable_proxy_is_named(run_edge: RunEdge) -> None:
    done = run_edge("models", "pull", "https://example.com/m.gguf", HTTPS_PROXY="nonsense://x")
    assert done.returncode == 78
    assert "HTTPS_PROXY" in done.stderr


def test_a_proxy_of_the_environment_is_used(run_edge: RunEdge, server: FileServer, served: Served) -> None:
    server.routes["http://models.example/m.gguf"] = served
    done = run_edge("models", "pull", "http://models.example/m.gguf", http_proxy=server.url, no_proxy="")
    assert done.returncode == 0, done.stderr
    assert server.asked[0].path == "http://models.example/m.gguf"


def test_serving_an_absent_model_says_how_it_comes(run_edge: RunEdge, node: Node) -> None:
    node.know("far", "hf:a/b:Q4_K_M")
    done = run_edge("serve", "--model", "far", "--port", "0")
    assert done.returncode == 1
    assert "`edge models pull far` fetches it" in done.stderr


def test_a_fetched_model_is_loaded_from_the_store(run_edge: RunEdge, node: Node, server: FileServer) -> None:
    builtin = Path(__file__).resolve().parents[2] / "models" / "builtin" / "edge-builtin-q4_0.gguf"
    server.routes["/b.gguf"] = Served(builtin.read_bytes())
    assert run_edge("models", "pull", f"{server.url}/b.gguf", "--name", "mine").returncode == 0
    done = run_edge("plan", "--model", "mine", "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == str(node.store / "blobs" / sha(builtin.read_bytes()))
