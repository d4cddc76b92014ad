"""API keys: made here, shown once, kept as hashes in one file that survives power cuts.

A key is 256 random bits, so a plain SHA-256 is enough: there is nothing to guess. The file is read again when it
changes:
`edge keys revoke` reaches a running node.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from edge.errors import ConfigurationError, InvalidApiKey, PermissionDenied, RateLimited
from edge.versions import Fit, fit

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

    def all(self) -> list[ApiKey]:
        """The keys as they stand in the file now."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._seen, self._keys, self._newer = None, [], False
            return []
        except OSError as error:
            raise ConfigurationError(f"the key file {self._path} cannot be read ({error.strerror})") from error
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
        """The key that this secret belongs to. Every kept hash is compared, in constant time."""
        wanted = _hash(secret)
        match = None
        for key in self.all():
            if hmac.compare_digest(key.sha256, wanted):
                match = key
        return match

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
            fcntl.flock(directory, fcntl.LOCK_EX)
            self._seen = None  # whatever the clock says, as it is now
            yield
        finally:
            os.close(directory)

    def _read(self) -> list[ApiKey]:
        try:
            stored = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError) as error:
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

    def _write(self, keys: list[ApiKey]) -> None:
        """Whole or not at all, readable by the owner only, on disk before it counts."""
        if self._newer:
            raise ConfigurationError(
                f"the key file {self._path} was written by a newer version of edge: its keys are good here, but changing them "
                "takes that version"
            )
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        data = msgspec.json.format(msgspec.json.encode(_File(SCHEMA_VERSION, keys)))
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                if os.geteuid() == 0:  # for a service: it must be able to read what root made in its directory
                    owner = self._path.parent.stat()
                    os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self._path)
            _sync_directory(self._path.parent)
        except OSError as error:
            fresh.unlink(missing_ok=True)
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


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
