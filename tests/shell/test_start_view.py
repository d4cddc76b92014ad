"""What shows how a node starts, where nobody can see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.cli.words import called

SHOWING = """
import sys
from pathlib import Path
from rich.console import Console
from edge.cli.serve import LastingOutput, StartView
with StartView(Console(file=LastingOutput(sys.stdout), soft_wrap=True, highlight=False)) as view:
    for step in range(1000):
        view.loading(f"stage {step} \\u6a21", 0.5)
print("it goes on", file=sys.stderr)
"""


@pytest.mark.parametrize("where", ["reader gone", "disk full", "no such letter"])
def test_what_nobody_can_see_ends_nothing(where: str, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    target = {"reader gone": write, "disk full": os.open("/dev/full", os.O_WRONLY)}.get(where)
    encoding = {"PYTHONIOENCODING": "ascii"} if where == "no such letter" else {}
    with (tmp_path / "out").open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", SHOWING],
            stdout=file if target is None else target,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **encoding},
            timeout=120,
            check=False,
        )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "it goes on\n")


def test_the_hint_names_a_command_that_the_shell_finds() -> None:
    assert called("/opt/edge/bin/edge", on_path=True) == "edge"
    assert called(".venv/bin/edge", on_path=False) == ".venv/bin/edge"
    assert called("/my disk/bin/edge", on_path=False) == "'/my disk/bin/edge'"
    assert called("/opt/edge/lib/edge/__main__.py", on_path=False) == "edge"
