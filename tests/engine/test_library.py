"""libllama in one process, whose log has a listener."""

from __future__ import annotations

import subprocess
import sys

DROPPED = """
import ctypes, gc
from llama_cpp import llama_cpp as ll
from edge.engine.llama.library import Library

lines = []
Library(lines.append)
gc.collect()
others = [ctypes.CFUNCTYPE(None)(gc.collect) for _ in range(200)]  # where the listener lay, if nobody holds it
ll.llama_model_load_from_file(b"/nowhere/model.gguf", ll.llama_model_default_params())
print(len(lines) > 0)
"""


def test_a_log_that_nobody_listens_to_any_more_ends_no_process() -> None:
    done = subprocess.run([sys.executable, "-c", DROPPED], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
