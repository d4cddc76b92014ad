"""What a person reads: the real command line in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.bench.report import Report
from edge.bench.target import Address
from edge.cli import main
from edge.errors import ConfigurationError
from tests.bench.server import FakeServer
from tests.conftest import RunEdge
from tests.shell.test_cli import complaint
from tests.waiting import until

BRIEF = ("--concurrency", "2", "--duration", "600", "--max-requests", "8", "--output-tokens", "4")


@pytest.fixture
def run_here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path) -> RunEdge:
    """Run the same command line in this process: half a second less for each of many errors."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["edge", *arguments])
        monkeypatch.setenv("EDGE_HOME", str(home))
        with pytest.raises(SystemExit) as ended:
            main()
        out, error = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(arguments, ended.value.code, out, error)

    return run


def test_a_run_prints_a_table_and_writes_json_and_a_page(run_edge: RunEdge, tmp_path: Path) -> None:
    with FakeServer() as one, FakeServer() as two:
        files = ("--seed", "3", "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))
        done = run_edge("bench", f"left={one.url}", "--against", f"right={two.url}", *BRIEF, *files)
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("left", "right"):
        assert re.search(rf"^2 at once +{name} +\d+\.\d\d +\d+\.\d\d +\d+%", done.stdout, re.MULTILINE), done.stdout
    report = Report.model_validate_json((tmp_path / "r.json").read_text())
    assert [result.statuses for result in report.results] == [{"ok": 8}, {"ok": 8}]
    assert (report.format, report.version) == ("edge-bench", 1)
    assert "</html>" in (tmp_path / "r.html").read_text()
    names_that_readers_rely_on(json.loads((tmp_path / "r.json").read_text()))


def names_that_readers_rely_on(report: dict[str, Any]) -> None:
    """A field that is renamed or dropped needs a new `version`."""
    expected = {"kind": "concurrency", "seed": 3, "shared_prefix_words": 150, "long_every": 5}
    assert report["workload"].items() >= expected.items()
    assert report["targets"][0]["model"] == "small"
    assert set(report["noise"]) == {"before_ms", "after_ms"}
    result = report["results"][0]
    assert result["load"] == "2 at once"
    assert result["all"].keys() == {"requests", "good", "good_share", "ttft", "itl"}
    assert result["all"]["ttft"].keys() == {"count", "p50_ms", "p90_ms", "p99_ms", "max_ms", "cdf"}
    assert len(result["requests"]) == result["all"]["requests"]


def test_ctrl_c_shows_what_there_is(home: Path, tmp_path: Path) -> None:
    with FakeServer(gap_s=0.01) as server:
        command = [
            sys.executable,
            "-m",
            "edge",
            "bench",
            server.url,
            "--concurrency",
            "1",
            "--duration",
            "600",
            "--json",
            str(tmp_path / "r.json"),
        ]
        process = subprocess.Popen(
            command,
            env={**os.environ, "EDGE_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(lambda: len(server.bodies) > 2)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, error) == (130, "")
    assert "Not complete: interrupted by Ctrl-C" in out
    assert json.loads((tmp_path / "r.json").read_text())["interrupted"] == "interrupted by Ctrl-C"


def test_nothing_answers(run_edge: RunEdge) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        message = complaint(run_edge("bench", url), 1)
    assert message == f"nothing answers at {url}; start a node with `edge serve`, or check the URL"


@pytest.mark.parametrize(
    ("server", "part"),
    [
        (
            FakeServer(models_status=401, models=b'{"error": {"message": "no such key"}}'),
            "no such key; give its key with --key",
        ),
        (FakeServer(models_status=404, models=b"nothing"), "is no OpenAI-compatible server (HTTP 404 for /models"),
        (FakeServer(models=b"<html>"), "is no OpenAI-compatible server (HTTP 200 for /models"),
        (FakeServer(raw=b"220 mail.example ESMTP\r\n"), "does not speak HTTP as expected"),
        (
            FakeServer(judge=lambda body: (404, b'{"error": {"message": "unknown model \'small\'."}}')),
            "unknown model 'small'; choose the model with --model",
        ),
        (FakeServer(judge=lambda body: (404, b"")), "is no OpenAI-compatible server (HTTP 404); check the URL"),
        (FakeServer(judge=lambda body: (503, b"{}")), "answers HTTP 503, to a single request; wait until it is ready"),
        (FakeServer(judge=lambda body: (400, b'{"error": "too long"}')), "HTTP 400, too long; check --model (small)"),
        (FakeServer(judge=lambda body: (500, b"")), "answers HTTP 500; see the server's log"),
        (FakeServer(events=lambda body: [b'{"choices": []}']), "does not stream as OpenAI's API does"),
        (
            FakeServer(events=lambda body: [b'data: {"error": {"message": "engine gone"}}\n\n']),
            "failed on a first request: engine gone; see its log",
        ),
    ],
)
def test_a_server_that_cannot_be_measured_is_one_line(run_here: RunEdge, server: FakeServer, part: str) -> None:
    with server:
        assert part in complaint(run_here("bench", server.url), 1)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rate", "1", "--concurrency", "1"], "--rate and --concurrency are two kinds of load; give one of them"),
        (["--rate", "0"], "write numbers above 0 and up to 10000, such as 1,2,4"),
        (["--rate", "1,x"], "'1,x': write numbers above 0"),
        (["--concurrency", "1.5"], "write numbers above 0 and up to 1024"),
        (["--concurrency", ",".join(map(str, range(1, 19)))], "18 values are more than 16"),
        (["--rate", "100", "--duration", "60"], "raise --max-requests or shorten --duration"),
        (["--duration", "nan"], "nan is no number to measure with"),
        (["--slo-itl-ms", "inf"], "inf is not in the range"),
        (["--trace", "x", "--seed", "1"], "a trace brings its own arrivals and prompts; leave --seed out"),
        (["--mix", "plain", "--long-words", "5"], "--long-words needs --long-every N"),
        (["--mix", "plain", "--long-every", "5"], "--long-every needs --long-words N"),
        (["--against", "http://127.0.0.1:8080"], "two servers are called '127.0.0.1:8080'; name them: NAME=URL"),
        (["--key", "a", "--key", "b"], "--key is given 2 times for 1 servers; give it once, or once for each"),
    ],
)
def test_options_that_contradict_each_other_are_refused(run_here: RunEdge, arguments: list[str], part: str) -> None:
    assert part in complaint(run_here("bench", *arguments), 2)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["ftp://127.0.0.1"], "'ftp://127.0.0.1' is no address; write it like http://127.0.0.1:8080/v1"),
        (["http://me:secret@127.0.0.1"], "an address must not hold a password: reports show it; use --key"),
        (["--json", "/nonexistent/r.json"], "cannot write /nonexistent/r.json: No such file or directory"),
        (["--trace", "/nonexistent/t"], "cannot read /nonexistent/t: No such file or directory; check --trace"),
    ],
)
def test_what_stands_in_the_way_is_named_before_measuring(run_here: RunEdge, arguments: list[str], part: str) -> None:
    message = complaint(run_here("bench", *arguments), 78)
    assert part in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://127.0.0.1:8080/v1/", "127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("a node=https://host/openai/v1", "a node", "https://host/openai/v1"),
        ("http://[::1]:80/api/v3", "[::1]:80", "http://[::1]:80/api/v3"),
        ("x=http://host/v1beta", "x", "http://host/v1beta"),
    ],
)
def test_addresses_are_taken_with_or_without_v1(text: str, name: str, url: str) -> None:
    assert Address.parse(text) == Address(name, url)


@pytest.mark.parametrize("text", ["", "localhost:80", "http://", "http://h:port", "http://h/?q=1", "=http://h"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address"):
        Address.parse(text)
