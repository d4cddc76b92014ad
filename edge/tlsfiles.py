"""The listener's certificate, as long as the node runs: a renewed one is served without a restart.

Who renews it (cert-manager, an ACME client) replaces the files, or the symbolic link to their directory as Kubernetes does with a
mounted Secret. What is new is tried apart first: OpenSSL drops a context's key when the next certificate does not belong to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

_LOOK_S = 5.0
_Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class _Files:
    """What the files hold, read once: what was tried is what is served."""

    chain: bytes
    key: bytes
    authorities: bytes | None

    def facts(self) -> tuple[float, str]:
        """The Unix time at which the certificate ends, and the kind of its key. Raises ValueError."""
        certificate = x509.load_pem_x509_certificates(self.chain)[0]
        return certificate.not_valid_after_utc.timestamp(), certificate.public_key_algorithm_oid.dotted_string

    def load_into(self, context: ssl.SSLContext) -> None:
        """New handshakes take these from now on. Authorities of clients are only ever added. Raises OSError, ValueError."""
        with _in_memory(self.chain) as chain, _in_memory(self.key) as key:
            context.load_cert_chain(chain, key, password=_no_passphrase)
        if self.authorities is not None:
            with _in_memory(self.authorities) as authorities:  # as a file: comments may be in any letters
                context.load_verify_locations(authorities)


class TlsFiles(Collector):
    """Owner of what a listener's context serves. `keep_looking` runs on the event loop until it is cancelled."""

    def __init__(self, context: ssl.SSLContext, chain: Path, key: Path, authorities: Path | None = None) -> None:
        self._context = context
        self._paths = (chain, key) if authorities is None else (chain, key, authorities)
        self._ends_s = 0.0
        self._kind = ""
        self._served: _Stamp = ()
        """Of what was taken or refused last."""
        self._seen: _Stamp = ()
        self._refused = False
        with contextlib.suppress(OSError, ValueError):  # they were good a moment ago; else the next looks will tell
            before = self._stamp()
            self._take(self._read())
            self._seen = self._served = before

    @property
    def expires_s(self) -> float:
        """Seconds until the certificate that is served ends; below 0: since it did."""
        return self._ends_s - time.time()

    async def keep_looking(self, every_s: float = _LOOK_S) -> None:
        """Look at the files from time to time."""
        while True:
            await asyncio.sleep(every_s)
            await self.look()

    async def look(self) -> None:
        """Serve what is new, once it has stayed the same from one look to the next: certificate and key are two files, and are
        seldom written in one moment."""
        seen = await asyncio.to_thread(self._stamp)
        settled, self._seen = seen == self._seen, seen
        if not settled or seen == self._served:
            return
        self._served = seen
        try:
            self._take(await asyncio.to_thread(self._read))
        except (OSError, ValueError) as error:
            if not isinstance(error, ssl.SSLError | ValueError):
                self._served = ()  # they could not be read now: the next look tries again
            self._refuse(error)
            return
        self._refused = False
        ends = datetime.fromtimestamp(self._ends_s, UTC).isoformat()
        log.info("a new certificate is served", extra={"event": "tls_renewed", "certificate_ends": ends})

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """For /metrics."""
        if not self._ends_s:
            return
        yield GaugeMetricFamily(
            "edge_tls_certificate_expires_seconds",
            "Until the certificate that clients see ends; below 0: since it did.",
            self.expires_s,
        )

    def _stamp(self) -> _Stamp:
        return tuple(map(_stamp_of, self._paths))

    def _read(self) -> _Files:
        chain, key, *authorities = (path.read_bytes() for path in self._paths)
        return _Files(chain, key, authorities[0] if authorities else None)

    def _take(self, files: _Files) -> None:
        """Raises OSError or ValueError, and the context is as it was."""
        ends_s, kind = files.facts()
        if self._kind and kind != self._kind:  # OpenSSL holds one of each kind, and would go on showing the old one
            raise ValueError(
                "the new key is of another kind than the one before (RSA, EC): restart the node to serve it"
            )
        files.load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        files.load_into(self._context)
        self._ends_s, self._kind = ends_s, kind

    def _refuse(self, error: OSError | ValueError) -> None:
        """Say so, once until something good is there again."""
        if self._refused:
            return
        self._refused = True
        reason = error.reason if isinstance(error, ssl.SSLError) else None
        log.error(
            "the new TLS files cannot be used, the one of before is still served; put PEM files there that belong together",
            extra={
                "event": "tls_unusable",
                "files": ", ".join(map(str, self._paths)),
                "reason": reason or getattr(error, "strerror", None) or str(error),
            },
        )


def _stamp_of(path: Path) -> tuple[int, ...] | None:
    """Changes with the file, also when a symbolic link on the way leads to another one; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path of it for OpenSSL, which takes no bytes. A key never comes to a disk that way."""
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _no_passphrase() -> str:
    """Otherwise OpenSSL would ask for it on the terminal."""
    raise ValueError("the key has a passphrase")
