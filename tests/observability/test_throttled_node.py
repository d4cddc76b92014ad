"""A real node whose GPU (synthetic) grows hot while it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import RunningNode, start_node, stop_node
from tests.nvml import PROFILES, build_library
from tests.probes.boards import rewrite
from tests.waiting import until


def throttled(node: RunningNode) -> dict[str, float]:
    page = httpx.get(f"{node.base_url}/metrics", timeout=60, trust_env=False).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    wanted = [
        s for s in samples if s.name.startswith(("edge_throttle", "edge_gpu_throttle")) and "_created" not in s.name
    ]
    return {s.labels.get("reason", s.name): s.value for s in wanted}


def told_by(node: RunningNode, name: str, value: float | None = None) -> dict[str, float]:
    """What `throttled` finds, once that is told: readings that are too old are not, nor are all things changed in one moment."""
    found = throttled(node)
    return found if name in found and value in (None, found[name]) else {}


def with_hardware(node: RunningNode) -> dict[str, Any]:
    """Its load, if the hardware was read lately."""
    load: dict[str, Any] = httpx.get(f"{node.base_url}/edge/v1/load", timeout=60, trust_env=False).json()
    return load if load.get("hardware", {}).get("gpus") else {}


def test_heat_is_told_everywhere_and_the_engine_goes_on(home: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.txt"
    cool = (PROFILES / "full.txt").read_text()
    profile.write_text(cool)
    node = start_node(
        home, "--set", "metrics.interval_s=0.2", "--set", "log.format=json",
        LD_LIBRARY_PATH=str(build_library(tmp_path)), NVML_STUB_PROFILE=str(profile),
    )  # fmt: skip
    try:
        assert until(lambda: told_by(node, "edge_throttled"))["edge_throttled"] == 0
        rewrite(profile, cool.replace("0.throttle 0x0", "0.throttle 0x44"))
        until(lambda: told_by(node, "edge_throttled", 1))
        until(lambda: told_by(node, "edge_throttle_begins_total", 1))
        found = until(lambda: told_by(node, "hw_thermal", 1))
        assert (found["hw_thermal"], found["power_cap"], found["sw_thermal"]) == (1, 1, 0)
        body = {"prompt": "pump", "max_tokens": 20, "ignore_eos": True}
        answer = httpx.post(f"{node.base_url}/v1/completions", json=body, timeout=600, trust_env=False)
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 20
        load = until(lambda: with_hardware(node))
        assert load["hardware"]["throttled"] is True and load["restarts"] == 0
        assert load["hardware"]["gpus"][0]["throttle"] == ["hw_thermal", "power_cap"]
    finally:
        stop_node(node)
    events = [json.loads(line) for line in node.said().splitlines() if line.startswith("{")]
    told = [event["signs"] for event in events if event.get("event") == "throttle"]
    assert told == ["gpu hw_thermal"]
