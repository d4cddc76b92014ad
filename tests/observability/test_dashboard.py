"""The dashboard's queries, asked of a real Prometheus that scrapes a real node; and the collector's file."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.e2e.conftest import RunningNode
from tests.observability.conftest import ROOT
from tests.waiting import until

DASHBOARD = json.loads((ROOT / "observability" / "grafana-dashboard.json").read_text())
COLLECTOR = yaml.safe_load((ROOT / "observability" / "otel-collector.yaml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"].replace("$instance", ".*") for panel in PANELS for target in panel["targets"]]
_PATIENCE_S = 60


@pytest.fixture(scope="module")
def prometheus(full_node: RunningNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    place = tmp_path_factory.mktemp("prometheus")
    target = full_node.base_url.removeprefix("http://")
    jobs = [{"job_name": "edge", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}]
    (place / "prometheus.yml").write_text(json.dumps({"scrape_configs": jobs}))
    flags = {
        "config.file": place / "prometheus.yml",
        "storage.tsdb.path": place / "data",
        "web.listen-address": "127.0.0.1:0",
    }
    with subprocess.Popen(
        ["prometheus", *(f"--{name}={value}" for name, value in flags.items())],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            port = until(lambda: _port(process))
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
                give_up_s = time.monotonic() + _PATIENCE_S
                while not _has(client, "count_over_time(up[1m]) > 2"):
                    assert time.monotonic() < give_up_s and process.poll() is None, "Prometheus does not scrape"
                    time.sleep(0.2)
                yield client
        finally:
            process.terminate()


def _port(process: subprocess.Popen[bytes]) -> int | None:
    """Where it listens, as soon as it does."""
    assert process.poll() is None, "Prometheus ended"
    found = psutil.Process(process.pid).net_connections("tcp")
    return next((one.laddr.port for one in found if one.status == psutil.CONN_LISTEN), None)


def _has(client: httpx.Client, query: str) -> bool:
    try:
        answer = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:
        return False
    return answer.status_code == httpx.codes.OK and bool(answer.json()["data"]["result"])


def test_every_query_is_one_and_has_an_answer_unless_the_machine_has_none(prometheus: httpx.Client) -> None:
    give_up_s = time.monotonic() + _PATIENCE_S
    while (empty := _unanswered(prometheus)) and time.monotonic() < give_up_s:
        time.sleep(0.5)  # after a scrape that came too late there is nothing until the next one
    assert empty == []


def _unanswered(client: httpx.Client) -> list[str]:
    empty = []
    for query in QUERIES:
        answer = client.get("/api/v1/query", params={"query": query})
        assert answer.status_code == httpx.codes.OK, (query, answer.text)
        if not answer.json()["data"]["result"]:
            empty.append(query)
    hardware = ("edge_host_temperature", "edge_board_rail", "edge_gpu_throttle", "edge_host_pressure")
    return [query for query in empty if not any(name in query for name in hardware)]


def test_every_metric_that_the_dashboard_names_is_on_metrics(scraped: str, boards: str) -> None:
    named = {name for query in QUERIES for name in re.findall(r"\b(?:edge_|vllm:|DCGM_)\w+", query)}
    families = set(re.findall(r"^# TYPE (\S+)", scraped + boards, re.MULTILINE))
    assert named and {name for name in named if name.removesuffix("_bucket") not in families} == set()


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) and DASHBOARD["uid"] and DASHBOARD["schemaVersion"] >= 36
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, f"{panel['title']!r} lies on another panel"
        taken |= cells
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in PANELS)


KNOWN = {
    "receivers": {"otlp", "prometheus"},
    "processors": {"memory_limiter", "resource", "batch"},
    "exporters": {"otlphttp", "debug"},
    "extensions": {"health_check"},
}
"""Kinds of the contrib distribution that the file uses."""


def test_the_collectors_file_uses_what_it_defines_and_defines_what_it_uses() -> None:
    used: dict[str, set[str]] = {"extensions": set(COLLECTOR["service"]["extensions"])}
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        for part in ("receivers", "processors", "exporters"):
            used.setdefault(part, set()).update(pipeline[part])
        assert pipeline["processors"][0] == "memory_limiter" and pipeline["processors"][-1] == "batch"
    for part, kinds in KNOWN.items():
        assert set(COLLECTOR[part]) == used[part]
        assert {name.partition("/")[0] for name in COLLECTOR[part]} <= kinds
    assert set(COLLECTOR) == {*KNOWN, "service"}
    assert COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"].endswith(":4318")


def test_prometheus_takes_the_collectors_scrape_jobs(tmp_path: Path) -> None:
    config: dict[str, Any] = json.loads(json.dumps(COLLECTOR["receivers"]["prometheus"]["config"]))
    (tmp_path / "key").write_text("edge-key")
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(tmp_path / "key")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
