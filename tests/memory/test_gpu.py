"""What the management library says becomes a budget. The library is a stand-in built here; the binding is the real one, in a
process of its own, since it loads a library once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.memory.budget import supposed
from edge.memory.gpu import is_jetson
from edge.memory.layout import Budget
from tests.nvml import PROFILES, build_library

MIB = 1 << 20
ASK = (
    "import dataclasses, json, os; from edge.memory.budget import room; "
    "print(json.dumps(dataclasses.asdict(room(int(os.environ['BOUND']), 0, device=True))))"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


def budget(library: Path, bound: int = 0, profile: str = "small", **environment: str) -> dict[str, object]:
    stub = {"LD_LIBRARY_PATH": str(library), "NVML_STUB_PROFILE": str(PROFILES / f"{profile}.txt")}
    outside = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env = {**outside, **stub, "BOUND": str(bound), **environment}
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("environment", "name", "free_mib", "total_mib"),
    [
        ({}, "Stub Card", 6144, 8192),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "Stub Card", 6144, 8192),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1111"}, "Stub Card", 6144, 8192),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1"}, "Stub Card", 6144, 8192),
        ({"CUDA_VISIBLE_DEVICES": "MIG-b", "profile": "mig"}, "Stub Card MIG", 960, 1024),
        ({"profile": "mig"}, "Stub Card MIG", 1984, 2048),
    ],
)
def test_the_device_that_would_be_used_is_the_budget(
    library: Path, environment: dict[str, str], name: str, free_mib: int, total_mib: int
) -> None:
    found = budget(library, **environment)
    assert found["device"] == name and found["unified"] is False
    assert found["device_bytes"] == int(free_mib * MIB - total_mib * MIB * 0.03)


def test_a_bound_by_the_operator_holds_on_the_device(library: Path) -> None:
    assert budget(library, bound=2000)["device_bytes"] == 2000 * MIB


@pytest.mark.parametrize(
    "environment", [{"profile": "none"}, {"CUDA_VISIBLE_DEVICES": "GPU-other"}, {"CUDA_VISIBLE_DEVICES": ""}]
)
def test_a_device_without_memory_of_its_own_shares_the_machines(library: Path, environment: dict[str, str]) -> None:
    found = budget(library, bound=64, **environment)  # which any machine has left, whatever else runs there
    assert found["unified"] is True and found["host_bytes"] == 64 * MIB
    assert found["source"] == "memory.budget_mib"


def test_what_is_supposed_is_of_the_memory_that_counts() -> None:
    much = 6144 * MIB
    card = Budget(512 * MIB, "this machine", 4096 * MIB, "a card")
    assert supposed(much, card) == Budget(512 * MIB, "this machine", much, "a card")
    board = Budget(512 * MIB, "this machine", 512 * MIB, "the GPU", unified=True)
    assert supposed(much, board) == Budget(much, "--memory", much, "the GPU", unified=True)
    assert supposed(much, Budget(512 * MIB, "this machine")) == Budget(much, "--memory")


def test_a_jetson_is_told_by_its_device_tree(tmp_path: Path) -> None:
    tree = tmp_path / "compatible"
    assert not is_jetson(tree)
    tree.write_bytes(b"nvidia,p3767-0005\0nvidia,tegra234\0")
    assert is_jetson(tree)
