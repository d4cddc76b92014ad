"""What is told of the node's figures, over MQTT and OTLP: those of /metrics, each counter since this process began.

The kernel counts since the machine started, a GPU's driver since it was loaded, a card's memory errors over its life. A sum
that is sent has the time at which its counting began, and a back end that honours it would count the whole past once more with
each start of the node. The machine's start would be no such time: the kernel works it out from the clock, and it moves when
that is set. So the first reading is taken off. On /metrics they stand as they were read, as Prometheus's own exporters have it.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from edge.api.hardware import CountedBefore, HardwareFamilies

_Key = tuple[str, tuple[tuple[str, str], ...]]


class Told(Collector):
    """Owner of what counters had counted before this process. `collect` it on the event loop."""

    def __init__(self, registry: CollectorRegistry, hardware: HardwareFamilies | None) -> None:
        self._registry, self._hardware = registry, hardware
        self._begun = False
        self._last: dict[_Key, float] = {}
        self._counted: dict[_Key, float] = {}

    def collect(self) -> Iterator[Metric]:
        """The registry's families, as they are told."""
        if not self._begun and self._hardware is not None and (first := self._hardware.first()) is not None:
            self._begun = True
            for older in first:
                self._since(older)
        for family in self._registry.collect():
            yield self._since(family) if isinstance(family, CountedBefore) else family

    def _since(self, family: CountedBefore) -> Metric:
        """What came since the first reading. A reading below the one before it adds nothing: the driver was loaded anew, or the
        kernel set a figure right, and what came in between is not known."""
        told = Metric(family.name, family.documentation, family.type)
        for sample in family.samples:
            key = (sample.name, tuple(sample.labels.items()))
            rise = max(0.0, sample.value - self._last.get(key, sample.value))
            self._last[key] = sample.value
            self._counted[key] = self._counted.get(key, 0.0) + rise
            told.samples.append(sample._replace(value=self._counted[key]))
        return told
