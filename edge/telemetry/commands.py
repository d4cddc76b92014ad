"""Commands from the fleet: who may give them, for how long, and what each does. Never a shell.

A command is signed (Ed25519, RFC 8032) by a key whose public half the node has. What is signed are the bytes of a JSON text that
travels as it is, inside a JSON string: nobody has to agree on how JSON is written. `verify` decides and does nothing else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edge.errors import ConfigurationError, NotYet

CONTEXT = b"edge-command-v1\n"
"""Stands before the signed text: a signature made for anything else is none here."""
LONGEST_LIFE_S = 24 * 3600.0
_SKEW_S = 60.0
_MOST_BYTES = 16_384
_LONGEST_ID = 64


@dataclass(frozen=True, slots=True)
class Command:
    """One that was signed by somebody who may."""

    id: str
    name: str
    arguments: Mapping[str, Any]
    expires_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not, in a word and in a sentence."""

    code: str
    text: str


def sign(key: Ed25519PrivateKey, *, command_id: str, node: str, name: str, arguments: dict[str, Any], now_s: float, life_s: float) -> bytes:  # fmt: skip  # noqa: E501
    """The payload of a command. `node` is the topic prefix of the node it is for, without the last slash."""
    signed = orjson.dumps(
        {"id": command_id, "node": node, "name": name, "arguments": arguments, "issued": int(now_s), "expires": int(now_s +
        life_s)}
    )  # fmt: skip
    signature = base64.b64encode(key.sign(CONTEXT + signed)).decode()
    return orjson.dumps({"signed": signed.decode(), "signature": signature})


def verify(
    data: bytes, keys: Sequence[Ed25519PublicKey], *, command_id: str, node: str, now_s: float, clock_synced: bool
) -> Command | Refused:
    """Whether this is a command for this node, now. Times are Unix seconds; no I/O. Whether it came before is for the caller
    to see."""
    if not keys:
        return Refused("no_key", "this node has no mqtt.command_keys_file, so it takes no commands")
    if len(data) > _MOST_BYTES or not 0 < len(command_id) <= _LONGEST_ID:
        return Refused("malformed", "the command or its id is too long")
    try:
        envelope = orjson.loads(data)
        signed = envelope["signed"].encode()
        signature = base64.b64decode(envelope["signature"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return Refused("malformed", "the command is no object with `signed` and `signature`")
    if not any(_holds(key, signature, signed) for key in keys):
        return Refused("bad_signature", "no key of this node's mqtt.command_keys_file made that signature")
    try:
        document = orjson.loads(signed)
        found = Command(document["id"], document["name"], document["arguments"], float(document["expires"]))
        issued_s, meant_for = float(document["issued"]), document["node"]
        if not isinstance(found.arguments, dict) or not isinstance(found.name, str):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        return Refused("malformed", "a field of the signed text is missing or of the wrong kind")
    if meant_for != node or found.id != command_id:
        return Refused("not_for_us", "the command was signed for another node or under another id")
    if not clock_synced:
        return Refused(
            "clock_unsynced",
            "no time source has set this node's clock, so it cannot tell whether the command has expired; see that NTP runs "
            "there, or set mqtt.trust_clock where the clock is right",
        )
    if now_s > found.expires_s:
        return Refused("expired", "the command has expired")
    if issued_s > now_s + _SKEW_S or found.expires_s - issued_s > LONGEST_LIFE_S:
        return Refused("bad_times", "the command comes from the future, or would hold for more than a day")
    return found


def _holds(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, CONTEXT + signed)
    except InvalidSignature:
        return False
    return True


class Memory(Protocol):
    """Where ids and answers outlive the process."""

    def command(self, command_id: str) -> tuple[bool, str | None]:
        """(seen before, its answer)."""
        ...

    def remember_command(self, command_id: str, expires_s: float, answer: str | None, now_s: float) -> bool:
        """False if it could not be written down."""
        ...


Action = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Carries one command out. Returns what to tell; raises CommandFailed with a sentence."""


class CommandFailed(Exception):
    """A command that could not be carried out. `text` is for the fleet's operator."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class CommandDesk:
    """Takes commands, carries each out once, answers each time."""

    def __init__(
        self,
        keys: Sequence[Ed25519PublicKey],
        node: str,
        memory: Memory,
        actions: Mapping[str, Action],
        now: Callable[[], tuple[float, bool]],
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """`now` gives (Unix seconds, whether the clock is set); `tell` takes an event's name and fields."""
        self._keys, self._node, self._memory, self._actions = keys, node, memory, actions
        self._now, self._tell = now, tell

    def handle(self, command_id: str, data: bytes) -> bytes | None:
        """The answer to publish. None: the same command is being carried out."""
        now_s, synced = self._now()
        found = verify(data, self._keys, command_id=command_id, node=self._node, now_s=now_s, clock_synced=synced)
        if isinstance(found, Refused):
            self._tell("command_refused", {"id": command_id[:_LONGEST_ID], "code": found.code})
            return _answer(command_id, "refused", found.code, found.text)
        known, answer = self._memory.command(found.id)
        if known:
            if answer is not None:
                return answer.encode()
            return _answer(
                found.id, "unknown", "interrupted", "the node ended while it carried this out; ask what came of it"
            )
        action = self._actions.get(found.name)
        if action is None:
            names = ", ".join(sorted(self._actions))
            return _answer(found.id, "refused", "unknown_command", f"commands are {names}")
        # Written down before it is done: after a crash in between it is not done twice.
        if not self._memory.remember_command(found.id, found.expires_s, None, now_s):
            return _answer(
                found.id, "refused", "not_durable", "the outbox cannot be written, so it could be done twice"
            )
        answered = self._carried_out(found, action)
        self._memory.remember_command(found.id, found.expires_s, answered.decode(), now_s)
        return answered

    def _carried_out(self, command: Command, action: Action) -> bytes:
        try:
            result = action(command.arguments)
        except CommandFailed as failure:
            self._tell("command_failed", {"id": command.id, "name": command.name, "reason": failure.text})
            return _answer(command.id, "failed", "failed", failure.text)
        except Exception as error:
            self._tell("command_failed", {"id": command.id, "name": command.name, "reason": type(error).__name__})
            return _answer(command.id, "failed", "bug", f"the node failed: {type(error).__name__}")
        self._tell("command_executed", {"id": command.id, "name": command.name})
        return _answer(command.id, "done", "", "", result)


def _answer(command_id: str, status: str, code: str, text: str, result: dict[str, Any] | None = None) -> bytes:
    return orjson.dumps({"id": command_id, "status": status, "code": code, "text": text, "result": result or {}})


# --- keys ------------------------------------------------------------------------------------------------------------


def read_public_keys(path: Path) -> list[Ed25519PublicKey]:
    """One or more PEM public keys in a file. Raises ConfigurationError."""
    try:
        return parse_public_keys(path.read_bytes())
    except OSError as error:
        raise NotYet(f"mqtt.command_keys_file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(
            f"mqtt.command_keys_file {path} must hold Ed25519 public keys in PEM; `edge fleet key FILE` makes a pair"
        ) from None


def parse_public_keys(data: bytes) -> list[Ed25519PublicKey]:
    """One or more PEM public keys. Raises ValueError."""
    end = b"-----END PUBLIC KEY-----"
    keys = [serialization.load_pem_public_key((block + end).strip()) for block in data.split(end)[:-1]]
    found = [key for key in keys if isinstance(key, Ed25519PublicKey)]
    if not found or len(found) != len(keys):
        raise ValueError("no Ed25519 public keys")
    return found


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """A PEM private key without passphrase. Raises ConfigurationError."""
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is no Ed25519 private key in PEM; `edge fleet key FILE` makes one")
    return key


def new_key_pair() -> tuple[bytes, bytes]:
    """(private, public) as PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public
