"""A fleet over HTTP/2 and TLS, on the h2 package: it answers every request with the same short stream."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events

MODELS = json.dumps({"object": "list", "data": [{"id": "central"}]}).encode()
SHARED = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "central"}
WORDS = ["Over", " two", "."]


@dataclass
class Http2Fleet:
    """`connections`: how many there were. `subjects`: common names of the client certificates seen."""

    port: int = 0
    connections: int = 0
    requests: int = 0
    subjects: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        certificate = writer.get_extra_info("peercert") or {}
        self.subjects += [
            value for rdn in certificate.get("subject", ()) for name, value in rdn if name == "commonName"
        ]
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self._head(connection, event)
                elif isinstance(event, h2.events.StreamEnded):
                    self._answer(connection, event.stream_id)
            writer.write(connection.data_to_send())
            await writer.drain()
        writer.close()

    def _head(self, connection: h2.connection.H2Connection, event: h2.events.RequestReceived) -> None:
        self._get = dict(event.headers)[b":method"] == b"GET"

    def _answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        kind = "application/json" if self._get else "text/event-stream"
        connection.send_headers(stream, [(":status", "200"), ("content-type", kind)])
        if self._get:
            connection.send_data(stream, MODELS, end_stream=True)
            return
        self.requests += 1
        for word in WORDS:
            chunk = {**SHARED, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            connection.send_data(stream, b"data: " + json.dumps(chunk).encode() + b"\n\n")
        end = {**SHARED, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        connection.send_data(stream, b"data: " + json.dumps(end).encode() + b"\n\ndata: [DONE]\n\n", end_stream=True)


def tls(certificate: object, authority: object) -> ssl.SSLContext:
    """A server's context for HTTP/2 that asks clients for a certificate of `authority` (both from trustme)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)  # type: ignore[attr-defined]
    authority.configure_trust(context)  # type: ignore[attr-defined]
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    return context
