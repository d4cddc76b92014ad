"""A request's trace (W3C Trace Context): taken from who sent it, handed to the fleet, named in the answer.

A node that sends no traces of its own hands on what it got, unchanged, as the recommendation wants of such. Who does send them
(`edge.otlp.traces`) stands behind the same two protocols. No trace ever holds what was said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol

from starlette.datastructures import Headers

from edge.admission.decisions import Entry
from edge.api.job import Job

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_MOST_STATE = 512


@dataclass(frozen=True, slots=True)
class Parent:
    """Whose part a request is: the fields of `traceparent`, and `tracestate` as it came."""

    trace_id: str
    span_id: str
    flags: int
    state: str = ""

    @property
    def header(self) -> str:
        """As `traceparent`."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"


def parent_of(headers: Headers) -> Parent | None:
    """What a request says of its trace; None if nothing, or nothing valid."""
    given = headers.getlist("traceparent")
    found = _TRACEPARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    state = ",".join(headers.getlist("tracestate"))
    return Parent(trace_id, span_id, int(flags, 16), state if len(state) <= _MOST_STATE else "")


class RequestTrace(Protocol):
    """Of one request. `entry` and `job` are set as soon as there are some; they are read at the end."""

    entry: Entry | None
    job: Job | None

    def forwarded(self) -> dict[str, str]:
        """Headers for the request to the fleet that is made now."""
        ...

    def answered(self) -> dict[str, str]:
        """Headers for the answer."""
        ...

    def ended(self, status: int | None) -> None:
        """The answer is out, or the client gone; `status` None: nothing was answered."""
        ...


class Tracing(Protocol):
    """Where traces begin."""

    def begin(self, path: str, headers: Headers, at_s: float) -> RequestTrace:
        """A request came. `at_s`: monotonic."""
        ...


@dataclass(slots=True)
class PassedOn:
    """A trace of others, in which this node does not appear."""

    parent: Parent | None
    entry: Entry | None = field(default=None)
    job: Job | None = field(default=None)

    def forwarded(self) -> dict[str, str]:
        """What came."""
        return headers_of(self.parent) if self.parent is not None else {}

    def answered(self) -> dict[str, str]:
        """Nothing: there is no span of this node."""
        return {}

    def ended(self, status: int | None) -> None:
        """Nothing to do."""


class Untraced:
    """Sends no traces."""

    def begin(self, path: str, headers: Headers, at_s: float) -> RequestTrace:
        """Only looks at the headers."""
        return PassedOn(parent_of(headers))


def headers_of(parent: Parent) -> dict[str, str]:
    """As they travel."""
    state = {"tracestate": parent.state} if parent.state else {}
    return {"traceparent": parent.header, **state}
