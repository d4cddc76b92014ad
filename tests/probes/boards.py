"""Trees of /proc and /sys as NVIDIA's modules have them. SYNTHETIC: written after NVIDIA's and the kernel's documents, with
figures of no real board."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edge.probes.host import Roots

STAT = """cpu  2000 100 500 9000 200 0 50 7 0 0
cpu0 1000 50 250 4500 100 0 25 3 0 0
cpu1 1000 50 250 4500 100 0 25 4 0 0
intr 1 2 3
"""
MEMINFO = "MemTotal:       7990000 kB\nMemFree:         100000 kB\nMemAvailable:   3000000 kB\n"
PRESSURE = (
    "some avg10=12.50 avg60=3.00 avg300=1.00 total=2500000\nfull avg10=0.50 avg60=0.10 avg300=0.00 total=125000\n"
)

HOST = {"proc/stat": STAT, "proc/meminfo": MEMINFO, "proc/pressure/cpu": PRESSURE}


def _zones(temperatures: Mapping[str, int | None]) -> dict[str, str | None]:
    """Thermal zones; None: the sensor does not answer now."""
    found: dict[str, str | None] = {}
    for number, (kind, thousandths) in enumerate(temperatures.items()):
        zone = f"sys/class/thermal/thermal_zone{number}"
        found[f"{zone}/type"] = f"{kind}\n"
        found[f"{zone}/temp"] = None if thousandths is None else f"{thousandths}\n"
    return found


def _chip(number: int, name: str, files: Mapping[str, str]) -> dict[str, str]:
    place = f"sys/class/hwmon/hwmon{number}"
    return {f"{place}/name": f"{name}\n", **{f"{place}/{key}": f"{value}\n" for key, value in files.items()}}


def _rail(channel: int, label: str, millivolts: int, milliamperes: int) -> dict[str, str]:
    return {
        f"in{channel}_label": label,
        f"in{channel}_input": str(millivolts),
        f"curr{channel}_input": str(milliamperes),
    }


def _cooling(number: int, kind: str, state: int, most: int) -> dict[str, str]:
    place = f"sys/class/thermal/cooling_device{number}"
    return {f"{place}/type": f"{kind}\n", f"{place}/cur_state": f"{state}\n", f"{place}/max_state": f"{most}\n"}


ORIN: Mapping[str, str | None] = {
    **HOST,
    "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "sys/class/devfreq/17000000.gpu/device/of_node/name": "gpu\0",
    "sys/class/devfreq/17000000.gpu/device/load": "412\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "930750000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    **_zones(
        {
            "cpu-thermal": 48_500,
            "gpu-thermal": 46_250,
            "cv0-thermal": -256_000,
            "soc0-thermal": None,
            "tj-thermal": 49_000,
        }
    ),
    **_cooling(0, "cpufreq-cpu0", 0, 20),
    **_cooling(1, "pwm-fan", 3, 10),
    **_chip(0, "ina3221", _rail(1, "VDD_GPU_SOC", 12_000, 500) | _rail(2, "VDD_CPU_CV", 12_000, 250)),
    **_chip(1, "ina3221", _rail(1, "NC", 0, 0) | _rail(2, "VDDQ_VDD2_1V8AO", 5_000, 100)),
    **_chip(2, "soctherm_oc", {"oc1_event_cnt": "0", "oc3_event_cnt": "4", "oc3_throt_en": "1"}),
    **_chip(3, "pwmfan", {"pwm1": "80"}),
}

THOR: Mapping[str, str | None] = {
    **HOST,
    "proc/device-tree/compatible": "nvidia,p3971-0089+p3834-0008\0nvidia,tegra264\0",
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1386000000\n",
    "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
    "sys/class/devfreq/gpu-nvd-0/cur_freq": "1062000000\n",
    **_zones({"cpu-thermal": 50_000, "gpu-thermal": 52_000, "tj-thermal": 52_500}),
    **_chip(0, "ina3221", _rail(1, "VDD_GPU", 12_000, 2_000) | _rail(2, "VDD_CPU_SOC_MSS", 12_000, 1_000)),
    **_chip(1, "ina238", {"power1_input": "61500000"}),
}

PLAIN: Mapping[str, str | None] = {
    **HOST,
    **_zones({"x86_pkg_temp": 71_000, "acpitz": 27_800}),
    **_cooling(0, "Processor", 0, 10),
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1600000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3200000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1200000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "3200000\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "2\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "1\n",
    "sys/devices/system/cpu/cpufreq/boost": "1\n",
}


LIMITED: Mapping[str, str | None] = {
    **HOST,
    "proc/self/cgroup": "0::/node\n",
    "sys/fs/cgroup/node/memory.max": "2147483648\n",
    "sys/fs/cgroup/node/memory.current": "1073741824\n",
    "sys/fs/cgroup/node/memory.stat": "anon 900000000\ninactive_file 73741824\n",
}
"""A machine whose node may take 2 GiB, as in a container."""


def rewrite(path: Path, content: str) -> None:
    """In one step: whoever reads meanwhile sees all of the old or all of the new, as of the kernel's own files."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(content)
    draft.replace(path)


def plant(place: Path, tree: Mapping[str, str | None]) -> Roots:
    """Write a tree. A file whose text is None cannot be read: a directory stands in its place."""
    for name, content in tree.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content)
    return Roots(place / "proc", place / "sys", place)
