"""What every test may use: a home of its own, and small real GGUF files."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from tests.waiting import until

settings.register_profile(
    "edge", deadline=None, derandomize=True, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("edge")

SMALL_DISK_BYTES = 2 << 20

RunEdge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty EDGE_HOME."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("EDGE_")]:
        monkeypatch.delenv(name)
    yield


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """A node's telemetry hears of what is only information, and a test that starts one must not have all later ones do so."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


@pytest.fixture
def run_edge(home: Path) -> RunEdge:
    """Run the real command line in a process of its own, as a person would."""

    def run(*arguments: str, timeout_s: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge", *arguments],
            env={**os.environ, "EDGE_HOME": str(home), **env},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real GGUF file of a few kilobytes, written by the gguf package. Its weights mean nothing."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(300)])
    writer.add_token_types([1] * 300)
    writer.add_chat_template("{{ messages[0].content }}")
    writer.add_tensor("token_embd.weight", np.ones((300, 32), dtype=np.float16))
    quantized = gguf.quantize(np.ones((8, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.weight", quantized, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A directory, what to call in a process that writes there, and what makes the disk larger.

    A real file system of 2 MiB where this user may mount one; else the kernel's bound on file sizes, with the same effect.
    """
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "none", str(path)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        larger = ["mount", "-o", "remount,size=256m", str(path)]
        try:
            yield path, lambda: None, lambda: subprocess.run(larger, check=True)
        finally:
            # A process that was killed may still be about to let go of it.
            until(lambda: subprocess.run(["umount", str(path)], check=False).returncode == 0)
    else:
        bound = [(SMALL_DISK_BYTES, SMALL_DISK_BYTES)]
        yield path, lambda: [resource.setrlimit(resource.RLIMIT_FSIZE, b) for b in bound], bound.clear


@pytest.fixture
def without_locks(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose file systems have no locks, and cannot make the names of a directory durable."""
    source, library = tmp_path / "nolock.c", tmp_path / "nolock.so"
    source.write_text(
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <errno.h>\n#include <sys/stat.h>\n"
        "int flock(int fd, int how) { errno = ENOLCK; return -1; }\n"
        "int fsync(int fd) { struct stat found; if (!fstat(fd, &found) && S_ISDIR(found.st_mode)) { errno = EINVAL; return -1; }"
        ' return ((int (*)(int)) dlsym(RTLD_NEXT, "fsync"))(fd); }\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library)}
