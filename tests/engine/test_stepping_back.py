"""A background engine steps back where it may, and lives where a sandbox forbids it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEP_BACK = """
import os
from edge.engine.pipe import step_back
step_back()
print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))
"""
AMONG_THREADS = """
import os, threading
from edge.engine.pipe import step_back
over = threading.Event()
def beget():
    while not over.is_set():
        child = threading.Thread(target=int)
        child.start()
        child.join()
parents = [threading.Thread(target=beget) for _ in range(8)]
for parent in parents:
    parent.start()
step_back()
policies = {os.sched_getscheduler(parent.native_id) for parent in (*parents, threading.main_thread())}
over.set()
print(*policies, os.getpriority(os.PRIO_PROCESS, 0))
"""
FORBIDDEN = """
import ctypes, os, struct
numbers = {"x86_64": (141, 144), "aarch64": (140, 119)}[os.uname().machine]  # setpriority, sched_setscheduler
load, equal, give_back, allow, refuse = 0x20, 0x15, 0x06, 0x7FFF0000, 0x00050001  # refuse: with EPERM
steps = [(load, 0, 0, 0), *((equal, len(numbers) - at, 0, one) for at, one in enumerate(numbers))]
steps += [(give_back, 0, 0, allow), (give_back, 0, 0, refuse)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
kernel = ctypes.CDLL(None, use_errno=True)
program = Program(len(steps), ctypes.addressof(code))
assert kernel.prctl(38, 1, 0, 0, 0) == 0  # no new privileges
assert kernel.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # a filter of system calls
"""


def child(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300, check=False)


def niceness() -> int:
    """Of these tests, which their children have from them."""
    return os.getpriority(os.PRIO_PROCESS, 0)


def test_it_runs_only_when_nobody_else_wants_to() -> None:
    done = child(STEP_BACK)
    assert (done.returncode, done.stdout.split()[0]) == (0, str(os.SCHED_IDLE)), done.stderr


def test_threads_that_come_and_go_meanwhile_keep_none_of_the_others_ahead() -> None:
    for _ in range(5):
        done = child(AMONG_THREADS)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{os.SCHED_IDLE} {niceness()}\n", "")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="numbers of system calls are by machine")
def test_where_a_sandbox_forbids_it_the_engine_says_so_once_and_goes_on() -> None:
    done = child(f"{FORBIDDEN}\n{STEP_BACK}")
    assert (done.returncode, done.stdout) == (0, f"{os.sched_getscheduler(0)} {niceness()}\n"), done.stderr
    assert done.stderr == "engine: it cannot step back behind others: Operation not permitted\n"
