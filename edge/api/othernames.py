"""The node's figures under names that others have for them: vLLM's, and those of NVIDIA's DCGM exporter.

Routers, dashboards and autoscalers that know these names then work as they are. They stand on /metrics only: to send
them on would be to send the same twice.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edge.api.timings import Timings
from edge.messages import Stats
from edge.probes.readings import GpuReading
from edge.probes.sample import Probes
from edge.residency import Pool

_TTFT_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_WHOLE_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120)
_LABEL = "model_name"
_MIB = 1 << 20


class VllmNames:
    """Owner of those of vLLM's series that are counted; the others are read from the pool and from the node's own."""

    def __init__(self, registry: CollectorRegistry, pool: Pool, itl: Mapping[str, Timings]) -> None:
        """`itl`: the node's own histograms of gaps between tokens, with the model's name; the empty name: it is a label there."""
        registry.register(_VllmGauges(pool))
        registry.register(_VllmGaps(itl))
        self._ttft = Histogram(
            "vllm:time_to_first_token_seconds", "Request read to its first token, of answers given here.", [_LABEL],
            buckets=_TTFT_S, registry=registry,
        )  # fmt: skip
        self._whole = Histogram(
            "vllm:e2e_request_latency_seconds", "Request read to the end of its answer, of answers given here.",
            [_LABEL], buckets=_WHOLE_S, registry=registry,
        )  # fmt: skip
        self._read = Counter("vllm:prompt_tokens", "Prompt tokens of finished requests.", [_LABEL], registry=registry)
        self._made = Counter("vllm:generation_tokens", "Tokens generated for them.", [_LABEL], registry=registry)

    def began(self, model: str, ttft_s: float) -> None:
        """An answer has its first token."""
        self._ttft.labels(model).observe(ttft_s)

    def ended(self, model: str, took_s: float, prompt_tokens: int, answer_tokens: int) -> None:
        """An answer is whole."""
        self._whole.labels(model).observe(took_s)
        self._read.labels(model).inc(prompt_tokens)
        self._made.labels(model).inc(answer_tokens)


class _VllmGauges(Collector):
    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[GaugeMetricFamily]:
        running = GaugeMetricFamily("vllm:num_requests_running", "Answers that hold a slot.", labels=[_LABEL])
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Answers that wait for a slot.", labels=[_LABEL])
        cells = GaugeMetricFamily("vllm:kv_cache_usage_perc", "KV cells in use, 0 to 1.", labels=[_LABEL])
        for model in self._pool.roster:
            engine = self._pool.roster.engine(model.spec.name)
            stats = engine.stats if engine is not None else None
            if not isinstance(stats, Stats):  # not loaded, or no language model
                continue
            running.add_metric([model.spec.name], stats.running)
            waiting.add_metric([model.spec.name], stats.waiting)
            if stats.cells:
                cells.add_metric([model.spec.name], stats.cells_used / stats.cells)
        yield from (running, waiting, cells)


class _VllmGaps(Collector):
    """The node's own histograms once more; to count each token twice would cost time between tokens."""

    def __init__(self, itl: Mapping[str, Timings]) -> None:
        self._itl = itl

    def collect(self) -> Iterator[Metric]:
        family = Metric(
            "vllm:inter_token_latency_seconds", "Gap between two content events of one stream.", "histogram"
        )
        for name, timings in self._itl.items():
            timings.add_to(family, _LABEL, unlabelled=name, created=False)
        yield family


class DcgmNames(Collector):
    """Whole GPUs under the names, units and labels of NVIDIA's exporter. MIG slices are not shown."""

    def __init__(self, probes: Probes) -> None:
        self._probes, self._host = probes, socket.gethostname()

    def collect(self) -> Iterator[GaugeMetricFamily | Metric]:
        readings = self._probes.now()
        gpus = [gpu for gpu in readings.gpus if not gpu.is_slice] if readings is not None else []
        for name, (text, kind, value_of) in _DCGM.items():
            family = Metric(name, text, kind)
            for gpu in gpus:
                if (value := value_of(gpu)) is not None:
                    family.add_sample(name, self._labels(gpu), value)
            if family.samples:
                yield family

    def _labels(self, gpu: GpuReading) -> dict[str, str]:
        known = {"UUID": gpu.uuid, "pci_bus_id": gpu.bus_id, "modelName": gpu.name, "Hostname": self._host}
        return {"gpu": str(gpu.index), "device": f"nvidia{gpu.index}", **{k: v for k, v in known.items() if v}}


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


_COUNTED = "unknown"
"""A counter, but its name has no `_total`, and this text form cannot say the one without the other."""
_DCGM: dict[str, tuple[str, str, Callable[[GpuReading], float | None]]] = {
    "DCGM_FI_DEV_GPU_UTIL": ("GPU utilization (in %).", "gauge", lambda g: _scaled(g.utilization_ratio, 100)),
    "DCGM_FI_DEV_FB_USED": ("Memory used (in MiB).", "gauge", lambda g: _scaled(g.memory_used_bytes, 1 / _MIB)),
    "DCGM_FI_DEV_FB_FREE": ("Memory free (in MiB).", "gauge", lambda g: _scaled(g.memory_free_bytes, 1 / _MIB)),
    "DCGM_FI_DEV_GPU_TEMP": ("GPU temperature (in C).", "gauge", lambda g: g.temperature_celsius),
    "DCGM_FI_DEV_POWER_USAGE": ("Power draw (in W).", "gauge", lambda g: g.power_watts),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": (
        "Energy since the driver was loaded (in mJ).", _COUNTED, lambda g: _scaled(g.energy_joules, 1000),
    ),
    "DCGM_FI_DEV_SM_CLOCK": ("SM clock (in MHz).", "gauge", lambda g: _scaled(g.sm_clock_hertz, 1e-6)),
    "DCGM_FI_DEV_XID_ERRORS": (
        "Number of the last driver error since the node started; 0: none.", "gauge",
        lambda g: None if g.xids is None else g.last_xid,
    ),
}  # fmt: skip
