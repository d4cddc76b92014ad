"""The setup behind `make`: what it says before it changes anything, and that a second run does nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout in which nothing is set up."""
    shutil.copytree(ROOT / "provisioning", tmp_path / "provisioning")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def install(checkout: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", checkout / "provisioning" / "install.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "provisioning/install.py"],
        cwd=checkout,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_a_compiler_it_names_the_package_and_makes_nothing(checkout: Path) -> None:
    done = run(checkout, PATH="/nowhere", CC="", CXX="")
    assert (done.returncode, done.stderr) == (
        1,
        "edge: there is no C compiler; install one: apt install build-essential\n",
    )
    assert not (checkout / ".venv").exists()


def test_what_is_installed_is_not_installed_again(checkout: Path, install: ModuleType) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installed").write_text(f"{install._checksum()} dev onnx")
    done = run(checkout, PATH="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_changed_project_is_installed_again(checkout: Path, install: ModuleType) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installed").write_text(f"{install._checksum()} dev")
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("\n# changed\n")
    assert run(checkout, PATH="/nowhere", CC="", CXX="").returncode == 1


def test_a_failing_command_is_quoted_with_the_cure(install: ModuleType, tmp_path: Path) -> None:
    script = "import sys; print('[3/9] Building x'); print('error: no space left'); sys.exit(1)"
    with pytest.raises(install.SetupFailed, match=r"(?s)error: no space left.*make room, then again \(whole log: "):
        install.run_logged(
            [sys.executable, "-c", script], tmp_path / "log", environment=os.environ, cure="make room, then again"
        )


@pytest.mark.parametrize(
    ("line", "step"),
    [
        (
            "  [40/83] Building CXX object vendor/llama.cpp/src/CMakeFiles/llama.dir/llama-vocab.cpp.o",
            "compiling, step 40 of 83",
        ),
        ("  Downloading llama_cpp_python-0.3.36.tar.gz (72.1 MB)", "downloading"),
        ("Installing collected packages: numpy, edge-node", "installing"),
        ("nothing of interest", ""),
    ],
)
def test_progress_is_read_from_the_builds_own_output(install: ModuleType, line: str, step: str) -> None:
    assert install.step_of(line) == step


def test_only_libllama_is_built(install: ModuleType) -> None:
    options = install.build_environment(2)["CMAKE_ARGS"]
    assert "libllama-only.cmake" in options
    assert "-DLLAVA_BUILD=OFF" in options


def test_the_runtime_that_was_chosen_stays_chosen(checkout: Path, install: ModuleType) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".installed").write_text(f"{install._checksum()} onnx-gpu")
    done = run(checkout, PATH="/nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
