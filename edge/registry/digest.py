"""Checksums: computed, remembered, and read from what servers state."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edge.durable import write_atomically
from edge.errors import ModelUnusable

BLOCK_BYTES = 1 << 20
CHECKSUMS_VERSION = 1
_HEX = re.compile(r"[0-9a-f]{64}")
_REPR_DIGEST = re.compile(r"(?:^|,)\s*sha-256=:([A-Za-z0-9+/=]+):", re.IGNORECASE)


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """A file's sum, in hex; `on_bytes` is told how much was read so far. Raises OSError."""
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            done += len(block)
            if on_bytes is not None:
                on_bytes(done)
    return digest.hexdigest()


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file that is to be copied, perhaps from a stick that fails: no trouble of whoever writes. Raises ModelUnusable."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None


def stated_sha256(headers: Mapping[str, str]) -> str | None:
    """What a server says of the whole file: the hub's X-Linked-Etag, Artifactory's header, or RFC 9530's Repr-Digest."""
    for name in ("x-linked-etag", "x-checksum-sha256"):
        text = headers.get(name, "").strip().removeprefix("W/").strip('"').lower()
        if _HEX.fullmatch(text):
            return text
    found = _REPR_DIGEST.search(headers.get("repr-digest", ""))
    if found is not None:
        with contextlib.suppress(binascii.Error, ValueError):
            raw = base64.b64decode(found[1], validate=True)
            if len(raw) == hashlib.sha256().digest_size:
                return raw.hex()
    return None


class Checksums:
    """Remembers sums by size and modification time in one small file, so that a large file is read whole once and not at
    every start. It is a cache: losing it costs time only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def holds(self, file: Path, sha256: str) -> bool:
        """Whether this very file was seen to have this sum. Raises OSError when the file is not there."""
        return self._read().get(str(file)) == self._stamp(file, sha256)

    def remember(self, file: Path, sha256: str) -> None:
        """Call after the sum was seen. Raises OSError when the file is not there."""
        self._write({**self._read(), str(file): self._stamp(file, sha256)})

    def forget(self, file: Path) -> None:
        """The next start reads it whole again."""
        known = self._read()
        if known.pop(str(file), None) is not None:
            self._write(known)

    @staticmethod
    def _stamp(file: Path, sha256: str) -> list[object]:
        status = file.stat()
        return [status.st_size, status.st_mtime_ns, sha256]

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        if "version" not in found:  # as the first versions wrote it: paths, and nothing else
            return found
        files = found.get("files")
        return files if found["version"] == CHECKSUMS_VERSION and isinstance(files, dict) else {}

    def _write(self, known: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # a read-only or full home: sums are computed at every start
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps({"version": CHECKSUMS_VERSION, "files": known}, indent=1).encode())


def fingerprint(path: Path) -> str:
    """Tells model files apart without reading gigabytes: SHA-256 over size, first and last MiB. Proves nothing."""
    part = 1 << 20
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(part))
        file.seek(max(0, size - part))
        digest.update(file.read(part))
    return digest.hexdigest()[:16]
