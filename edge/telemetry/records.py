"""Records, and how they look on the wire. Pure.

Metrics become an OTLP/JSON `ExportMetricsServiceRequest` (opentelemetry-proto 1.x, JSON encoding: lowerCamelCase names, 64-bit
integers as strings), which any OTLP endpoint takes as it is. Events and gaps are plain JSON objects of our own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

from edge.telemetry.histogram import Histogram
from edge.telemetry.ranges import MOST_SPANS, Ranges
from edge.telemetry.stamp import Stamp, retimed

Kind = Literal["metrics", "event", "gap"]
Labels = tuple[tuple[str, str], ...]
TOPICS: dict[Kind, str] = {"metrics": "up/metrics", "event": "up/events", "gap": "up/events"}
_DELTA, _CUMULATIVE = 1, 2
_SCOPE = {"name": "edge.telemetry"}
_ROW_BYTES = 120
LONGEST_TEXT = 400
LARGEST_BYTES = 8 << 20
"""Of a payload that is read."""
_LONGEST_NAME = 200
_CLOCK_WRONG_NS = 1_000_000_000
_WHOLE_BITS = 63
"""What SQLite holds."""


@dataclass(frozen=True, slots=True)
class Record:
    """One thing to be told, under the key (boot_id, seq). `stamp` is when it happened, or when the interval ended that it is
    about."""

    boot_id: str
    seq: int
    kind: Kind
    stamp: Stamp
    body: dict[str, Any]
    span_ns: int = 0
    """How long that interval was; 0 for events."""
    covers: Ranges = field(default_factory=Ranges)
    """Other sequence numbers of that boot whose records were merged into this one."""

    @property
    def first(self) -> int:
        """The lowest sequence number that it stands for."""
        return min([self.seq, *(span[0] for span in self.covers)])

    @property
    def size_bytes(self) -> int:
        """About what it takes in the outbox."""
        return len(orjson.dumps(self.body)) + len(str(self.covers)) + _ROW_BYTES


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured over one interval. Keys are (name, labels).

    `counters` are totals since the process began at `began_ns` (wall time); `gauges` are [last, least, greatest];
    `histograms` hold what the interval added.
    """

    began_ns: int
    counters: dict[tuple[str, Labels], float]
    gauges: dict[tuple[str, Labels], list[float]]
    histograms: dict[tuple[str, Labels], Histogram]
    began_mono_ns: int | None = None
    """The same moment by the machine's monotonic clock, where it is known: the wall clock may have been wrong by then."""

    def packed(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "t": self.began_ns,
            **({} if self.began_mono_ns is None else {"m": self.began_mono_ns}),
            "c": [[name, labels, value] for (name, labels), value in self.counters.items()],
            "g": [[name, labels, values] for (name, labels), values in self.gauges.items()],
            "h": [[name, labels, histogram.packed()] for (name, labels), histogram in self.histograms.items()],
        }

    @classmethod
    def unpacked(cls, body: dict[str, Any]) -> Sample:
        """Of what `packed` made."""
        return cls(
            body["t"],
            {_key(name, labels): value for name, labels, value in body["c"]},
            {_key(name, labels): values for name, labels, values in body["g"]},
            {_key(name, labels): Histogram.unpacked(value) for name, labels, value in body["h"]},
            body.get("m"),
        )


def _key(name: str, labels: list[list[str]]) -> tuple[str, Labels]:
    return name, tuple((label[0], label[1]) for label in labels)


def set_right(record: Record, offsets_ns: dict[str, int]) -> Record:
    """Its times by what was learned of the clock since: `offsets_ns` as `retimed` takes it. When its counters began is the same
    for all records of a boot, so it is moved only where the clock was wrong by then, and then by the same for all."""
    record = replace(record, stamp=retimed(record.stamp, offsets_ns))
    mono_ns, offset_ns = record.body.get("m"), offsets_ns.get(record.stamp.kernel_boot)
    if record.kind != "metrics" or mono_ns is None or offset_ns is None:
        return record
    began_ns = mono_ns + offset_ns
    if abs(began_ns - record.body["t"]) <= _CLOCK_WRONG_NS:
        return record
    return replace(record, body={**record.body, "t": began_ns})


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a payload says about its sender at the time of sending."""

    node: str
    floor: int
    """Nothing of the record's boot below this number is still to come: a sink that is new need not wait for it."""
    historical: bool
    """Sent from the backlog, not as it happened."""


def payload(record: Record, envelope: Envelope) -> bytes:
    """What is published for a record."""
    document = _metrics(record, envelope) if record.kind == "metrics" else _event(record, envelope)
    return orjson.dumps(document, option=orjson.OPT_NON_STR_KEYS)


def _event(record: Record, envelope: Envelope) -> dict[str, Any]:
    return {
        "node": envelope.node,
        "boot_id": record.boot_id,
        "seq": record.seq,
        "floor": envelope.floor,
        "hist": envelope.historical,
        "clock": _clock(record.stamp),
        "time_unix_nano": str(record.stamp.wall_ns),
        "time": datetime.fromtimestamp(record.stamp.wall_ns / 1e9, UTC).isoformat(timespec="milliseconds"),
        "kind": record.kind,
        **({"covers": str(record.covers)} if record.covers else {}),
        **record.body,
    }


def _metrics(record: Record, envelope: Envelope) -> dict[str, Any]:
    resource = [
        _attribute("service.name", "edge"),
        _attribute("service.instance.id", record.boot_id),
        _attribute("edge.node", envelope.node),
        _attribute("edge.boot_id", record.boot_id),
        _attribute("edge.seq", record.seq),
        _attribute("edge.floor", envelope.floor),
        _attribute("edge.hist", envelope.historical),
        _attribute("edge.clock", _clock(record.stamp)),
    ]
    if record.covers:
        resource.append(_attribute("edge.covers", str(record.covers)))
    scope = {"scope": _SCOPE, "metrics": _families(record)}
    return {"resourceMetrics": [{"resource": {"attributes": resource}, "scopeMetrics": [scope]}]}


def _families(record: Record) -> list[dict[str, Any]]:
    sample, end_ns = Sample.unpacked(record.body), record.stamp.wall_ns
    end, start = {"timeUnixNano": str(end_ns)}, {"startTimeUnixNano": str(end_ns - record.span_ns)}
    begun = {"startTimeUnixNano": str(min(sample.began_ns, end_ns))}
    families: dict[str, dict[str, Any]] = {}

    def points(name: str, shape: str, **rest: Any) -> list[dict[str, Any]]:
        family = families.setdefault(name, {"name": name, **rest.pop("head", {}), shape: {"dataPoints": [], **rest}})
        return family[shape]["dataPoints"]  # type: ignore[no-any-return]

    for (name, labels), value in sample.counters.items():
        found = points(name, "sum", aggregationTemporality=_CUMULATIVE, isMonotonic=True)
        found.append({"attributes": _attributes(labels), **begun, **end, "asDouble": value})
    for (name, labels), (last, least, greatest) in sample.gauges.items():
        points(name, "gauge").append({"attributes": _attributes(labels), **end, "asDouble": last})
        if record.covers:
            points(f"{name}.min", "gauge").append({"attributes": _attributes(labels), **end, "asDouble": least})
            points(f"{name}.max", "gauge").append({"attributes": _attributes(labels), **end, "asDouble": greatest})
    for (name, labels), histogram in sample.histograms.items():
        found = points(name, "exponentialHistogram", aggregationTemporality=_DELTA, head={"unit": "s"})
        found.append({"attributes": _attributes(labels), **start, **end, **histogram.otlp()})
    return list(families.values())


def _attributes(labels: Labels) -> list[dict[str, Any]]:
    return [_attribute(name, value) for name, value in labels]


def _attribute(name: str, value: str | int | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": name, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": name, "value": {"intValue": str(value)}}
    return {"key": name, "value": {"stringValue": value}}


def _clock(stamp: Stamp) -> str:
    return "synced" if stamp.synced else "unsynced"


# --- bodies ----------------------------------------------------------------------------------------------------------


def event_body(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The body of an event: flat fields only, texts bounded."""
    return {"event": name, "fields": {str(key): _plain(value) for key, value in fields.items()}}


def _plain(value: Any) -> Any:
    """What JSON can hold: a record that cannot be written would stand before all others for ever. File names need be no text."""
    if (
        value is None
        or isinstance(value, bool | float)
        or (isinstance(value, int) and value.bit_length() <= _WHOLE_BITS)
    ):
        return value
    return str(value)[:LONGEST_TEXT].encode("utf-8", "replace").decode()


def gap_body(boot_id: str, lost: Ranges, reason: str, *, open_ended: bool = False) -> dict[str, Any]:
    """The body of a gap: records of `boot_id` that will not come, or came already. `open_ended`: and all after them."""
    spans = list(lost)
    last = None if open_ended else spans[-1][1]
    return {"event": "gap", "of": boot_id, "from": spans[0][0], "to": last, "lost": str(lost), "reason": reason}


# --- read again, by a sink -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """What a sink needs to know of a payload."""

    node: str
    boot_id: str
    seq: int
    floor: int
    kind: Kind
    time_ns: int
    covers: Ranges
    gap: tuple[str, Ranges, bool, str] | None
    """(boot, lost, whether all after them too, reason) of a gap."""


def read_payload(data: bytes) -> Received:
    """Raises ValueError if that is no payload of ours, whatever else it is: it comes from outside."""
    if len(data) > LARGEST_BYTES:
        raise ValueError(f"it has more than {LARGEST_BYTES} bytes")
    try:
        document = orjson.loads(data)
        return _read_metrics(document) if "resourceMetrics" in document else _read_event(document)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"a field is missing or of the wrong kind: {type(error).__name__} {error}") from None


def _whole(value: Any) -> int:
    """Raises ValueError for one that no database takes."""
    found = int(value)
    if found.bit_length() > _WHOLE_BITS:
        raise ValueError("a number has more than 63 bits")
    return found


def _name(value: Any) -> str:
    """Raises ValueError for one that is none, or too long to be kept with each record."""
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError(f"a name is no text, or has more than {_LONGEST_NAME} letters")
    return value


def _ranges(text: Any) -> Ranges:
    if text.count(",") >= MOST_SPANS:
        raise ValueError(f"it names more than {MOST_SPANS} ranges")
    found = Ranges.parse(text)
    for first, last in found:
        _whole(first)
        _whole(last)
    return found


def _read_event(document: dict[str, Any]) -> Received:
    gap, kind = None, document["kind"]
    if kind not in ("event", "gap"):
        raise ValueError(f"unknown kind {str(kind)[:40]!r}")
    if kind == "gap":
        reason = str(document["reason"])[:LONGEST_TEXT]
        gap = (_name(document["of"]), _ranges(document["lost"]), document["to"] is None, reason)
    return Received(
        _name(document["node"]), _name(document["boot_id"]), _whole(document["seq"]), _whole(document["floor"]), kind,
        _whole(document["time_unix_nano"]), _ranges(document.get("covers", "")), gap,
    )  # fmt: skip


def _read_metrics(document: dict[str, Any]) -> Received:
    resource = document["resourceMetrics"][0]
    found = {a["key"]: next(iter(a["value"].values())) for a in resource["resource"]["attributes"]}
    times = [
        _whole(point["timeUnixNano"])
        for metric in resource["scopeMetrics"][0]["metrics"]
        for shape in ("sum", "gauge", "exponentialHistogram")
        for point in metric.get(shape, {}).get("dataPoints", ())
    ]
    return Received(
        _name(found["edge.node"]), _name(found["edge.boot_id"]), _whole(found["edge.seq"]), _whole(found["edge.floor"]),
        "metrics", max(times, default=0), _ranges(found.get("edge.covers", "")), None,
    )  # fmt: skip
