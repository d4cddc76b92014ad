"""Set up .venv in this checkout: check the machine, build the native library once, install the packages.

Run by `make`; needs nothing but Python's standard library. Safe to run again at any time: what is done is not done
twice, what was interrupted starts over.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
WHEELS = ROOT / ".wheels"
CMAKE_FILE = ROOT / "provisioning" / "native" / "libllama-only.cmake"
NATIVE = "llama-cpp-python"
MINIMUM_PYTHON = (3, 11)
_NINJA_STEP = re.compile(r"\[(\d+)/(\d+)\]")
_LAST_WORDS = 15
RUNTIMES = {"onnx": "onnxruntime", "onnx-gpu": "onnxruntime-gpu"}
"""Extras of which there is one at a time: their packages provide the same module."""
DEFAULT_RUNTIME = "onnx"


class SetupFailed(Exception):
    """Setup cannot go on. The message ends with the cure."""


def main(arguments: Sequence[str]) -> int:
    """Set up for the extras named. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", action="append", default=[], help="an extra of pyproject.toml, such as dev")
    extras = sorted(parser.parse_args(arguments).extra)
    try:
        install(extras)
    except SetupFailed as failure:
        print(f"edge: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nedge: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def install(extras: list[str]) -> None:
    """Bring .venv up to date. Returns at once if it is. Raises SetupFailed."""
    stamp = VENV / ".installed"
    wanted = _checksum()
    checksum, _, present = stamp.read_text().partition(" ") if stamp.exists() else ("", "", "")
    if not RUNTIMES.keys() & set(extras):
        extras = [*extras, next((runtime for runtime in RUNTIMES if runtime in present.split()), DEFAULT_RUNTIME)]
    if checksum == wanted and set(extras) <= set(present.split()):
        return
    check_machine()
    others = RUNTIMES.keys() - set(extras)
    if checksum == wanted:
        extras = sorted({*extras, *present.split()} - others)
    native = native_requirement()
    wheel = kept_wheel(native)
    if wheel is None:
        check_compiler()
    if not (VENV / "bin" / "pip").exists():
        print(f"making a virtual environment in {VENV.name}", flush=True)
        venv.create(VENV, clear=True, with_pip=True, prompt="edge")
    wheel = wheel or build_wheel(native)
    for runtime in sorted(
        others & set(present.split())
    ):  # pip would leave both, and each lays its files over the other's
        run_logged(
            [str(VENV / "bin" / "pip"), "uninstall", "--disable-pip-version-check", "--yes", RUNTIMES[runtime]],
            WHEELS / "install.log",
            environment=os.environ,
            cure="remove .venv, then run the same command again",
        )
    target = f"{ROOT}[{','.join(sorted(extras))}]"
    print("installing Python packages", flush=True)
    run_logged(
        [str(VENV / "bin" / "pip"), "install", "--disable-pip-version-check", str(wheel), "--editable", target],
        WHEELS / "install.log",
        environment=os.environ,
        cure="check the network, then run the same command again",
    )
    os.sync()  # what the stamp vouches for is on the disk before it
    stamp.write_text(f"{wanted} {' '.join(sorted(extras))}")


def check_machine() -> None:
    """Raise SetupFailed if something is missing that only the machine's owner can install."""
    if sys.version_info < MINIMUM_PYTHON:
        found, wanted = platform.python_version(), ".".join(map(str, MINIMUM_PYTHON))
        raise SetupFailed(
            f"Python {found} is too old; install {wanted} or newer and run `make PYTHON=python{wanted} ...`"
        )
    try:
        import ensurepip  # noqa: F401  # Debian keeps it in a package of its own
    except ImportError:
        raise SetupFailed("Python's venv module is incomplete; install it: apt install python3-venv") from None


def check_compiler() -> None:
    """Raise SetupFailed unless C and C++ compilers are there."""
    for variable, candidates, language in (
        ("CC", ("cc", "gcc", "clang"), "C"),
        ("CXX", ("c++", "g++", "clang++"), "C++"),
    ):
        chosen = os.environ.get(variable, "").split()[:1] or candidates
        if not any(shutil.which(name) for name in chosen):
            raise SetupFailed(f"there is no {language} compiler; install one: apt install build-essential")


def native_requirement() -> str:
    """The requirement on the native bindings, as pyproject.toml declares it."""
    import tomllib  # absent before Python 3.11, where `check_machine` has to say so first

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return str(next(entry for entry in project["dependencies"] if entry.startswith(NATIVE)))


def kept_wheel(requirement: str) -> Path | None:
    """The native library's wheel for this machine, if an earlier run built it."""
    return next((WHEELS / _machine_key(requirement)).glob("*.whl"), None)


def build_wheel(requirement: str) -> Path:
    """Build the native library's wheel for this machine and keep it. Raises SetupFailed."""
    cores = len(os.sched_getaffinity(0))
    minutes = max(1, round(5 / cores))
    log = WHEELS / "native-build.log"
    print(
        f"building the native library: this happens once and takes about {minutes} to {2 * minutes} minutes on "
        f"{cores} cores (log: {log.relative_to(ROOT)})",
        flush=True,
    )
    WHEELS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WHEELS) as draft:
        # pip's own cache is passed by: it would hand out a wheel that was built with other options.
        run_logged(
            [
                str(VENV / "bin" / "pip"),
                "wheel",
                "--disable-pip-version-check",
                "--verbose",
                "--no-cache-dir",
                "--no-deps",
                "--no-binary",
                NATIVE,
                "--wheel-dir",
                draft,
                requirement,
            ],
            log,
            environment=build_environment(cores),
            cure="check the network and the compiler, then run the same command again",
        )
        shelf = WHEELS / _machine_key(requirement)
        shelf.mkdir(exist_ok=True)
        (wheel,) = Path(draft).glob("*.whl")
        os.sync()  # it is kept for good: a power cut must not leave an empty file of its name
        return wheel.rename(shelf / wheel.name)


def build_environment(cores: int) -> dict[str, str]:
    """The environment in which pip builds libllama and ggml, and nothing else of the project."""
    options = f"{os.environ.get('CMAKE_ARGS', '')} -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE={CMAKE_FILE}"
    return {**os.environ, "CMAKE_ARGS": options.strip(), "CMAKE_BUILD_PARALLEL_LEVEL": str(cores)}


def run_logged(command: list[str], log: Path, *, environment: Mapping[str, str], cure: str) -> None:
    """Run a command, its output in `log`, its progress on the terminal. Raises SetupFailed with its last words."""
    log.parent.mkdir(exist_ok=True)
    with log.open("w", encoding="utf-8") as file, Progress(sys.stdout.isatty()) as progress:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        )
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            progress.heard(line)
        status = process.wait()
    if status != 0:
        words = "".join(f"    {line}\n" for line in _last_lines(log))
        raise SetupFailed(f"`pip {command[1]}` failed:\n{words}  {cure} (whole log: {log})")


class Progress:
    """One line that moves: elapsed time and the build's step. Rewritten on a terminal, elsewhere repeated seldom."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._begun_s = time.monotonic()
        self._step = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._show(end="\n")

    def heard(self, line: str) -> None:
        """Take in one line of the command's output."""
        self._step = step_of(line) or self._step

    def _run(self) -> None:
        while not self._over.wait(0.5 if self._terminal else 15.0):
            self._show(end="" if self._terminal else "\n")

    def _show(self, end: str) -> None:
        elapsed = int(time.monotonic() - self._begun_s)
        line = f"  {elapsed // 60}:{elapsed % 60:02d}  {self._step}"
        print(f"\r{line[:100]:<100}" if self._terminal else line, end=end, flush=True)


def step_of(line: str) -> str:
    """What a line of pip's or ninja's output says about how far it is; empty if nothing."""
    if found := _NINJA_STEP.search(line):
        return f"compiling, step {found[1]} of {found[2]}"
    for sign, step in (
        ("Downloading ", "downloading"),
        ("Installing build dependencies", "fetching the build tools"),
        ("Configuring CMake", "configuring"),
        ("Installing collected packages", "installing"),
        ("Building editable", "installing"),
    ):
        if sign in line:
            return step
    return ""


def _last_lines(log: Path) -> list[str]:
    return [line.rstrip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()][-_LAST_WORDS:]


def _checksum() -> str:
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for path in (ROOT / "pyproject.toml", CMAKE_FILE, Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _machine_key(requirement: str) -> str:
    """Tells builds apart: the library is compiled for exactly this processor."""
    parts = [requirement, CMAKE_FILE.read_text("utf-8"), platform.machine(), os.environ.get("CMAKE_ARGS", "")]
    parts += sorted(set(_processor_lines()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _processor_lines() -> Iterator[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features", "CPU part")):
                yield line
    except OSError:  # not Linux: the machine's kind alone has to do
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
