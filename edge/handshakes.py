"""TLS handshakes, bounded in time and number.

An HTTP server knows a connection only once its handshake is over. Until then neither its limits nor its timers hold: who opens
thousands and says nothing would take all memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

import uvloop

log = logging.getLogger(__name__)

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_S = 1.0


class HandshakeLoop(uvloop.Loop):
    """An event loop whose TLS servers bound their handshakes."""

    def __init__(self, timeout_s: float, most: int) -> None:
        super().__init__()
        self._timeout_s, self._most = timeout_s, most

    async def create_server(self, protocol_factory: Any, *given: Any, **options: Any) -> Any:
        """As ever; of one with TLS only the listening socket is taken."""
        context, listener = options.get("ssl"), options.get("sock")
        if context is None or listener is None:
            return await super().create_server(protocol_factory, *given, **options)
        return Handshakes(protocol_factory, listener, context, timeout_s=self._timeout_s, most=self._most)


class Handshakes:
    """Owner of the handshakes under way at one listener; for uvicorn it is a server. When there are too many the first of them is
    given up: whoever goes on with his takes the place of one that says nothing."""

    def __init__(
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        listener: socket.socket,
        context: ssl.SSLContext,
        *,
        timeout_s: float,
        most: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol_factory, self._context = protocol_factory, context
        self._timeout_s, self._most = timeout_s, most
        self._under_way: dict[asyncio.Task[None], None] = {}
        self._accepting = self._loop.create_task(self._accept(listener), name="tls-accept")

    def close(self) -> None:
        """Accept no more, and give up what is under way."""
        for task in (self._accepting, *self._under_way):
            task.cancel()

    async def wait_closed(self) -> None:
        """All of it has ended."""
        await asyncio.gather(self._accepting, *self._under_way, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        told = False
        while True:
            try:
                connection, _ = await self._loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    if not told:
                        fields = {"event": "accept_failed", "reason": error.strerror}
                        log.error("connections cannot be accepted; tried again each second", extra=fields)
                    told = True
                    await asyncio.sleep(_PAUSE_S)
                continue
            told = False
            if len(self._under_way) >= self._most:
                first = next(iter(self._under_way))
                del self._under_way[first]
                first.cancel()
            task = self._loop.create_task(self._shake_hands(connection), name="tls-handshake")
            self._under_way[task] = None
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.pop(task, None)

    async def _shake_hands(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # ssl.SSLError, TimeoutError: what clients do wrong is no news
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                self._protocol_factory, connection, ssl=self._context, ssl_handshake_timeout=self._timeout_s
            )
