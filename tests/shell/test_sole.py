"""One node on one EDGE_HOME, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge.sole import LOCK, HomeBusy, running, sole_node
from tests.conftest import RunEdge
from tests.waiting import until

HOLDER = """
import sys
from pathlib import Path
from edge.sole import sole_node
with sole_node(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(home: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_node_is_refused_and_hears_which_process_holds_it(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with (
            pytest.raises(HomeBusy, match=f"another node runs on {tmp_path} already \\(process {process.pid}\\); stop"),
            sole_node(tmp_path),
        ):
            raise AssertionError("held twice")
        process.communicate()
    with sole_node(tmp_path):
        pass


def test_a_holder_on_another_host_is_named_with_it(tmp_path: Path) -> None:
    with sole_node(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        (tmp_path / LOCK).write_text("1 edge-node-x7k\n")
        with pytest.raises(HomeBusy, match=r"\(process 1 of edge-node-x7k\)"), sole_node(tmp_path):
            pass
        (tmp_path / LOCK).write_bytes(b"\xff nonsense and more\n")
        with pytest.raises(HomeBusy, match=r"runs on .* already; stop it"), sole_node(tmp_path):
            pass


def test_who_looks_sees_the_node_that_runs_and_disturbs_none(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    with holder(tmp_path) as process:
        assert running(tmp_path) == f" (process {process.pid})"
        process.communicate()
    until(lambda: running(tmp_path) is None)
    with sole_node(tmp_path):
        pass


def test_doctor_knows_the_port_of_a_node_that_runs(tmp_path: Path, run_edge: RunEdge, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert (
            f"warn  port            port {port} on 127.0.0.1 is in use already"
            in run_edge("doctor", "--port", port).stdout
        )
        with holder(home) as process:
            said = run_edge("doctor", "--port", port).stdout
            process.communicate()
    assert f"ok    port            port {port} on 127.0.0.1 is in use, and a node runs on this EDGE_HOME" in said
    assert f"(process {process.pid}): `edge status` asks it" in said


def test_a_killed_holder_holds_nothing_though_a_child_of_it_lives(tmp_path: Path) -> None:
    with sole_node(tmp_path):
        child = subprocess.Popen(["/bin/sleep", "60"], close_fds=False)
    with child, sole_node(tmp_path):
        assert child.poll() is None
        child.kill()
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with sole_node(tmp_path):
            pass


def test_where_no_lock_can_be_had_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with sole_node(tmp_path / "file" / "home"):
        pass
    (warning,) = caplog.records
    assert (vars(warning)["event"], vars(warning)["reason"]) == ("home_unlocked", "Not a directory")


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Root may run a node on a directory of somebody else's."""
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.write_text("mine")
    (home / LOCK).symlink_to(other)
    with sole_node(home):
        pass
    assert other.read_text() == "mine"
    assert [vars(record)["event"] for record in caplog.records] == ["home_unlocked"]


def test_keys_and_models_can_be_changed_where_there_are_no_locks(
    without_locks: dict[str, str], run_edge: RunEdge, tiny_gguf: Path
) -> None:
    for command in (
        ("keys", "create", "x"),
        ("keys", "revoke", "x"),
        ("models", "add", str(tiny_gguf), "--name", "mine"),
    ):
        done = run_edge(*command, **without_locks)
        assert done.returncode == 0, done.stderr
    assert run_edge("models", "list", **without_locks).returncode == 0
