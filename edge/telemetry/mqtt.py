"""One connection to a broker. The only module that imports paho, and it uses little of it: a fresh client for each session, no
thread,
no reconnecting, no queue of its own.

paho's own loop waits with select(2), which fails once a process has 1,024 files open; this one polls.
"""

from __future__ import annotations

import contextlib
import select
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

NOT_AUTHORIZED, SESSION_TAKEN_OVER, QUOTA_EXCEEDED, PACKET_TOO_LARGE = 0x87, 0x8E, 0x97, 0x95
FAILURE = 0x80
"""Reason codes from here on say that something was not done."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}
_CONNECT_S = 10.0
_LEAST_IN_FLIGHT = 1
_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME."""


class ConnectionFailed(Exception):
    """No session, or no longer. `code` is the MQTT 5 reason code if the broker gave one; `tls`: certificates or keys are at
    fault."""

    def __init__(self, reason: str, *, code: int | None = None, tls: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.code, self.tls = reason, code, tls


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when we are gone. Retained."""

    topic: str
    payload: bytes


def dates_count() -> bool:
    """They do."""
    return True


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is, and as whom to speak. Files are read at each connection, so renewed certificates are found."""

    url: str
    client_id: str
    username: str = ""
    password_file: Path | None = None
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    version_5: bool = True
    keepalive_s: int = 30
    session_expiry_s: int = 0
    """How long the broker keeps the session when the connection is lost; 0: each one begins anew."""
    check_dates: Callable[[], bool] = dates_count
    """Whether the dates in the broker's certificate count: not while the clock cannot be believed and the CA is pinned."""


@dataclass(frozen=True, slots=True)
class Message:
    """One that arrived. `ack` must be called for it if the connection acknowledges by hand."""

    topic: str
    payload: bytes
    number: int


@dataclass(slots=True)
class Handlers:
    """What happens with what arrives; called from `Connection.turn`."""

    message: Callable[[Message], None] = lambda _: None
    published: Callable[[int, int], None] = lambda *_: None
    """(packet number, reason code)."""
    refused_subscription: Callable[[str, int], None] = lambda *_: None
    by_hand: bool = field(default=False)


class Connection:
    """One session, from CONNECT to its end. Used by one thread."""

    def __init__(self, address: BrokerAddress, handlers: Handlers, will: Will | None = None) -> None:
        self.in_flight_limit = 65_535
        self.largest_bytes = 1 << 28
        self._address, self._handlers = address, handlers
        self._answer: int | None = None
        self._lost: ConnectionFailed | None = None
        self._subscriptions: dict[int, list[str]] = {}
        kept = address.session_expiry_s > 0
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=address.client_id,
            protocol=paho.MQTTv5 if address.version_5 else paho.MQTTv311,
            clean_session=None if address.version_5 else not kept,
            reconnect_on_failure=False,
            manual_ack=handlers.by_hand,
        )
        self._client.connect_timeout = _CONNECT_S
        self._client.max_inflight_messages_set(0)  # who uses this counts for himself
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=1, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe

    def open(self) -> None:
        """Connect and wait for the broker's word. Raises ConnectionFailed."""
        address = self._address
        parts = urlsplit(address.url)
        port = parts.port or _PORTS[parts.scheme]
        self._authenticate()
        if parts.scheme == "mqtts":
            self._client.tls_set_context(tls_context(address))
        options: dict[str, Any] = {}
        if address.version_5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = address.session_expiry_s
            options = {"clean_start": address.session_expiry_s == 0, "properties": properties}
        try:
            self._client.connect(parts.hostname or "", port, address.keepalive_s, **options)
        except ssl.SSLError as error:
            raise ConnectionFailed(f"TLS with {parts.hostname} failed: {error}", tls=True) from None
        except (OSError, ValueError) as error:
            where = f"{parts.hostname}:{port}"
            raise ConnectionFailed(f"{where} cannot be reached: {_words(error)}") from None
        deadline_s = time.monotonic() + _CONNECT_S
        while self._answer is None:
            if time.monotonic() >= deadline_s:
                raise ConnectionFailed(f"{parts.hostname} accepted the connection and then said nothing")
            self.turn(0.2)

    def _authenticate(self) -> None:
        address = self._address
        if not address.username:
            return
        password = None
        if address.password_file is not None:
            try:
                password = address.password_file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConnectionFailed(f"mqtt.password_file cannot be read: {_words(error)}", tls=True) from None
        self._client.username_pw_set(address.username, password)

    def turn(self, wait_s: float) -> None:
        """Do what there is to do on the wire, waiting for it at most so long. Raises ConnectionFailed when the session is
        over."""
        client = self._client
        sock = client.socket()
        if sock is not None and self._lost is None:
            pending = getattr(sock, "pending", lambda: 0)
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            ready = poll.poll(0 if pending() else wait_s * 1000)
            if pending() or any(event & ~select.POLLOUT for _, event in ready):
                client.loop_read()
                while client.socket() is not None and pending():
                    client.loop_read()
            if client.socket() is not None and client.want_write():
                client.loop_write()
            if client.socket() is not None:
                client.loop_misc()
        if self._lost is not None:
            raise self._lost
        if client.socket() is None:
            raise ConnectionFailed("the connection was closed")

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int:
        """Send with QoS 1. Returns the packet's number; `Handlers.published` is told of its acknowledgement."""
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def subscribe(self, *topics: str) -> None:
        """With QoS 1. What we publish ourselves does not come back."""
        wanted: Any = [(topic, SubscribeOptions(qos=1, noLocal=True)) for topic in topics]
        if not self._address.version_5:
            wanted = [(topic, 1) for topic in topics]
        _, number = self._client.subscribe(wanted)
        if number is not None:
            self._subscriptions[number] = list(topics)

    def ack(self, message: Message) -> None:
        """That message is safe here."""
        self._client.ack(message.number, 1)

    def close(self) -> None:
        """Say good-bye, so that the broker does not publish the will."""
        with contextlib.suppress(Exception):
            self._client.disconnect()
            if self._client.socket() is not None:
                self._client.loop_write()
        self.abandon()

    def abandon(self) -> None:
        """Drop the connection as it is."""
        sock = self._client.socket()
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.close()

    # --- what paho calls ----------------------------------------------------------------------------------------------

    def _on_connect(self, _: Any, __: Any, ___: Any, code: ReasonCode, properties: Properties | None) -> None:
        if code.is_failure:
            self._lost = ConnectionFailed(f"the broker refused the connection: {code}", code=code.value)
            return
        self.in_flight_limit = max(_LEAST_IN_FLIGHT, getattr(properties, "ReceiveMaximum", self.in_flight_limit))
        self.largest_bytes = getattr(properties, "MaximumPacketSize", self.largest_bytes)
        self._answer = 0

    def _on_disconnect(self, _: Any, __: Any, flags: Any, code: ReasonCode, ___: Properties | None) -> None:
        if self._lost is None:
            by_broker = bool(getattr(flags, "is_disconnect_packet_from_server", False))
            reason = f"the broker ended the session: {code}" if by_broker else f"the connection was lost: {code}"
            self._lost = ConnectionFailed(reason, code=code.value if by_broker else None)

    def _on_message(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            self._handlers.message(Message(message.topic, bytes(message.payload), message.mid))

    def _on_publish(self, _: Any, __: Any, number: int, code: ReasonCode, ___: Properties | None) -> None:
        self._handlers.published(number, code.value)

    def _on_subscribe(self, _: Any, __: Any, number: int, codes: list[ReasonCode], ___: Properties | None) -> None:
        for topic, code in zip(self._subscriptions.pop(number, []), codes, strict=False):
            if code.value >= FAILURE:
                self._handlers.refused_subscription(topic, code.value)


def tls_context(address: BrokerAddress) -> ssl.SSLContext:
    """Of the files as they are now. Raises ConnectionFailed with the setting's name."""
    try:
        context = ssl.create_default_context(cafile=address.ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ConnectionFailed(f"mqtt.ca_file {address.ca_file} cannot be used: {_words(error)}", tls=True) from None
    if address.ca_file is not None and not address.check_dates():
        context.verify_flags |= _NO_CHECK_TIME
    if address.cert_file is not None:
        try:
            _present(context, address.cert_file, address.key_file)
        except OSError as error:
            files = f"mqtt.cert_file {address.cert_file} and mqtt.key_file {address.key_file}"
            raise ConnectionFailed(f"{files} cannot be used: {_words(error)}", tls=True) from None
    return context


def _present(context: ssl.SSLContext, cert_file: Path, key_file: Path | None) -> None:
    """Load certificate and key. They are read one after the other: a renewal in between makes them differ, once."""
    for last in (False, True):
        try:
            # A key with a passphrase would ask for it on the terminal.
            context.load_cert_chain(cert_file, key_file, password=lambda: "")
            return
        except OSError:
            if last:
                raise


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
