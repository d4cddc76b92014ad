"""Full disks: named before a download starts, and where one fills up in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.file_server import FileServer, Served
from edge.errors import DiskFull
from edge.registry import space
from tests.conftest import SMALL_DISK_BYTES
from tests.registry.conftest import Node, sha

PETABYTE = 10**15


def test_a_disk_that_is_too_small_is_named_before_the_download(node: Node, server: FileServer, served: Served) -> None:
    served.announced = PETABYTE
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(
        DiskFull, match=r"not enough space: 1000000.00 GB are still to come and 67.1 MB must stay free, .* free"
    ):
        node.pull("m")
    assert not server.gets("/m.gguf")


def test_the_sizes_of_all_files_count(node: Node, server: FileServer, served: Served) -> None:
    server.routes["/t.json"] = Served(b"{}", announced=PETABYTE)
    node.know("m", f"{server.url}/m.gguf")
    with (node.home / "models" / "m.toml").open("a") as file:
        file.write(f'\n[[files]]\nfile = "t.json"\nsource = "{server.url}/t.json"\n')
    with pytest.raises(DiskFull, match="not enough space"):
        node.pull("m")
    assert not server.gets("/m.gguf")


def test_a_file_of_unknown_size_leaves_the_disk_its_reserve(
    node: Node, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.routes["/m.gguf"] = Served(b"GGUF" + bytes(20 << 20), chunked=True)
    node.know("m", f"{server.url}/m.gguf")
    monkeypatch.setattr(space, "RESERVE_BYTES", PETABYTE)  # more than any disk has free
    with pytest.raises(DiskFull, match=r"is full: 16\.8 MB of m.gguf are here and kept"):
        node.pull("m")
    assert (16 << 20) <= node.partials()[0].stat().st_size < (20 << 20)


def test_a_disk_that_fills_up_keeps_what_is_here(
    small_disk: tuple[Path, Callable[[], None], Callable[[], None]],
    server: FileServer,
    served: Served,
    model_bytes: bytes,
) -> None:
    home, in_child, enlarge = small_disk
    served.chunked = True  # so that nobody knows the size before

    def pull() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edge", "models", "pull", f"{server.url}/m.gguf", "--name", "m"],
            env={**os.environ, "EDGE_HOME": str(home)},
            capture_output=True,
            text=True,
            preexec_fn=in_child,
            timeout=240,
            check=False,
        )

    full = pull()
    assert full.returncode == 1
    complaint = full.stderr.splitlines()[-1]
    assert complaint.startswith(f"edge: the disk of {home / 'store' / 'partial'} is full: ")
    assert "of m.gguf are here and kept" in complaint
    [part] = (home / "store" / "partial").glob("*.part")
    kept = part.read_bytes()
    assert 0 < len(kept) < SMALL_DISK_BYTES + 1 and model_bytes.startswith(kept)
    enlarge()
    done = pull()
    assert done.returncode == 0, done.stderr
    assert server.gets("/m.gguf")[-1].headers["range"] == f"bytes={len(kept)}-"
    assert (home / "store" / "blobs" / sha(model_bytes)).read_bytes() == model_bytes
