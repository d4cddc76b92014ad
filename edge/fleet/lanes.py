"""Connections to one upstream, each with a client of its own.

httpx's pool looks at every connection for every request, before and after it: with a hundred answers under way that alone took
two thirds of the front's time. So each request takes a lane, the one used last, and a lane is a pool of one connection. An
upstream that speaks HTTP/2 needs one lane only.
"""

from __future__ import annotations

import ssl

import httpx

from edge import __version__
from edge.errors import ConfigurationError
from edge.fleet.upstreams import Upstream

_KEEP_S = 60.0
_HTTP2_STREAMS = 100
"""What a server must allow at least, as a rule (RFC 9113, 6.5.2)."""


class Lanes:
    """Owner of an upstream's connections."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._trust = _trust(upstream)
        self._headers = {"user-agent": f"edge/{__version__}", **_credentials(upstream)}
        self._free: list[httpx.AsyncClient] = []
        self._all: list[httpx.AsyncClient] = []
        self._shared: httpx.AsyncClient | None = None
        self.in_use = 0

    @property
    def full(self) -> bool:
        """No more requests at one time."""
        return self.in_use >= self._upstream.max_in_flight

    def take(self) -> httpx.AsyncClient:
        """A client for one request. Give it back."""
        self.in_use += 1
        if self._shared is not None and self.in_use <= _HTTP2_STREAMS:
            return self._shared
        if self._free:
            return self._free.pop()
        client = self._new()
        self._all.append(client)
        return client

    def give_back(self, client: httpx.AsyncClient, version: str = "") -> None:
        """The request is over, answered in this version of HTTP."""
        self.in_use -= 1
        if client is self._shared:
            return
        if version == "HTTP/2" and self._shared is None:
            self._shared = client
        else:
            self._free.append(client)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._all:
            await client.aclose()

    def _new(self) -> httpx.AsyncClient:
        upstream = self._upstream
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_S)
        transport = httpx.AsyncHTTPTransport(
            verify=self._trust, http2=True, limits=limits, proxy=upstream.proxy, trust_env=False
        )
        timeout = httpx.Timeout(upstream.idle_timeout_s, connect=upstream.connect_timeout_s)
        return httpx.AsyncClient(
            base_url=upstream.url, headers=self._headers, transport=transport, timeout=timeout, trust_env=False
        )


def _trust(upstream: Upstream) -> ssl.SSLContext:
    if not upstream.url.startswith("https://"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used, and the system's takes long to load
    try:
        context = ssl.create_default_context(cafile=str(upstream.ca_file) if upstream.ca_file else None)
        if upstream.cert_file is not None:
            context.load_cert_chain(upstream.cert_file, upstream.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"upstream {upstream.name!r}: its certificate files cannot be used: {error}") from None
    return context


def _credentials(upstream: Upstream) -> dict[str, str]:
    if upstream.api_key_file is None:
        return {}
    key = upstream.api_key_file.read_text("utf-8").strip()
    if not key or not key.isprintable() or not key.isascii():
        raise ConfigurationError(f"upstream {upstream.name!r}: {upstream.api_key_file} holds no key")
    return {"authorization": f"Bearer {key}"}
