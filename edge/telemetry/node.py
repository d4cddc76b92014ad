"""A node's telemetry as a whole: built from the settings, started, fed, stopped."""

from __future__ import annotations

import contextlib
import logging
import platform
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from edge import __version__
from edge.logs import listen
from edge.machine import processor, usable_cores
from edge.settings import MIB, Mqtt
from edge.telemetry.alarms import Alarms
from edge.telemetry.clock import Clock, SystemClock
from edge.telemetry.collector import EventHandler, Latencies, RequestTrace
from edge.telemetry.commands import Action, CommandDesk, read_public_keys
from edge.telemetry.mqtt import BrokerAddress, dates_count
from edge.telemetry.outbox import Outbox, OutboxLimits, OutboxStats
from edge.telemetry.records import Sample
from edge.telemetry.session import UplinkConfig
from edge.telemetry.stamp import Stamp
from edge.telemetry.uplink import Uplink

log = logging.getLogger(__name__)

_TICK_S = 1.0
_STATS_S = 10.0
_MOST_QUEUED = 10_000
_GOODBYE_S = 3.0
_KEEPS = "what is told is kept, and sent when the node has its identity again"
_FEW = 100
"""With more than that to send a stop does not wait for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node's telemetry comes from and goes to."""

    config: UplinkConfig
    limits: OutboxLimits
    directory: Path

    @property
    def topic(self) -> str:
        """The node's topics without the last slash; commands are signed for it."""
        return self.config.prefix.rstrip("/")


def node_name(mqtt: Mqtt) -> str:
    """What the node is called wherever it tells of itself: as its fleet or its settings say, else the machine's host name."""
    return mqtt.node or socket.gethostname().partition(".")[0] or "node"


def place_of(mqtt: Mqtt, home: Path) -> Place:
    """Of the settings; `mqtt.url` may be empty for who only looks at the outbox."""
    node = node_name(mqtt)
    prefix = mqtt.prefix.replace("{group}", mqtt.group).replace("{node}", node)

    def file(path: Path | None) -> Path | None:
        return None if path is None else home / path

    address = BrokerAddress(
        url=mqtt.url,
        client_id=f"edge/{mqtt.group}/{node}",  # a name has no slash, so no two nodes have one id
        username=mqtt.username or (node if mqtt.password_file is not None else ""),
        password_file=file(mqtt.password_file),
        ca_file=file(mqtt.ca_file),
        cert_file=file(mqtt.cert_file),
        key_file=file(mqtt.key_file),
        version_5=mqtt.protocol == "5",
    )
    config = UplinkConfig(address, prefix, node, mqtt.ack, mqtt.backlog_per_s, mqtt.backoff_max_s)
    limits = OutboxLimits(mqtt.outbox_mib * MIB, mqtt.outbox_days * 86_400, mqtt.spill_s)
    return Place(config, limits, home / "outbox")


def _with_dates(place: Place, check_dates: Callable[[], bool]) -> Place:
    config = replace(place.config, address=replace(place.config.address, check_dates=check_dates))
    return replace(place, config=config)


class NodePresence:
    """What is said of the node at the begin of each session. Any thread may change it."""

    def __init__(self, node: str, boot_id: str) -> None:
        self._node, self._boot_id = node, boot_id
        self._began = time.time()
        self._draining = False
        self._facts: dict[str, Any] = {}
        self.version = 0

    def change(self, *, draining: bool | None = None, facts: Mapping[str, Any] | None = None) -> None:
        """Something is different now, or (without arguments) is to be told once more."""
        self._draining = self._draining if draining is None else draining
        self._facts = {**self._facts, **(facts or {})}
        self.version += 1

    def state(self, *, online: bool) -> bytes:
        """For up/state."""
        word = ("draining" if self._draining else "online") if online else "offline"
        return orjson.dumps({"node": self._node, "boot_id": self._boot_id, "state": word})

    def info(self) -> bytes:
        """For up/info."""
        machine = {
            "processor": processor(),
            "cores": usable_cores(),
            "system": f"{platform.system()} {platform.machine()}",
        }
        about = {"node": self._node, "boot_id": self._boot_id, "version": __version__, "began": self._began}
        return orjson.dumps({**about, **machine, **self._facts})


@dataclass(frozen=True, slots=True)
class _Event:
    name: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Measured:
    sample: Sample
    span_ns: int
    stamp: Stamp


class Telemetry:
    """Owner of outbox, uplink and the thread that writes. `tell` and `measured` never block: they are called on the event
    loop."""

    def __init__(
        self,
        mqtt: Mqtt,
        home: Path,
        clock: Clock | None = None,
        check_dates: Callable[[], bool] = dates_count,
        *,
        sends: bool = True,
    ) -> None:
        """`check_dates` as in `BrokerAddress`; `sends` false: what is told is kept for a later start. Raises ConfigurationError
        if the file of command keys is no such file."""
        self.alarms = Alarms()
        self.interval_s = mqtt.interval_s
        self.latencies = Latencies()
        self.trace = RequestTrace(self.tell)
        self._clock: Clock = clock or SystemClock(trusted=mqtt.trust_clock)
        self._place = _with_dates(place_of(mqtt, home), check_dates)
        self._sends = sends
        self._keys = [] if mqtt.command_keys_file is None else read_public_keys(home / mqtt.command_keys_file)
        self._outbox = Outbox(self._place.directory, self._place.limits, self._clock, self.alarms)
        self.presence = NodePresence(self._place.config.node, self._outbox.boot_id)
        began = self._clock.now()
        self.began_ns, self._began_mono_ns = began.wall_ns, began.mono_ns
        self._queue: queue.Queue[_Event | _Measured | None] = queue.Queue(_MOST_QUEUED)
        self._overflowed = 0
        self._uplink: Uplink | None = None
        self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._handler = EventHandler(self.tell)
        self._stats: OutboxStats | None = None
        self._last_stamp = self._clock.now()

    @property
    def command_keys(self) -> int:
        """How many keys may sign commands."""
        return len(self._keys)

    def start(self, actions: Mapping[str, Action]) -> None:
        """Open the outbox and begin to send. Raises ConfigurationError if another node has the outbox."""
        self.alarms.on_change = self.tell
        self._outbox.open()
        listen(self._handler)
        self.tell("start", {"version": __version__})
        self._stats = self._outbox.stats()
        self._writer.start()
        if self._sends:
            desk = CommandDesk(self._keys, self._place.topic, self._outbox, actions, self._time, self.tell)
            self._uplink = Uplink(self._outbox, self.alarms, self._place.config, self.presence, desk.handle)
            self._uplink.start()

    def stop(self) -> None:
        """Tell that the node stops, give that a moment to get away, and put the rest on disk."""
        logging.getLogger().removeHandler(self._handler)
        if self._writer.ident is None:
            return
        self.tell("stop", {})
        with contextlib.suppress(queue.Full):  # the disk hangs, and the writer's thread with it
            self._queue.put(None, timeout=_GOODBYE_S)
            self._writer.join(_GOODBYE_S)
        if self._uplink is not None:
            self._say_goodbye(self._uplink)
        self._outbox.close()

    def _say_goodbye(self, uplink: Uplink) -> None:
        deadline_s = time.monotonic() + _GOODBYE_S
        while uplink.connected and 0 < self._outbox.pending() < _FEW and time.monotonic() < deadline_s:
            time.sleep(0.05)
        uplink.stop(_GOODBYE_S)

    def connect_anew(self) -> None:
        """There are other certificates: end the session with the broker and begin another one with them."""
        if self._uplink is not None:
            self._uplink.begin_anew()

    def _time(self) -> tuple[float, bool]:
        now = self._clock.now()
        return now.wall_ns / 1e9, now.synced

    def tell(self, name: str, fields: dict[str, Any]) -> None:
        """An event. It is on disk a moment later."""
        self._put(_Event(name, fields))

    def measured(self, sample: Sample) -> None:
        """The metrics of the interval that ends now."""
        now, last = self._clock.now(), self._last_stamp
        self._last_stamp = now
        sample = replace(sample, began_mono_ns=self._began_mono_ns)
        self._put(_Measured(sample, max(1, now.mono_ns - last.mono_ns), now))

    def _put(self, item: _Event | _Measured) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:  # the disk hangs
            self._overflowed += 1

    def account(self) -> dict[str, Any]:
        """For /edge/v1/load: how the outbox and the uplink are. At most some seconds old."""
        uplink, stats = self._uplink, self._stats
        return {
            **({} if stats is None else asdict(stats)),
            "connected": uplink is not None and uplink.connected,
            "reason": uplink.last_failure if uplink is not None else "" if self._sends else _KEEPS,
            "broker": self._place.config.address.url,
        }

    # --- the writer's thread ------------------------------------------------------------------------------------------

    def _write(self) -> None:
        tick_s = stats_s = 0.0
        going = True
        while going:
            try:
                item = self._queue.get(timeout=_TICK_S)
                going = item is not None
                if item is not None:
                    self._append(item)
            except queue.Empty:
                pass
            except Exception as error:
                log.error("telemetry failed", extra={"event": "bug"}, exc_info=error)
            now_s = time.monotonic()
            if now_s - tick_s >= _TICK_S:
                tick_s = now_s
                self._guarded(self._outbox.tick)
            if now_s - stats_s >= _STATS_S:
                stats_s = now_s
                self._guarded(self._look)

    def _append(self, item: _Event | _Measured) -> None:
        if isinstance(item, _Event):
            self._outbox.append_event(item.name, item.fields)
        else:
            self._outbox.append_metrics(item.sample, item.span_ns, item.stamp)
        if self._overflowed:
            count, self._overflowed = self._overflowed, 0
            self._outbox.append_event("telemetry_overflow", {"lost": count})

    def _look(self) -> None:
        self._stats = self._outbox.stats()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            log.error("telemetry failed", extra={"event": "bug"}, exc_info=error)
