"""One session with the broker: what was sent on it and what still has to be, live data first, and what comes back.

PUBACK is not delivery: a broker that crashes loses what it acknowledged. So a record leaves the outbox when a sink says that
it is
safe (`down/ack`), and what was sent and not acknowledged is sent again, oldest first, with growing patience. In the weaker mode
`puback` the broker's word suffices.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import orjson

from edge.telemetry.alarms import Alarms
from edge.telemetry.mqtt import (
    FAILURE,
    NOT_AUTHORIZED,
    BrokerAddress,
    Connection,
    ConnectionFailed,
    Handlers,
    Message,
    Will,
)
from edge.telemetry.outbox import Outbox
from edge.telemetry.pacing import Bucket, Patience, Window
from edge.telemetry.records import TOPICS, Envelope, Record, payload

log = logging.getLogger(__name__)

IN_FLIGHT = 10
_FOR_LIVE = 2
"""Places that the backlog leaves free, so that what happens now never waits behind it."""
_LEAST_WINDOW, _MOST_WINDOW, _TARGET_S = 8, 256, 1.0
"""Records of the backlog that may wait for the sink, and how long they should: what happens now waits behind them. Brokers
also drop
what a slow subscriber lets pile up (mosquitto: beyond 1,000)."""
_BATCH = 20
_IDLE_S, _BUSY_S = 0.2, 0.02
_REFUSED_S = 60.0
_PAUSE_S = 5.0
_MQTT_HEAD_BYTES = 64
_LONGEST_RESEND_S = 300.0
_LASTS_S = 10.0
"""A session that holds for so long is a success."""


@dataclass(frozen=True, slots=True)
class UplinkConfig:
    """How to speak. `prefix` ends in a slash."""

    address: BrokerAddress
    prefix: str
    node: str
    ack: Literal["sink", "puback"]
    backlog_per_s: float
    backoff_max_s: float
    silence_s: float = 45.0
    """A session in which the broker acknowledges nothing for so long is given up: the link swallows what is sent."""
    resend_s: float = 15.0
    down_alarm_s: float = 300.0
    no_ack_alarm_s: float = 120.0


class Presence(Protocol):
    """What is said of the node itself at the begin of each session, and when it changes."""

    @property
    def version(self) -> int:
        """Another number whenever it changed."""
        ...

    def state(self, *, online: bool) -> bytes:
        """For up/state."""
        ...

    def info(self) -> bytes:
        """For up/info."""
        ...


Answerer = Callable[[str, bytes], "bytes | None"]
"""Carries out a command (id, payload). The answer to publish, None for silence."""


class Session:
    """One connection's life: what was sent on it, and what still has to be."""

    def __init__(
        self, outbox: Outbox, alarms: Alarms, config: UplinkConfig, presence: Presence, answer: Answerer | None
    ) -> None:
        self._outbox, self._alarms, self._config, self._presence = outbox, alarms, config, presence
        self._answer = answer
        self._connection = Connection(
            config.address,
            Handlers(self._arrived, self._published, self._subscription_refused),
            Will(self._topic("up/state"), presence.state(online=False)),
        )
        self._in_flight: dict[int, tuple[int, Record] | None] = {}
        """Published and not acknowledged by the broker, by packet number; None: state, info, an answer."""
        self._in_flight_since_s = 0.0
        self._outstanding: dict[int, tuple[str, int, float]] = {}
        """Sent and not acknowledged as asked for: (boot, seq, when) by id."""
        self._backlog: deque[tuple[int, Record]] = deque()
        self._live: deque[tuple[int, Record]] = deque()
        self._refused_until_s: dict[str, float] = {}
        self._paused_until_s = 0.0
        self._bucket = Bucket(config.backlog_per_s)
        self._window = Window(_LEAST_WINDOW, _MOST_WINDOW, _TARGET_S)
        self._patience = Patience(config.resend_s, _LONGEST_RESEND_S)
        self._progress_s = time.monotonic()
        self._told_version = -1
        self._deaf = False
        """A subscription was refused."""
        self._sweep()

    def _topic(self, rest: str) -> str:
        return self._config.prefix + rest

    def open(self) -> None:
        """Connect, listen, say who is there. Raises ConnectionFailed."""
        self._connection.open()
        self._connection.subscribe(self._topic("down/ack"), self._topic("down/cmd/+"))
        self._tell_presence()

    def run(self, stop: threading.Event, well: Callable[[], None], anew: threading.Event | None = None) -> None:
        """Until `stop` or `anew`; `well` is called once when it has lasted. Raises ConnectionFailed."""
        lasts_s: float | None = time.monotonic() + _LASTS_S
        while not stop.is_set() and not (anew is not None and anew.is_set()):
            if lasts_s is not None and time.monotonic() >= lasts_s:
                lasts_s = None
                well()
            if self._presence.version != self._told_version:
                self._tell_presence()
            busy = self._pump()
            self._connection.turn(_BUSY_S if busy else _IDLE_S)
            self._check(time.monotonic())

    def end(self, *, good: bool) -> None:
        """Close: with good-bye and the news that the node is gone, or as it is."""
        self._outbox.let_go()
        if not good:
            self._connection.abandon()
            return
        try:
            self._publish(self._topic("up/state"), self._presence.state(online=False), None, retain=True)
            deadline_s = time.monotonic() + 1.0
            while self._in_flight and time.monotonic() < deadline_s:
                self._connection.turn(0.05)
        except Exception as error:
            log.debug("no good-bye to the broker", extra={"event": "uplink_end", "reason": str(error)})
        self._connection.close()

    def _tell_presence(self) -> None:
        self._told_version = self._presence.version
        self._publish(self._topic("up/state"), self._presence.state(online=True), None, retain=True)
        self._publish(self._topic("up/info"), self._presence.info(), None, retain=True)

    # --- sending ------------------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        """Begin at the oldest record again. What comes after this moment is live."""
        self._generation = self._outbox.generation
        self._backlog_at, self._backlog_end = 0, self._outbox.newest
        self._live_at = self._backlog_end
        self._backlog.clear()
        self._live.clear()
        self._outstanding.clear()
        self._outbox.let_go()

    def _pump(self) -> bool:
        """Send what may be sent now: live data first. Returns whether there is more at once."""
        if self._generation != self._outbox.generation:
            self._sweep()
        now_s = time.monotonic()
        if now_s < self._paused_until_s:
            return False
        limit = min(IN_FLIGHT, self._connection.in_flight_limit)
        while len(self._in_flight) < limit and self._send_next(self._live, now_s, historical=False):
            pass
        room = max(1, limit - _FOR_LIVE)
        while len(self._in_flight) < room and len(self._outstanding) < self._window.size and self._more_backlog():
            if not self._bucket.take(now_s):
                break
            self._send_next(self._backlog, now_s, historical=True)
        return bool(self._in_flight or self._backlog or self._live)

    def _more_backlog(self) -> bool:
        if not self._backlog and self._backlog_at < self._backlog_end:
            found = [item for item in self._outbox.take(self._backlog_at, _BATCH) if item[0] <= self._backlog_end]
            self._backlog.extend(found)
            self._backlog_at = found[-1][0] if found else self._backlog_end
        return bool(self._backlog)

    def _send_next(self, queue: deque[tuple[int, Record]], now_s: float, *, historical: bool) -> bool:
        if not historical and not queue and self._outbox.newest > self._live_at:
            queue.extend(self._outbox.take(self._live_at, _BATCH))
            if queue:
                self._live_at = queue[-1][0]
        if not queue:
            return False
        row_id, record = queue.popleft()
        topic = self._topic(TOPICS[record.kind])
        if self._refused_until_s.get(topic, 0.0) > now_s:
            self._outbox.let_go(row_id)  # the next sweep comes to it again
            return True
        if self._is_in_flight(row_id, record):
            self._outstanding[row_id] = (record.boot_id, record.seq, now_s)
            return True
        try:
            data = payload(record, Envelope(self._config.node, self._outbox.floor(record.boot_id), historical))
        except (LookupError, TypeError, ValueError, AttributeError) as error:  # a bit has turned over on the disk
            log.error("a record makes no sense", extra={"event": "outbox_damaged", "reason": repr(error)})
            self._outbox.discard(row_id, record, "damage")
            return True
        if len(data) + len(topic) + _MQTT_HEAD_BYTES > self._connection.largest_bytes:
            self._outbox.discard(row_id, record, "too_large")
            return True
        self._patience.sent(now_s, outstanding=len(self._outstanding))
        self._outstanding[row_id] = (record.boot_id, record.seq, now_s)
        self._publish(topic, data, (row_id, record))
        return True

    def _is_in_flight(self, row_id: int, record: Record) -> bool:
        """As it is now: it may have taken others in since it was sent."""
        return any(item and item[0] == row_id and item[1].covers == record.covers for item in self._in_flight.values())

    def _publish(self, topic: str, data: bytes, item: tuple[int, Record] | None, *, retain: bool = False) -> None:
        if not self._in_flight:
            self._in_flight_since_s = time.monotonic()
        self._in_flight[self._connection.publish(topic, data, retain=retain)] = item

    def _check(self, now_s: float) -> None:
        """Bounds of patience. Raises ConnectionFailed."""
        if self._in_flight and now_s - self._in_flight_since_s > self._config.silence_s:
            raise ConnectionFailed(f"the broker acknowledged nothing for {self._config.silence_s:g} s")
        if any(until_s <= now_s for until_s in self._refused_until_s.values()):
            self._refused_until_s = {t: s for t, s in self._refused_until_s.items() if s > now_s}
            self._sweep()
        if not self._outstanding:
            self._progress_s = now_s
            return
        if self._config.ack == "sink":
            if self._patience.over(now_s):
                self._window.narrow(now_s)
                self._sweep()
            if now_s - self._progress_s > self._config.no_ack_alarm_s:
                self._alarms.set(
                    "no_acknowledgement",
                    "the broker takes what is sent, but no sink acknowledges it, so it is kept and sent again",
                    "see that a sink runs (edge fleet sink) and may write down/ack; or set mqtt.ack to puback",
                )

    # --- what comes back ----------------------------------------------------------------------------------------------

    def _published(self, number: int, code: int) -> None:
        item = self._in_flight.pop(number, None)
        now_s = self._in_flight_since_s = time.monotonic()
        if item is None:
            return
        row_id, record = item
        topic = self._topic(TOPICS[record.kind])
        if code >= FAILURE:
            self._outstanding.pop(row_id, None)
            self._outbox.let_go(row_id)
            self._refused(topic, code, now_s)
            return
        if not self._refused_until_s and not self._deaf:
            self._alarms.clear("uplink_refused")
        if self._config.ack == "puback":
            _, _, sent_s = self._outstanding.pop(row_id, ("", 0, now_s))
            self._window.acknowledged(sent_s, now_s)
            self._outbox.delivered(row_id, record)

    def _refused(self, topic: str, code: int, now_s: float) -> None:
        """The record is kept; the topic is tried again later."""
        self._refused_until_s[topic] = now_s + _REFUSED_S
        if code != NOT_AUTHORIZED:
            self._paused_until_s = now_s + _PAUSE_S
        why = "its access list does not allow it" if code == NOT_AUTHORIZED else f"reason code 0x{code:02x}"
        self._alarms.set(
            "uplink_refused",
            f"the broker refuses what is published to {topic} ({why}); it is kept and tried again",
            "allow this node to write there (docs/telemetry.md has an access list)",
        )

    def _subscription_refused(self, topic: str, code: int) -> None:
        self._alarms.set(
            "uplink_refused",
            f"the broker refuses the subscription to {topic} (reason code 0x{code:02x}): nothing can be acknowledged",
            "allow this node to read there (docs/telemetry.md has an access list)",
        )
        self._deaf = True

    def _arrived(self, message: Message) -> None:
        rest = message.topic.removeprefix(self._config.prefix)
        if rest == "down/ack":
            self._acknowledged(message.payload)
        elif rest.startswith("down/cmd/") and self._answer is not None:
            command_id = rest.removeprefix("down/cmd/")
            answer = self._answer(command_id, message.payload)
            if answer is not None:
                self._publish(self._topic(f"up/cmd/{command_id}"), answer, None)

    def _acknowledged(self, data: bytes) -> None:
        try:
            document = orjson.loads(data)
            boot_id, seq = document["boot_id"], document["seq"]
            if type(boot_id) is not str or type(seq) is not int:
                raise TypeError
        except (ValueError, KeyError, TypeError):
            log.warning("an acknowledgement makes no sense", extra={"event": "uplink_nonsense", "size": len(data)})
            return
        if self._config.ack != "sink" or not self._outbox.acknowledged(boot_id, seq):
            return
        settled = [i for i, (boot, number, _) in self._outstanding.items() if boot == boot_id and number <= seq]
        now_s = time.monotonic()
        for row_id in settled:
            _, _, sent_s = self._outstanding.pop(row_id)
            self._window.acknowledged(sent_s, now_s)
        if settled:
            self._progress_s = now_s
            self._patience.progress(self._progress_s)
            self._alarms.clear("no_acknowledgement")
