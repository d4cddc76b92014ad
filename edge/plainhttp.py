"""HTTP/1.1 and no other protocol: what a request offers besides is left alone."""

from __future__ import annotations

from array import array
from typing import Protocol

import httptools


class _Heads(Protocol):
    url: bytes
    headers: list[tuple[bytes, bytes]]


class PlainParser(httptools.HttpRequestParser):
    """Reads a request that offers to go on in another protocol (HTTP/2, as Java's client does) as one that does not: no other is
    spoken here (RFC 9110, section 7.8). httptools takes its head for the whole of it, and would lose its body."""

    def __init__(self, connection: _Heads) -> None:
        super().__init__(connection)
        self._connection = connection
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it

    @property
    def met_offer(self) -> bool:
        """The head that was read last is such a one: it comes once more, without the offer. A tunnel (CONNECT) is none."""
        return bool(self.should_upgrade()) and self.get_method() != b"CONNECT"

    def feed_data(self, data: bytes | bytearray | memoryview[int] | array[int]) -> None:
        """Read on."""
        rest = memoryview(data)
        while True:
            try:
                super().feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:
                if not self.met_offer:
                    raise
                rest = rest[offer.args[0] :]
            super().feed_data(self._without_offer())

    def _without_offer(self) -> bytes:
        head = [b"%s %s HTTP/%s" % (self.get_method(), self._connection.url, self.get_http_version().encode())]
        head += [b"%s: %s" % field for field in self._connection.headers if field[0] != b"upgrade"]
        return b"\r\n".join([*head, b"", b""])
