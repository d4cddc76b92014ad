"""The telemetry of a node without the rest of it, in compressed time, to be killed: `python -m bench.telemetry_node CONFIG`.

Each turn is an interval of 15 s by its clock, and takes `turn_s` in truth. What the outbox has taken is written to a journal that
outlives SIGKILL. On SIGUSR1 nothing new is made; when all is acknowledged, the process ends with 0.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.telemetry.alarms import Alarms
from edge.telemetry.histogram import Histogram
from edge.telemetry.mqtt import BrokerAddress
from edge.telemetry.node import NodePresence
from edge.telemetry.outbox import Outbox, OutboxLimits
from edge.telemetry.records import Sample
from edge.telemetry.session import UplinkConfig
from edge.telemetry.stamp import Stamp
from edge.telemetry.uplink import Uplink

S = 1_000_000_000
INTERVAL_S = 15


class CompressedClock:
    """Moved by hand from a given start; survives in the journal's directory what the process does not."""

    def __init__(self, wall_s: float = 1_800_000_000.0) -> None:
        self.wall_s, self.mono_s = wall_s, 1000.0

    def now(self) -> Stamp:
        """This moment."""
        return Stamp(int(self.wall_s * S), int(self.mono_s * S), "k", True)

    def pass_s(self, seconds: float) -> None:
        """Time goes by."""
        self.wall_s += seconds
        self.mono_s += seconds


@dataclass(frozen=True, slots=True)
class TrialNode:
    """Outbox and uplink of one node on trial."""

    outbox: Outbox
    uplink: Uplink
    alarms: Alarms
    clock: CompressedClock


def trial_node(directory: Path, name: str, address: BrokerAddress, cap_bytes: int, **more: Any) -> TrialNode:
    """Opened and started."""
    clock, alarms = CompressedClock(more.pop("wall_s", 1_800_000_000.0)), Alarms()
    outbox = Outbox(directory, OutboxLimits(cap_bytes, 30 * 86_400, more.pop("spill_s", 2.0)), clock, alarms)
    outbox.open()
    config = UplinkConfig(
        address, f"edge/v1/default/{name}/", name, "sink", more.pop("backlog_per_s", 200.0), 1.0,
        **{"silence_s": 3.0, "resend_s": 3.0, **more},
    )  # fmt: skip
    uplink = Uplink(outbox, alarms, config, NodePresence(name, outbox.boot_id))
    uplink.start()
    return TrialNode(outbox, uplink, alarms, clock)


def sample_of(values: list[float], total: float) -> Sample:
    """One interval's metrics of the usual size, with these latencies."""
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    gauges: dict[Any, list[float]] = {(f"edge_gauge_{n}", ()): [float(n)] * 3 for n in range(15)}
    counters: dict[Any, float] = {(f"edge_counter_{n}", (("kind", "x"),)): total for n in range(10)}
    return Sample(0, counters, gauges, {("gen_ai.server.time_to_first_token", ()): histogram})


def main(config: dict[str, Any]) -> None:
    """Make telemetry until killed."""
    quiet = []
    signal.signal(signal.SIGUSR1, lambda *_: quiet.append(True))
    journal = os.open(config["journal"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    address = BrokerAddress(
        config["url"],
        config["name"],
        ca_file=Path(config["ca"]),
        cert_file=Path(config["pem"]),
        key_file=Path(config["pem"]),
    )
    node = trial_node(Path(config["directory"]), config["name"], address, config["cap_bytes"], wall_s=config["wall_s"])
    draw, turn = random.Random(), 0
    while not quiet:
        turn += 1
        node.clock.pass_s(INTERVAL_S)
        if draw.random() < config["event_share"]:
            uid = f"{node.outbox.boot_id}-{turn}"
            record = node.outbox.append_event("trial", {"uid": uid})
            os.write(journal, f"event {record.boot_id} {record.seq} {uid}\n".encode())
        record = node.outbox.append_metrics(sample_of([draw.lognormvariate(-3, 1)], turn), INTERVAL_S * S)
        os.write(journal, f"metrics {record.boot_id} {record.seq} -\n".encode())
        node.outbox.tick()
        time.sleep(config["turn_s"])
    while node.outbox.pending():
        node.outbox.tick()
        time.sleep(0.1)
    node.uplink.stop(5)
    node.outbox.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
