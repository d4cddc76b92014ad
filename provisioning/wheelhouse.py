"""Fetch everything that an image is built from, so that the build itself needs no network: `make wheelhouse`.

    native/   the source of libllama's bindings, and what builds it
    tools/    what builds the node's own wheel and writes the bill of materials
    run/      what the node runs on

Each has a `requirements.txt` with the sum of every file, and the image installs these files and nothing else: a wheelhouse that
is kept is a release that can be built again. Needs nothing of the project: pip is that of .venv or of this Python, or one in an
environment that is made for the moment.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = "llama-cpp-python"
BUILDERS = ("scikit-build-core[pyproject]>=0.11,<2", "cmake>=3.28,<5", "ninja>=1.11,<2")
TOOLS = ("hatchling>=1.26,<2", "cyclonedx-bom>=7,<8")
VARIANTS = {"cpu": ("onnx", "otlp"), "cuda": ("onnx-gpu", "otlp"), "jetson": ("onnx", "otlp")}
"""Extras of each kind of image. Jetson: the index has no onnxruntime-gpu for it, see docs/install/jetson.md."""
CUDA_LIBRARIES = (
    "nvidia-cublas-cu12>=12.6,<13",
    "nvidia-cuda-runtime-cu12>=12.6,<13",
    "nvidia-cudnn-cu12>=9,<10",
    "nvidia-cufft-cu12>=11,<12",
    "nvidia-curand-cu12>=10,<11",
)
"""What libggml-cuda and onnxruntime-gpu are linked against; the driver alone comes from the host."""
PARTS = ("native", "tools", "run")
_OLDEST_GLIBC_MINOR = 17
_BLOCK_BYTES = 1 << 20


class FetchFailed(Exception):
    """Something cannot be fetched. The message ends with the cure."""


class Pip:
    """The pip of one Python."""

    def __init__(self, python: str) -> None:
        self._command = [python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]

    def download(self, directory: Path, requirements: Sequence[str], options: Sequence[str]) -> None:
        """Fetch these and what they need. Raises FetchFailed with pip's last words."""
        done = subprocess.run(
            [*self._command, "--dest", str(directory), *options, *requirements],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            words = "\n".join(f"    {line}" for line in done.stderr.strip().splitlines()[-6:])
            raise FetchFailed(
                f"pip cannot fetch {directory.name}:\n{words}\n  check the network, --python and --machine"
            )


def main(arguments: Sequence[str]) -> int:
    """Fetch. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "dist" / "wheelhouse", help="directory; a wheelhouse there is made anew"
    )
    parser.add_argument("--variant", choices=VARIANTS, default="cpu", help="kind of image [default: cpu]")
    parser.add_argument("--python", default="3.13", help="version of Python in the base image [default: 3.13]")
    parser.add_argument("--machine", default=platform.machine(), help="x86_64 or aarch64 [default: this machine's]")
    parser.add_argument("--glibc", default="2.41", help="version of glibc in the base image [default: 2.41]")
    chosen = parser.parse_args(arguments)
    out = chosen.out.resolve()
    try:
        tags = platforms(chosen.machine, chosen.glibc)
        require_ours(out)
        with tempfile.TemporaryDirectory(prefix="edge-wheelhouse-") as scratch:
            draft = Path(scratch) / "wheelhouse"
            draft.mkdir()
            pip = Pip(python_with_pip(Path(scratch) / "pip"))
            fetch(pip, draft, chosen.variant, chosen.python, tags)
            if out.exists():
                shutil.rmtree(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(draft, out)
    except FetchFailed as failure:
        print(f"edge: {failure}", file=sys.stderr)
        return 1
    except OSError as error:
        print(
            f"edge: {error.filename or out}: {error.strerror or error}; put it right, then try again", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("\nedge: interrupted; what was there before is unchanged", file=sys.stderr)
        return 130
    for part in PARTS:
        files = [path for path in (out / part).iterdir() if path.suffix in (".whl", ".gz")]
        print(f"{part:7} {len(files):3} files, {sum(path.stat().st_size for path in files) / 1e6:7.1f} MB")
    return 0


def require_ours(out: Path) -> None:
    """What is at `out` is removed for a new wheelhouse. Raises FetchFailed where that would take somebody's files."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FetchFailed(f"{out} is not a directory: give --out another")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    if not names.issubset(PARTS) or not any((out / name / "requirements.txt").is_file() for name in names):
        raise FetchFailed(
            f"{out} is no wheelhouse, and what lies in it would be removed: give --out a new or an empty directory"
        )


def python_with_pip(scratch: Path, own: Path = ROOT / ".venv" / "bin" / "python", this: str = sys.executable) -> str:
    """A Python that has pip: the project's, this one, or that of an environment made at `scratch`. Raises FetchFailed."""
    for python in (str(own), this):
        if can_import(python, "pip"):
            return python
    if can_import(this, "ensurepip"):
        done = subprocess.run([this, "-m", "venv", str(scratch)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return str(scratch / "bin" / "python")
    raise FetchFailed(
        f"{this} has no pip and cannot make an environment that has it: `apt install python3-venv`, then try again"
    )


def can_import(python: str, module: str) -> bool:
    """Whether this Python is there and has the module."""
    try:
        return subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def fetch(pip: Pip, draft: Path, variant: str, python: str, tags: Sequence[str]) -> None:
    """Fill a directory. Raises FetchFailed."""
    native = draft / "native"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [entry for entry in project["dependencies"] if not entry.startswith(NATIVE)]
    bindings = next(entry for entry in project["dependencies"] if entry.startswith(NATIVE))
    for extra in VARIANTS[variant]:
        wanted += project["optional-dependencies"][extra]
    say("the source of the native library")
    pip.download(native, [bindings], ["--no-deps", "--no-binary", NATIVE])
    source = next(native.glob("*.tar.gz"))
    wanted += declared_by(source)
    if variant == "cuda":
        wanted += CUDA_LIBRARIES
    chosen = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    chosen += [part for tag in tags for part in ("--platform", tag)]
    for directory, requirements in ((native, BUILDERS), (draft / "tools", TOOLS), (draft / "run", wanted)):
        say(f"{directory.name}: {len(requirements)} requirements and theirs")
        pip.download(directory, requirements, chosen)
        (directory / "requirements.txt").write_text("".join(locked(directory.glob("*.whl"))), "utf-8")
    (native / "sources.sha256").write_text(f"{sha256_of(source)}  {source.name}\n", "utf-8")


def platforms(machine: str, glibc: str) -> list[str]:
    """Wheel tags that a machine with this glibc takes, the newest first. Raises FetchFailed."""
    major, _, minor = glibc.partition(".")
    if machine not in ("x86_64", "aarch64") or major != "2" or not minor.isdigit():
        raise FetchFailed(
            f"there are no wheels for {machine} with glibc {glibc}: give --machine x86_64 or aarch64, and --glibc 2.N"
        )
    newest_first = range(int(minor), _OLDEST_GLIBC_MINOR - 1, -1)
    return [*(f"manylinux_2_{minor}_{machine}" for minor in newest_first), f"manylinux2014_{machine}"]


def declared_by(source: Path) -> list[str]:
    """What the bindings themselves need when they run, from the project file in their archive."""
    with tarfile.open(source) as archive:
        names = [name for name in archive.getnames() if name.count("/") == 1 and name.endswith("/pyproject.toml")]
        file = archive.extractfile(names[0]) if names else None
        if file is None:
            raise FetchFailed(f"{source.name} has no pyproject.toml; this version is not known here")
        found: list[str] = tomllib.loads(file.read().decode("utf-8"))["project"]["dependencies"]
        return found


def locked(wheels: Iterable[Path]) -> Iterator[str]:
    """One line for each wheel: name, version and sum."""
    for wheel in sorted(wheels):
        name, version = wheel.name.split("-")[:2]
        yield f"{name.replace('_', '-').lower()}=={version} --hash=sha256:{sha256_of(wheel)}\n"


def sha256_of(path: Path) -> str:
    """A file's sum, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def say(text: str) -> None:
    """Progress, for people."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
