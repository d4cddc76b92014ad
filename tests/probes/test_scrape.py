"""What of the hardware is on /metrics, and what is not. The boards' trees and the library's profiles are synthetic and say
so; all code that reads them is the node's own, with the real pynvml, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.nvml import PROFILES, build_library
from tests.probes.boards import ORIN, PLAIN, THOR, plant

ASK = """
import sys
import time
from pathlib import Path
from prometheus_client import CollectorRegistry, generate_latest
from edge.api.hardware import HardwareFamilies
from edge.api.othernames import DcgmNames
from edge.probes.host import Roots
from edge.probes.sample import Probes
place = Path(sys.argv[1])
probes = Probes(Roots(place / "proc", place / "sys", place), 60.0, lambda change: None)
registry = CollectorRegistry()
registry.register(HardwareFamilies(probes))
registry.register(DcgmNames(probes))
assert not generate_latest(registry), "series before anything was read"
probes.start()
while probes.now() is None:
    time.sleep(0.01)
print(generate_latest(registry).decode())
probes.stop()
"""

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
Scrape = Callable[..., Series]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def scrape(library: Path, tmp_path: Path) -> Scrape:
    """The hardware's series of a machine with these files, and a library that replays this profile."""

    def ask(tree: Mapping[str, str | None], profile: str = "none") -> Series:
        plant(tmp_path, tree)
        env = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "NVML_STUB_PROFILE": str(PROFILES / f"{profile}.txt"),
        }
        command = [sys.executable, "-c", ASK, str(tmp_path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(done.stdout)
            for sample in family.samples
        }

    return ask


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


def value(series: Series, name: str, /, **labels: str) -> float:
    """Of the one series that has these labels, perhaps among others."""
    found = [v for (n, given), v in series.items() if n == name and labels.items() <= dict(given).items()]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_a_machine_without_a_gpu_has_no_series_of_one(scrape: Scrape) -> None:
    series = scrape(PLAIN)
    assert not {name for name in names(series) if name.startswith(("edge_gpu", "DCGM", "edge_board"))}
    assert value(series, "edge_host_cpu_seconds_total", mode="user") == 20.0
    assert value(series, "edge_host_cpu_seconds_total", mode="steal") == 0.07
    assert value(series, "edge_host_cores") == 2
    assert value(series, "edge_host_clock_hertz") == 1.4e9
    assert value(series, "edge_host_clock_max_hertz") == 3.2e9
    assert value(series, "edge_host_memory_bytes") == 7990000 * 1024
    assert value(series, "edge_host_memory_available_bytes") == 3000000 * 1024
    assert value(series, "edge_host_temperature_celsius", kind="x86_pkg_temp", zone="thermal_zone0") == 71.0
    assert value(series, "edge_host_pressure_seconds_total", resource="cpu", kind="full") == 0.125
    assert value(series, "edge_host_pressure_ratio", resource="cpu", kind="some") == 0.125
    assert value(series, "edge_host_cpu_throttles_total") == 3
    assert value(series, "edge_host_disk_free_bytes") > 0
    assert value(series, "edge_throttled") == 0.0


def test_what_a_bare_machine_does_not_tell_is_absent(scrape: Scrape) -> None:
    found = {name for name in names(scrape({"proc/stat": "cpu  1 1 1 1\n"})) if not name.startswith("edge_probe")}
    assert found == {"edge_host_cpu_seconds_total", "edge_host_disk_bytes", "edge_host_disk_free_bytes"}


def test_a_whole_card_tells_everything_in_base_units(scrape: Scrape) -> None:
    series = scrape(PLAIN, "full")
    card = {"gpu": "0", "uuid": "GPU-0f0f0f0f-0000-4000-8000-00000000c0de"}
    expected = {
        "edge_gpu_utilization_ratio": 0.37,
        "edge_gpu_memory_bytes": 16384 << 20,
        "edge_gpu_memory_used_bytes": 5632 << 20,
        "edge_gpu_memory_free_bytes": 10240 << 20,
        "edge_gpu_power_watts": 42.5,
        "edge_gpu_power_limit_watts": 60.0,
        "edge_gpu_energy_joules_total": 987654.321,
        "edge_gpu_temperature_celsius": 61.0,
        "edge_gpu_sm_clock_hertz": 1.44e9,
        "edge_gpu_sm_clock_max_hertz": 1.77e9,
        "edge_gpu_memory_clock_hertz": 6.251e9,
        "edge_gpu_processes": 2,
    }
    assert {name: value(series, name, **card) for name in expected} == pytest.approx(expected)
    assert {v for (n, _), v in series.items() if n == "edge_gpu_field_supported"} == {1.0}
    assert value(series, "edge_gpu_ecc_errors_total", kind="uncorrected") == 1
    assert value(series, "edge_gpu_xid_errors_total", xid="79") == 1
    assert value(series, "edge_gpu_info", name="Synthetic Edge GPU", driver="570.00.synthetic") == 1
    assert "edge_board_info" not in names(series)


def test_dcgm_names_have_dcgm_units_and_labels(scrape: Scrape) -> None:
    series = scrape(PLAIN, "full")
    card = {
        "gpu": "0", "device": "nvidia0", "UUID": "GPU-0f0f0f0f-0000-4000-8000-00000000c0de",
        "modelName": "Synthetic Edge GPU", "pci_bus_id": "00000000:01:00.0",
    }  # fmt: skip
    expected = {
        "DCGM_FI_DEV_GPU_UTIL": 37, "DCGM_FI_DEV_FB_USED": 5632, "DCGM_FI_DEV_FB_FREE": 10240,
        "DCGM_FI_DEV_GPU_TEMP": 61, "DCGM_FI_DEV_POWER_USAGE": 42.5,
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 987654321, "DCGM_FI_DEV_SM_CLOCK": 1440, "DCGM_FI_DEV_XID_ERRORS": 79,
    }  # fmt: skip
    assert {name: value(series, name, **card) for name in expected} == pytest.approx(expected)
    assert {n for n in names(series) if n.startswith("DCGM")} == set(expected)


def test_a_card_that_is_cut_up_has_its_slices_memory_and_no_utilization(scrape: Scrape) -> None:
    series = scrape(PLAIN, "mig")
    assert value(series, "edge_gpu_memory_free_bytes", uuid="MIG-a") == 1984 << 20
    assert value(series, "edge_gpu_memory_bytes", uuid="MIG-b") == 1024 << 20
    assert value(series, "edge_gpu_memory_bytes", uuid="GPU-1111") == 8192 << 20
    assert "edge_gpu_utilization_ratio" not in names(series)
    for uuid in ("GPU-1111", "MIG-a", "MIG-b"):
        assert value(series, "edge_gpu_field_supported", field="utilization", uuid=uuid) == 0
    assert value(series, "edge_gpu_power_watts") == 61.5, "the card's, and only the card's"
    assert value(series, "edge_gpu_field_supported", field="power", uuid="MIG-a") == 0
    assert value(series, "edge_gpu_ecc_errors_total", uuid="GPU-1111", kind="corrected") == 3
    assert "edge_gpu_xid_errors_total" not in names(series), "none came"
    assert value(series, "edge_gpu_field_supported", field="xid", uuid="GPU-1111") == 1
    assert value(series, "DCGM_FI_DEV_XID_ERRORS") == 0


@pytest.mark.parametrize("profile", ["none", "orin"])
def test_orin_is_read_from_its_files_whether_its_library_is_there_or_not(scrape: Scrape, profile: str) -> None:
    series = scrape(ORIN, profile)
    assert value(series, "edge_gpu_utilization_ratio", gpu="0") == 0.412
    assert value(series, "edge_gpu_sm_clock_hertz") == 930_750_000
    assert value(series, "edge_gpu_sm_clock_max_hertz") == 1_300_500_000
    assert value(series, "edge_gpu_temperature_celsius") == 46.25
    assert value(series, "edge_board_rail_watts", rail="VDD_GPU_SOC") == 6.0
    assert value(series, "edge_board_over_current_total", alarm="oc3") == 4
    absent = {"edge_gpu_power_watts", "edge_gpu_memory_bytes", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_FB_USED"}
    assert not absent & names(series), "one rail feeds more than the GPU, and the memory is the machine's"
    for field, known in {"utilization": 1, "temperature": 1, "power": 0, "memory": 0, "ecc": 0, "xid": 0}.items():
        assert value(series, "edge_gpu_field_supported", field=field) == known
    rails = {dict(labels)["rail"] for name, labels in series if name == "edge_board_rail_watts"}
    assert rails == {"VDD_GPU_SOC", "VDD_CPU_CV", "VDDQ_VDD2_1V8AO"}, "what is not connected is no rail"


def test_sensors_that_are_switched_off_or_asleep_are_absent(scrape: Scrape) -> None:
    series = scrape(ORIN)
    kinds = {dict(labels)["kind"] for name, labels in series if name == "edge_host_temperature_celsius"}
    assert kinds == {"cpu-thermal", "gpu-thermal", "tj-thermal"}
    cooled = {dict(labels)["device"] for name, labels in series if name == "edge_host_cooling_ratio"}
    assert cooled == {"cpufreq-cpu0"}, "a fan holds nothing back"


def test_thor_is_what_its_library_tells_and_its_files_beside_it(scrape: Scrape) -> None:
    series = scrape(THOR, "thor")
    assert value(series, "edge_gpu_utilization_ratio") == 0.58
    assert value(series, "edge_gpu_sm_clock_hertz") == 1.575e9, "the library's word holds where it has one"
    assert value(series, "edge_gpu_sm_clock_max_hertz") == 1.575e9
    assert value(series, "edge_gpu_temperature_celsius") == 51.0
    assert value(series, "edge_gpu_power_watts") == 24.0, "this rail feeds the GPU alone"
    assert value(series, "edge_board_rail_watts", rail="VIN") == 61.5
    assert value(series, "edge_gpu_field_supported", field="memory") == 0
    assert "edge_gpu_memory_bytes" not in names(series)
    assert value(series, "edge_board_info", model="NVIDIA Jetson AGX Thor Developer Kit") == 1


def test_thor_without_its_library_has_no_load(scrape: Scrape) -> None:
    series = scrape(THOR)
    assert value(series, "edge_gpu_sm_clock_hertz") == 1_386_000_000
    assert "edge_gpu_utilization_ratio" not in names(series)
    assert value(series, "edge_gpu_field_supported", field="utilization") == 0
