"""Renewed certificates on a running listener: real files, real handshakes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import os
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from prometheus_client import CollectorRegistry, generate_latest

from edge.listener import bind, http_server
from edge.settings import Server
from edge.tlsfiles import TlsFiles

DAY_S = 86_400.0


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Place:
    """Files as a Secret's mount has them: links to a link to a directory, which is swapped as a whole."""

    def __init__(self, root: Path) -> None:
        self.root, self.authority, self.swaps = root, trustme.CA(), 0
        self.cert, self.key = root / "tls.crt", root / "tls.key"
        for path in (self.cert, self.key):
            path.symlink_to(Path("..data") / path.name)
        self.renew()

    def issue(self, days: int = 90, kind: trustme.KeyType = trustme.KeyType.ECDSA) -> trustme.LeafCert:
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        return self.authority.issue_cert("localhost", not_after=ends, key_type=kind)

    def renew(self, leaf: trustme.LeafCert | None = None, key: bytes | None = None) -> str:
        """Swap; returns the serial number that clients are to see."""
        leaf = leaf or self.issue()
        self.swaps += 1
        there = self.root / f"..{self.swaps}"
        there.mkdir()
        (there / "tls.crt").write_bytes(leaf.cert_chain_pems[0].bytes())
        (there / "tls.key").write_bytes(key or leaf.private_key_pem.bytes())
        (self.root / "draft").symlink_to(there.name)
        (self.root / "draft").replace(self.root / "..data")
        return serial_of(leaf)


def serial_of(leaf: trustme.LeafCert) -> str:
    from cryptography import x509

    return f"{x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes()).serial_number:X}"


def with_listener(
    settings: Server,
    client: Callable[[TlsFiles, Callable[[], Awaitable[str]]], Awaitable[None]],
    trusting: ssl.SSLContext,
) -> None:
    """Run a client against a listener with these files; its second argument tells the serial number that is served now."""

    async def run() -> None:
        server, listener = http_server(application, settings), bind(settings)
        assert server.config.ssl is not None and settings.tls_cert is not None and settings.tls_key is not None
        files = TlsFiles(server.config.ssl, settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        port = listener.getsockname()[1]

        async def served() -> str:
            return await asyncio.to_thread(handshake, port, trusting)

        try:
            async with asyncio.timeout(60):
                await client(files, served)
        finally:
            server.should_exit = True
            await serving

    asyncio.run(run())


def handshake(port: int, trusting: ssl.SSLContext) -> str:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        trusting.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wrapped.recv(4096).startswith(b"HTTP/1.1 200")
        return str((wrapped.getpeercert() or {})["serialNumber"]).lstrip("0")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def trust_in(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def looks(files: TlsFiles, count: int = 2) -> None:
    for _ in range(count):
        await files.look()


def test_a_renewed_certificate_is_served_to_new_clients(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="edge")

    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        first = await served()
        await looks(files, 3)
        assert await served() == first and not caplog.records, "nothing is new"
        for _ in range(2):
            renewed = place.renew()
            assert renewed != first
            await looks(files)
            assert await served() == renewed
        assert [vars(record)["event"] for record in caplog.records] == ["tls_renewed"] * 2

    with_listener(Server(port=0, tls_cert=place.cert, tls_key=place.key), client, trust_in(place.authority))


def test_it_looks_by_itself(place: Place) -> None:
    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        looking = asyncio.create_task(files.keep_looking(0.02))
        renewed = place.renew()
        while await served() != renewed:
            await asyncio.sleep(0.02)
        looking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await looking

    with_listener(Server(port=0, tls_cert=place.cert, tls_key=place.key), client, trust_in(place.authority))


@pytest.mark.parametrize("fault", ["other key", "no pem", "passphrase", "gone", "other kind"])
def test_files_that_cannot_be_used_leave_the_one_before_and_are_told_once(
    place: Place, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    leaf = place.issue(kind=trustme.KeyType.RSA if fault == "other kind" else trustme.KeyType.ECDSA)
    secret = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    keys = {"other key": place.issue().private_key_pem.bytes(), "no pem": b"nonsense", "passphrase": secret}

    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        first = await served()
        if fault == "gone":
            place.key.unlink()
        else:
            place.renew(leaf, keys.get(fault))
        await looks(files, 4)
        assert await served() == first
        if fault != "gone":
            place.renew(place.issue(), b"still nonsense")
            await looks(files, 4)
            assert await served() == first
        (said,) = caplog.records
        assert (vars(said)["event"], said.levelname) == ("tls_unusable", "ERROR")
        assert str(place.key) in vars(said)["files"] and vars(said)["reason"]
        if fault == "gone":
            place.key.symlink_to(Path("..data") / place.key.name)
        renewed = place.renew()
        await looks(files)
        assert await served() == renewed

    with_listener(Server(port=0, tls_cert=place.cert, tls_key=place.key), client, trust_in(place.authority))


def test_a_certificate_whose_key_comes_a_little_later_is_no_fault(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = trustme.CA()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    times_s = itertools.count(1_000_000_000)

    def write(path: Path, blob: trustme.Blob) -> None:
        path.write_bytes(blob.bytes())
        os.utime(path, (0, next(times_s)))  # a file system may tell two moments apart or not

    old, new = authority.issue_cert("localhost"), authority.issue_cert("localhost")
    write(cert, old.cert_chain_pems[0])
    write(key, old.private_key_pem)

    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        write(cert, new.cert_chain_pems[0])
        await files.look()
        write(key, new.private_key_pem)
        await files.look()
        assert await served() == serial_of(old)
        await files.look()
        assert await served() == serial_of(new)
        assert not caplog.records

    with_listener(Server(port=0, tls_cert=cert, tls_key=key), client, trust_in(authority))


def test_a_further_authority_of_clients_is_taken_up(place: Place, tmp_path: Path) -> None:
    robots, others = trustme.CA(), trustme.CA()
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes(robots.cert_pem.bytes())
    trusting = trust_in(place.authority)
    others.issue_cert("robot@example.com").configure_cert(trusting)

    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        with pytest.raises((ssl.SSLError, ConnectionError, AssertionError)):
            await served()
        authorities.write_bytes(robots.cert_pem.bytes() + others.cert_pem.bytes())
        await looks(files)
        assert await served()

    settings = Server(port=0, tls_cert=place.cert, tls_key=place.key, tls_client_ca=authorities)
    with_listener(settings, client, trusting)


def test_names_of_authorities_may_be_in_any_letters(place: Place, tmp_path: Path) -> None:
    """Bundles have comments; OpenSSL passes over them."""
    robots = trustme.CA()
    authorities = tmp_path / "clients.pem"
    authorities.write_bytes("# Fabrik Süd\n".encode() + robots.cert_pem.bytes())
    trusting = trust_in(place.authority)
    robots.issue_cert("robot@example.com").configure_cert(trusting)

    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        assert files.expires_s > 80 * DAY_S
        renewed = place.renew()
        await looks(files)
        assert await served() == renewed

    settings = Server(port=0, tls_cert=place.cert, tls_key=place.key, tls_client_ca=authorities)
    with_listener(settings, client, trusting)


def test_files_that_cannot_be_read_for_a_moment_are_read_later(place: Place) -> None:
    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        renewed = place.renew()
        await files.look()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))  # none is free: as in overload
        try:
            await files.look()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await served() != renewed
        await looks(files)
        assert await served() == renewed

    with_listener(Server(port=0, tls_cert=place.cert, tls_key=place.key), client, trust_in(place.authority))


def test_how_long_it_holds_is_measured(place: Place) -> None:
    async def client(files: TlsFiles, served: Callable[[], Awaitable[str]]) -> None:
        registry = CollectorRegistry()
        registry.register(files)
        for days in (5, 60):
            place.renew(place.issue(days))
            await looks(files)
            text = generate_latest(registry).decode()
            told = next(float(line.split()[1]) for line in text.splitlines() if line.startswith("edge_tls_certificate"))
            assert abs(told - days * DAY_S) < DAY_S

    with_listener(Server(port=0, tls_cert=place.cert, tls_key=place.key), client, trust_in(place.authority))
