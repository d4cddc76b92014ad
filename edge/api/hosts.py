"""What a node that asks for no API key takes from web pages: nothing. Any page may send requests to 127.0.0.1.

Browsers keep the page of one site from reading answers of another, and know sites by their names. So a page whose owner lets
its name lead to 127.0.0.1 is the node's own page to them (DNS rebinding). But the request then has that name in `Host`: a
node that answers only to names which nobody else can give away is safe. See docs/adr/0021-hosts.md.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from starlette.datastructures import Headers

from edge.api.bodies import media_type

ANY = "*"
_SENT_UNASKED = frozenset({"", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain"})
"""Types of bodies that a page may send anywhere without the other side being asked first (Fetch, "CORS-safelisted")."""


@dataclass(frozen=True, slots=True)
class HostNames:
    """The names that a node goes by: `bound` is the address it listens on as the settings have it."""

    bound: str
    allowed: tuple[str, ...] = ()

    def include(self, header: str | None, machine: str) -> bool:
        """Whether a request with this `Host` is for a node on the host named `machine`. Clients before HTTP/1.1 have none, and
        addresses belong to nobody's name: no browser sends them for a name."""
        if ANY in self.allowed or not header:
            return True
        host = host_of(header)
        if not host or host == "localhost" or host.endswith(".localhost") or _is_address(host):
            return True
        short = machine.lower().partition(".")[0]
        own = {machine.lower(), short, f"{short}.local", self.bound.lower(), *map(str.lower, self.allowed)}
        return host in own


def host_of(header: str) -> str:
    """The name or address in a `Host` header, without port, brackets and the root's dot, in small letters."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].removesuffix(".").lower()


def _is_address(host: str) -> bool:
    if host.rpartition(".")[2].isdecimal():  # also 127.1: no name ends in a number (URL standard, "ends in a number")
        return True
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def sent_unasked(headers: Headers) -> bool:
    """Whether a page of any other site may have sent this body. It reads no answer, but the node would work for it."""
    return "origin" in headers and media_type(headers) in _SENT_UNASKED
