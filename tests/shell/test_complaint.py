"""A command that was asked for JSON fails in JSON, on standard error, with the exit code that it has without."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.cli import root
from edge.cli.complaint import wants_json
from tests.conftest import RunEdge


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What standard error says, after a look that it is one line and nothing else is anywhere."""
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1, done
    error: dict[str, Any] = json.loads(done.stderr)["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    return error


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code", "part"),
    [
        (["plan", "no-such-model", "--json"], 1, "model_unusable", "unknown model"),
        (["plan", "--json", "--set", "engine.slots=x"], 78, "configuration", "engine.slots"),
        (["status", "--json", "--url", "http://127.0.0.1:9"], 1, "unreachable", "127.0.0.1:9"),
        (["quantize", "nothing.gguf", "--json"], 2, "usage_error", "Missing argument"),
        (["models", "list", "--json", "--colour"], 2, "usage_error", "No such option '--colour'"),
        (["fleet", "nodes", "--dir", "nowhere", "--json"], 78, "configuration", "nowhere"),
        (["outbox", "peek", "--json", "--limit", "x"], 2, "usage_error", "'x' is not"),
    ],
)
def test_an_error_is_an_object_with_the_same_exit_code(
    run_edge: RunEdge, arguments: list[str], exit_code: int, code: str, part: str
) -> None:
    in_words = run_edge(*(word for word in arguments if word != "--json"))
    done = run_edge(*arguments)
    error = told(done)
    assert (done.returncode, in_words.returncode, error["code"]) == (exit_code, exit_code, code), (done, in_words)
    assert part in error["message"] and not error["message"].startswith("edge: ")
    assert in_words.stderr.startswith(f"edge: {error['message']}")


def test_ctrl_c_is_told_too(tmp_path: Path) -> None:
    """A node that takes a question and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(120)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "edge", "--home", str(tmp_path), "status", "--json", "--url", url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            held, _ = listener.accept()
            with held, held.makefile("rb") as question:
                assert b"\r\n" in question, "it has asked"
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, out) == (130, "")
    assert json.loads(err.splitlines()[-1])["error"]["code"] == "interrupted"


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("status --json", True),
        ("--home models models list --json", True),
        ("fleet nodes --json", True),
        ("models list", False),
        ("bench --json report.json", False),
        ("models --json", False),
        ("status -- --json", False),
        ("fly --json", False),
        ("--json", False),
    ],
)
def test_only_commands_that_were_asked_for_json_fail_in_it(line: str, wanted: bool) -> None:
    assert wants_json(root, line.split()) is wanted  # type: ignore[arg-type]
