"""`edge chat` against a real node, with and without a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import RunEdge
from tests.e2e.between import Between, standing

TOOLS = Path(__file__).resolve().parents[2] / "models" / "builtin" / "tools.json"
_PATIENCE_S = 240


@pytest.fixture
def certain_url(base_url: str) -> Iterator[str]:
    """The node, of whose model every answer is the likeliest: the chat draws, and now and then no tool is called."""
    with standing(Between(base_url, lambda body: {**body, "temperature": 0})) as between:
        yield between.url


def test_one_question_gets_one_answer(run_edge: RunEdge, base_url: str) -> None:
    done = run_edge("chat", "Which", "alarms", "are", "active?", "--url", base_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_tool_calls_are_shown(run_edge: RunEdge, certain_url: str) -> None:
    done = run_edge("chat", "Set the speed of pump 3 to 40 percent.", "--tools", str(TOOLS), "--url", certain_url)
    assert done.returncode == 0, done.stderr
    assert '-> set_value({"device"' in done.stdout


def test_an_error_of_the_node_is_one_line(run_edge: RunEdge, base_url: str) -> None:
    done = run_edge("chat", "pump " * 20_000, "--url", base_url)
    assert done.returncode == 1
    assert done.stderr.startswith("edge: ")
    assert done.stderr.count("\n") == 1


class Terminal:
    """A person at a terminal: types, and reads what is shown."""

    def __init__(self, *arguments: str, home: Path) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "EDGE_HOME": str(home), "TERM": "dumb"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, text: str, times: int = 1) -> None:
        give_up_s = time.monotonic() + _PATIENCE_S
        while self.shown.count(text) < times:
            if time.monotonic() > give_up_s:
                pytest.fail(f"{text!r} was not shown {times} times in:\n{self.shown}")
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._master, 4096).decode("utf-8", "replace")
                except OSError:  # the other end has been closed
                    pytest.fail(f"it ended before {text!r} was shown in:\n{self.shown}")

    def close(self) -> int:
        try:
            return self.process.wait(_PATIENCE_S)
        finally:
            self.process.kill()
            os.close(self._master)


def test_a_conversation_is_held_reset_and_left(base_url: str, home: Path) -> None:
    terminal = Terminal("chat", "--url", base_url, home=home)
    terminal.wait_for("> ")
    terminal.type("What can you do?\n")
    terminal.wait_for("\n> ", times=2)
    terminal.type("/reset\n")
    terminal.wait_for("forgotten")
    terminal.type("/nonsense\n")
    terminal.wait_for("/quit (or Ctrl-D) leaves", times=2)
    terminal.type("/quit\n")
    assert terminal.close() == 0
    assert "What can you do?" in (home / "chat_history").read_text()


def test_a_tools_result_is_asked_for_and_answered_to(certain_url: str, home: Path) -> None:
    terminal = Terminal("chat", "--tools", str(TOOLS), "--url", certain_url, home=home)
    terminal.wait_for("> ")
    terminal.type("Set the speed of pump 3 to 40 percent.\n")
    terminal.wait_for("what did set_value return? [ok] ")
    terminal.type('{"ok": true}\n')
    terminal.wait_for("\n> ", times=2)
    terminal.type("\x04")
    assert terminal.close() == 0


def test_ctrl_c_stops_the_answer_and_not_the_conversation(base_url: str, home: Path) -> None:
    terminal = Terminal("chat", "--url", base_url, home=home)
    terminal.wait_for("> ")
    terminal.process.send_signal(signal.SIGINT)
    terminal.type("\n")  # one that comes just before readline waits is noticed only with the next key
    terminal.wait_for("\n> ", times=2)
    terminal.type("/quit\n")
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
