"""How much memory is left, read from files laid out as the kernel does, in both generations of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge.memory.host import host_memory, oom_kills, proportional_bytes

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    place = tmp_path / "proc"
    (place / "self").mkdir(parents=True)
    (place / "meminfo").write_text(f"MemTotal: {8192 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {6000 * 1024} kB\n")
    return place


def v2(root: Path, path: str, limit: str, used_mib: int = 0, cache_mib: int = 0) -> None:
    place = root / path
    place.mkdir(parents=True, exist_ok=True)
    (place / "memory.max").write_text(f"{limit}\n")
    (place / "memory.current").write_text(f"{used_mib * MIB}\n")
    (place / "memory.stat").write_text(f"anon 1\ninactive_file {cache_mib * MIB}\nactive_file 5\n")


def test_without_control_groups_the_machine_counts(proc: Path, tmp_path: Path) -> None:
    memory = host_memory(proc, tmp_path / "none")
    assert memory is not None
    assert (memory.total_bytes, memory.available_bytes, memory.limit_bytes) == (8192 * MIB, 6000 * MIB, None)
    assert memory.source == "this machine"


def test_a_kernel_that_does_not_say_is_not_guessed_at(tmp_path: Path) -> None:
    assert host_memory(tmp_path, tmp_path) is None


def test_page_cache_of_a_group_counts_as_free(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/pod/edge\n")
    v2(tmp_path / "cg", "pod/edge", str(1000 * MIB), used_mib=700, cache_mib=500)
    memory = host_memory(proc, tmp_path / "cg")
    assert memory is not None and memory.available_bytes == 800 * MIB and memory.limit_bytes == 1000 * MIB
    assert memory.source == "a control group limited to 1,000 MiB"


def test_the_bound_beyond_which_a_group_is_slowed_down_counts_too(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/system.slice/edge.service\n")
    v2(tmp_path / "cg", "system.slice/edge.service", str(2000 * MIB), used_mib=100)
    (tmp_path / "cg" / "system.slice" / "edge.service" / "memory.high").write_text(f"{1000 * MIB}\n")
    memory = host_memory(proc, tmp_path / "cg")
    assert memory is not None and (memory.available_bytes, memory.limit_bytes) == (900 * MIB, 1000 * MIB)


@pytest.mark.parametrize("spoilt", ["memory.stat", "memory.current"])
def test_a_limit_holds_where_its_use_is_not_told(proc: Path, tmp_path: Path, spoilt: str) -> None:
    (proc / "self" / "cgroup").write_text("0::/pod\n")
    v2(tmp_path / "cg", "pod", str(1000 * MIB), used_mib=0)
    for text in ("inactive_file\n", None):
        (tmp_path / "cg" / "pod" / spoilt).write_text(text) if text else (tmp_path / "cg" / "pod" / spoilt).unlink()
        memory = host_memory(proc, tmp_path / "cg")
        assert memory is not None and memory.available_bytes == 1000 * MIB


def test_the_tightest_group_above_counts(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/pod/edge\n")
    v2(tmp_path / "cg", "pod/edge", "max", used_mib=300)
    v2(tmp_path / "cg", "pod", str(2000 * MIB), used_mib=1800)
    memory = host_memory(proc, tmp_path / "cg")
    assert memory is not None and memory.available_bytes == 200 * MIB


def test_in_a_container_the_group_is_the_root_whatever_the_host_calls_it(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/kubepods.slice/pod1\n")
    v2(tmp_path / "cg", ".", str(512 * MIB), used_mib=100)
    memory = host_memory(proc, tmp_path / "cg")
    assert memory is not None and memory.available_bytes == 412 * MIB


@pytest.mark.parametrize(("limit", "free_mib"), [(str(1000 * MIB), 900), ("9223372036854771712", 6000)])
def test_the_first_generation_of_control_groups(proc: Path, tmp_path: Path, limit: str, free_mib: int) -> None:
    (proc / "self" / "cgroup").write_text("5:devices:/\n4:cpu,memory:/box\n0::/\n")
    place = tmp_path / "cg" / "memory" / "box"
    place.mkdir(parents=True)
    (place / "memory.limit_in_bytes").write_text(limit)
    (place / "memory.usage_in_bytes").write_text(str(400 * MIB))
    (place / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file {300 * MIB}\n")
    memory = host_memory(proc, tmp_path / "cg")
    assert memory is not None and memory.available_bytes == free_mib * MIB


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    assert oom_kills(tmp_path) == 0
    (tmp_path / "vmstat").write_text("pgfault 5\noom_kill 3\n")
    assert oom_kills(tmp_path) == 3


def test_shared_pages_count_in_part() -> None:
    assert proportional_bytes(os.getpid()) > 1 << 20
    assert proportional_bytes(1 << 30) == 0
