"""Connections to one upstream, each with a client of its own.

httpx's pool looks at every connection for every request, before and after it: with a hundred answers under way that alone took
two thirds of the front's time. So each request takes a lane, the one used last, and a lane is a pool of one connection. One
answer a connection, over HTTP/2 too: on a shared one, answers that were given up would use up its window (nobody acknowledges
what they go on sending), and a connection that is closed takes all of them along.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections import deque

import httpx

from edge import __version__
from edge.errors import ConfigurationError
from edge.fleet.upstreams import Upstream

_KEEP_S = 60.0


class Lanes:
    """Owner of an upstream's connections."""

    def __init__(self, upstream: Upstream) -> None:
        """Raises ConfigurationError if the upstream's files cannot be used."""
        self._upstream = upstream
        self._files = _files(upstream)
        self._trust, self._headers = _trust(upstream), _headers(upstream)
        self._free: deque[tuple[httpx.AsyncClient, float]] = deque()
        """With the time since when each is free, the longest first."""
        self._current: set[httpx.AsyncClient] = set()
        """Those that show the certificate and the key that there are now."""
        self._spent: list[httpx.AsyncClient] = []
        """To be closed."""
        self.in_use = 0

    @property
    def full(self) -> bool:
        """No more requests at one time."""
        return self.in_use >= self._upstream.max_in_flight

    def take(self) -> httpx.AsyncClient:
        """A client for one request. Give it back. Raises ConfigurationError if the upstream's address or proxy is none."""
        self._look()
        client = self._free.pop()[0] if self._free else self._new()
        self.in_use += 1
        return client

    async def give_back(self, client: httpx.AsyncClient, *, clean: bool = True) -> None:
        """The request is over. Not `clean`: its answer was not read to the end, so the connection is of no more use."""
        self.in_use -= 1
        now_s = time.monotonic()
        if clean and client in self._current:
            self._free.append((client, now_s))
        else:
            self._spent.append(client)
        while self._free and now_s - self._free[0][1] > _KEEP_S:
            self._spent.append(self._free.popleft()[0])
        await self._close_spent()

    async def close(self) -> None:
        """Close all connections that are free."""
        self._spent += [client for client, _ in self._free]
        self._free.clear()
        await self._close_spent()

    async def _close_spent(self) -> None:
        while self._spent:
            client = self._spent.pop()
            self._current.discard(client)
            await client.aclose()

    def _look(self) -> None:
        """Certificate and key may have been renewed. A client that is there shows the old ones for ever, with each connection
        that it opens."""
        files = _files(self._upstream)
        if files == self._files:
            return
        with contextlib.suppress(ConfigurationError):  # in the middle of the change; the next one looks again
            self._trust, self._headers = _trust(self._upstream), _headers(self._upstream)
            self._files = files
            self._spent += [client for client, _ in self._free]
            self._free.clear()
            self._current.clear()

    def _new(self) -> httpx.AsyncClient:
        upstream = self._upstream
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_S)
        timeout = httpx.Timeout(upstream.idle_timeout_s, connect=upstream.connect_timeout_s)
        try:
            transport = httpx.AsyncHTTPTransport(
                verify=self._trust, http2=True, limits=limits, proxy=upstream.proxy, trust_env=False
            )
            client = httpx.AsyncClient(
                base_url=upstream.url, headers=self._headers, transport=transport, timeout=timeout, trust_env=False
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:
            raise ConfigurationError(f"its address or proxy cannot be used: {error}") from None
        self._current.add(client)
        return client


def _files(upstream: Upstream) -> tuple[tuple[int, int, int], ...]:
    """What its files are now: two files of one name differ in it."""
    found = []
    for path in (upstream.ca_file, upstream.cert_file, upstream.key_file, upstream.api_key_file):
        try:
            stat = path.stat() if path is not None else None
        except OSError:
            stat = None
        found.append((stat.st_dev, stat.st_ino, stat.st_mtime_ns) if stat is not None else (0, 0, 0))
    return tuple(found)


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


def _headers(upstream: Upstream) -> dict[str, str]:
    always = {"user-agent": f"edge/{__version__}", "accept-encoding": "identity"}
    if upstream.api_key_file is None:
        return always
    try:
        key = upstream.api_key_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError(
            f"upstream {upstream.name!r}: {upstream.api_key_file} cannot be read: {said}"
        ) from None
    if not key or not key.isprintable() or not key.isascii():
        raise ConfigurationError(f"upstream {upstream.name!r}: {upstream.api_key_file} holds no key")
    return {**always, "authorization": f"Bearer {key}"}
