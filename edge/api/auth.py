"""API keys: made here, shown once, kept as hashes in one file that survives power cuts.

A key is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess. The file is read again when it
changes:
`edge keys revoke` reaches a running node.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from edge.durable import heirs, lock, write_atomically
from edge.errors import ConfigurationError, InvalidApiKey, PermissionDenied, RateLimited, Unavailable
from edge.versions import Fit, fit

log = logging.getLogger(__name__)

PREFIX = "edge-"
SCHEMA_VERSION = 1
Scope = Literal["inference", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = ("inference", "metrics", "admin")
"""Asking models; looking at the node; loading and unloading models."""


class ApiKey(msgspec.Struct, frozen=True):
    """A key as it is kept: never the key itself."""

    name: str
    hint: str
    """The key's first characters, to tell keys apart."""
    sha256: str
    created: str
    scopes: tuple[Scope, ...] = ("inference",)
    requests_per_minute: int | None = None


class _File(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    keys: list[ApiKey]
    readable_by: int | None = None


class KeyStore:
    """Owner of the key file. Raises ConfigurationError when the file is there and cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: list[ApiKey] = []
        self._newer = False
        """A newer version wrote the file: it may be read, and writing it would lose what is not known here."""
        self._said = ""

    def all(self) -> list[ApiKey]:
        """The keys as they stand in the file now."""
        try:
            found = self._path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._seen, self._keys, self._newer = None, [], False
            return []
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from None
        seen = (found.st_mtime_ns, found.st_ino, found.st_size)
        if seen != self._seen:
            self._keys = self._read()
            self._seen = seen
        return self._keys

    def create(self, name: str, *, scopes: tuple[Scope, ...], requests_per_minute: int | None, created: str) -> str:
        """Make a key and return it: the only time that it can be seen. Raises ConfigurationError for a name in use."""
        with self._changing():
            keys = self.all()
            if any(k.name == name for k in keys):
                raise ConfigurationError(
                    f"there is a key named {name!r} already; revoke it first or choose another name"
                )
            secret = PREFIX + secrets.token_urlsafe(32)
            kept = ApiKey(name, secret[: len(PREFIX) + 4], _hash(secret), created, scopes, requests_per_minute)
            self._write([*keys, kept])
        return secret

    def revoke(self, name: str) -> None:
        """Drop a key. Raises ConfigurationError when there is none of that name."""
        with self._changing():
            keys = self.all()
            kept = [k for k in keys if k.name != name]
            if len(kept) == len(keys):
                raise ConfigurationError(f"there is no key named {name!r}; `edge keys list` shows those that there are")
            self._write(kept)

    def find(self, secret: str) -> ApiKey | None:
        """The key that this secret belongs to. Every kept hash is compared, in constant time. Raises Unavailable while the file
        cannot be read, which is for the log, and nothing that a client should see."""
        wanted = _hash(secret)
        match = None
        for key in self._now():
            if hmac.compare_digest(key.sha256, wanted):
                match = key
        return match

    def _now(self) -> list[ApiKey]:
        try:
            keys = self.all()
        except ConfigurationError as error:
            if error.message != self._said:
                self._said = error.message
                log.error("API keys cannot be checked", extra={"event": "keys_unreadable", "reason": error.message})
            raise Unavailable("API keys cannot be checked at present; the node's log says why") from None
        self._said = ""
        return keys

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone, so that no key that another command revokes meanwhile comes back. The directory is the lock: a file of root's
        could not be opened by the service."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(f"the key file {self._path} cannot be written: {error.strerror}") from error
        try:
            lock(directory, wait=True)
            self._seen = None  # whatever the clock says, as it is now
            yield
        finally:
            os.close(directory)

    def _read(self) -> list[ApiKey]:
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except OSError as error:
            raise self._unreadable(error.strerror or str(error)) from None
        except msgspec.DecodeError as error:
            raise ConfigurationError(
                f"the key file {self._path} cannot be read ({error}); restore it, or delete it and create keys anew"
            ) from error
        found = fit(stored.version, stored.readable_by, SCHEMA_VERSION)
        if found is Fit.FOREIGN:
            raise ConfigurationError(
                f"the key file {self._path} was written by a newer version of edge (form {stored.version}, this one reads "
                f"{SCHEMA_VERSION}); upgrade this one, or move the file away and create keys anew"
            )
        self._newer = found is Fit.NEWER
        return stored.keys

    def _unreadable(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"the key file {self._path} cannot be read ({reason}); give this user the directory")

    def _write(self, keys: list[ApiKey]) -> None:
        """Whole or not at all, readable by the owner only, on disk before it counts."""
        if self._newer:
            raise ConfigurationError(
                f"the key file {self._path} was written by a newer version of edge: its keys are good here, but changing them "
                "takes that version"
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        data = msgspec.json.format(msgspec.json.encode(_File(SCHEMA_VERSION, keys)))
        try:
            # A service must be able to read what root made in its directory.
            write_atomically(self._path, data, 0o600, owner=heirs(self._path.parent))
        except OSError as error:
            raise ConfigurationError(f"the key file {self._path} cannot be written: {error.strerror}") from error


class RateLimiter:
    """Requests per minute of each key, as a token bucket that holds one minute's worth."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, key: ApiKey) -> None:
        """Count one request. Raises RateLimited with the time until the next is allowed."""
        limit = key.requests_per_minute
        if limit is None:
            return
        now = self._clock()
        level, at = self._buckets.get(key.sha256, (float(limit), now))
        level = min(float(limit), level + (now - at) * limit / 60)
        if level < 1:
            self._buckets[key.sha256] = (level, now)
            wait_s = (1 - level) * 60 / limit
            raise RateLimited(f"key {key.name!r} may make {limit} requests a minute", retry_after_s=wait_s)
        self._buckets[key.sha256] = (level - 1, now)


def authorize(keys: KeyStore, secret: str | None, scope: Scope | None) -> ApiKey:
    """The key of a request. Raises InvalidApiKey, or PermissionDenied when it lacks the scope."""
    if not secret:
        raise InvalidApiKey("this node needs an API key: send it as `Authorization: Bearer KEY`")
    key = keys.find(secret)
    if key is None:
        raise InvalidApiKey("the API key is not known to this node, or was revoked")
    if scope is not None and scope not in key.scopes:
        raise PermissionDenied(f"key {key.name!r} has no `{scope}` scope")
    return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
