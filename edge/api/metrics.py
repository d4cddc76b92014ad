"""The node's metrics, in Prometheus's text form. Counters live here; gauges are read from the engine at scrape time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from edge.admission.decisions import DecisionLog
from edge.api.gauges import (
    Decisions,
    EngineGauges,
    FleetGauges,
    IdentityGauges,
    ModelGauges,
    OutboxGauges,
    TensorGauges,
)
from edge.api.hardware import HardwareFamilies
from edge.api.othernames import DcgmNames, VllmNames
from edge.api.recent import WINDOW_S, Recent
from edge.api.timings import Listener, Tally, Timings
from edge.api.told import Told
from edge.api.turns import in_turns
from edge.fleet.central import Central
from edge.identity.keeper import Keeper
from edge.probes.sample import Probes
from edge.residency import Pool
from edge.telemetry.node import Telemetry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_RATIOS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5)
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


@dataclass(frozen=True, slots=True)
class Times:
    """Where the times to the first token and between tokens of one model's answers are noted."""

    ttft: Tally
    itl: Tally


class NodeMetrics:
    """Owner of the node's metric registry."""

    def __init__(
        self,
        pool: Pool,
        decisions: DecisionLog,
        fleet: Central | None,
        probes: Probes | None = None,
        telemetry: Telemetry | None = None,
        identity: Keeper | None = None,
        *,
        dcgm_names: bool = False,
    ) -> None:
        self._registry = self.registry = CollectorRegistry()
        """What the node says in names of its own. Others' names stand apart, so that nothing is sent on twice."""
        self._others = CollectorRegistry()
        hardware = HardwareFamilies(probes) if probes is not None else None
        self.told = Told(self._registry, hardware)
        """The same, as it is sent."""
        if probes is not None and hardware is not None:
            self._registry.register(hardware)
            if dcgm_names:
                self._others.register(DcgmNames(probes))
        self._main = pool.roster.main
        self._registry.register(EngineGauges(pool))
        self._registry.register(ModelGauges(pool))
        self._registry.register(TensorGauges(pool))
        self._registry.register(Decisions(decisions))
        if fleet is not None:
            self._registry.register(FleetGauges(fleet))
        if telemetry is not None:
            self._registry.register(OutboxGauges(telemetry))
        if identity is not None:
            self._registry.register(IdentityGauges(identity))
        self.requests = Counter("edge_requests", "Requests answered.", ["route", "status"], registry=self._registry)
        self._ttft = self._timings("edge_ttft_seconds", "Request read to first text written, by the main model.")
        self._itl = self._timings("edge_itl_seconds", "Gap between two content events of one stream of the main model.")
        self._further_ttft = self._timings("edge_further_ttft_seconds", "The same of further models.", "model")
        self._further_itl = self._timings("edge_further_itl_seconds", "The same of further models.", "model")
        self._times: dict[tuple[str, str, bool], Times] = {}
        self.vllm = VllmNames(self._others, pool, {self._main: self._itl, "": self._further_itl})
        self._listeners: list[Listener] = []
        self._recent_ttft, self._recent_itl = Recent(), Recent()
        """Of the main model's streams that were promised something."""
        self.prediction = Histogram(
            "edge_prediction_error_ratio",
            "Time to the first token over what was predicted, of admitted requests: above 1 is later.",
            buckets=_RATIOS,
            registry=self._registry,
        )
        self.violations = Counter(
            "edge_slo_violations",
            "Admitted answers' first tokens (ttft) and gaps (itl) that took longer than promised.",
            ["kind"],
            registry=self._registry,
        )
        self.continued = Counter(
            "edge_answers_continued",
            "Answers that the engine began and the fleet went on with.",
            registry=self._registry,
        )
        self.queue = self._histogram("edge_queue_seconds", "Request read by the engine to its first step.")
        self.prefill = self._histogram("edge_prefill_seconds", "First step of the prompt to the first token.")
        self.tensors = self._histogram(
            "edge_tensor_answer_seconds", "Request read to whole answer, of models that answer with numbers.", ["model"]
        )
        self.prompt_tokens = Counter(
            "edge_prompt_tokens", "Prompt tokens of finished requests.", registry=self._registry
        )
        self.answer_tokens = Counter(
            "edge_answer_tokens", "Tokens generated for finished requests.", registry=self._registry
        )

    def _histogram(self, name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, text, labels, buckets=_SECONDS, registry=self._registry)

    def _timings(self, name: str, text: str, label: str = "") -> Timings:
        made = Timings(name, text, _SECONDS, label)
        self._registry.register(made)
        return made

    def listen(self, listener: Listener) -> None:
        """It is told each latency from now on. For the composition root."""
        listener.settle = self.settle
        self._listeners.append(listener)

    def times(self, operation: str, model: str, *, recent: bool) -> Times:
        """Where times of answers are noted. `recent`: whether people who look at the last minutes want to see them."""
        key = (operation, model, recent)
        if (found := self._times.get(key)) is None:
            found = self._times[key] = Times(self._tally("ttft", *key), self._tally("itl", *key))
        return found

    def _tally(self, kind: str, operation: str, model: str, recent: bool) -> Tally:
        main = model == self._main
        own, further, newest = {
            "ttft": (self._ttft, self._further_ttft, self._recent_ttft),
            "itl": (self._itl, self._further_itl, self._recent_itl),
        }[kind]
        buckets = own.of("") if main else further.of(model)

        def count(seconds: Sequence[float], at_s: Sequence[float]) -> None:
            buckets.count(seconds)
            if recent:
                newest.add_all(seconds, at_s)
            self._tell(kind, operation, model, seconds)

        return Tally(count)

    def settle(self) -> None:
        """Count all times that were noted."""
        for times in self._times.values():
            times.ttft.settle()
            times.itl.settle()

    def whole(self, operation: str, model: str, seconds: float) -> None:
        """An answer is over, and took so long."""
        self._tell("whole", operation, model, (seconds,))

    def _tell(self, kind: str, operation: str, model: str, seconds: Sequence[float]) -> None:
        for listener in self._listeners:
            listener.observe_all(kind, operation, model, seconds)

    def recent(self) -> dict[str, Any]:
        """What was measured lately of that for which something is promised."""
        self.settle()
        found = {"ttft": self._recent_ttft.summary(), "itl": self._recent_itl.summary()}
        return {"window_s": WINDOW_S, **{name: times for name, times in found.items() if times is not None}}

    async def page(self) -> bytes:
        """The whole page."""
        self.settle()
        families = chain(self._registry.collect(), self._others.collect())
        # It collects, and asks no more.
        return b"".join(await in_turns(generate_latest(cast(CollectorRegistry, _Only(f))) for f in families))


class _Only(Collector):
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> tuple[Metric]:
        """It."""
        return (self._family,)
