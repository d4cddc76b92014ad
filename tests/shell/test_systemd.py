"""Notifications over a real datagram socket."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.systemd import Notifier
from edge.watch import patient

PID = os.getpid()
PATIENCE_S = 60.0


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(tmp_path / "notify"))
        peer.settimeout(PATIENCE_S)
        yield peer


def test_each_change_is_one_datagram(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()}, PID)
    notifier.busy("reading the weights", 20)
    notifier.ready("serving tiny")
    notifier.alive()
    notifier.status("engine down: killed\nby signal 9")
    notifier.stopping("draining", 61.5)
    assert [manager.recv(512) for _ in range(5)] == [
        b"STATUS=reading the weights\nEXTEND_TIMEOUT_USEC=20000000",
        b"READY=1\nSTATUS=serving tiny",
        b"WATCHDOG=1",
        b"STATUS=engine down: killed by signal 9",
        b"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=61500000",
    ]


def test_a_reload_is_told_with_its_time(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind(str(tmp_path / "notify"))
        peer.settimeout(PATIENCE_S)
        Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}, PID).reloading("draining")
        lines = peer.recv(256).split(b"\n")
    assert lines[0] == b"RELOADING=1" and lines[2] == b"STATUS=draining"
    assert lines[1].startswith(b"MONOTONIC_USEC=") and int(lines[1].partition(b"=")[2]) > 0


def said_by_another(address: str) -> int:
    """How much one more service can say; 0: the manager's queue is full, and it is not the sender who has too much out."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        said = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                other.sendto(b"another service", address)
                said += 1
    return said


def test_what_is_said_once_waits_for_a_manager_that_is_behind(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()}, PID, PATIENCE_S)
    queued = 0
    while said := said_by_another(manager.getsockname()):
        queued += said
    notifier.alive()  # lost, and said again soon
    ready = threading.Thread(target=notifier.ready, args=("serving tiny",))
    ready.start()
    heard = [manager.recv(512) for _ in range(queued + 1)]
    ready.join()
    assert heard == [b"another service"] * queued + [b"READY=1\nSTATUS=serving tiny"]


def test_a_status_that_is_no_text_is_told_all_the_same(manager: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": manager.getsockname()}, PID).status("mod\udce8le.gguf")
    assert manager.recv(512) == b"STATUS=mod?le.gguf"


def test_abstract_sockets_are_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.bind("")  # the kernel finds a name that nobody has
        peer.settimeout(PATIENCE_S)
        name: bytes = peer.getsockname()
        Notifier({"NOTIFY_SOCKET": f"@{name[1:].decode()}"}, PID).alive()
        assert peer.recv(64) == b"WATCHDOG=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    for env in ({}, {"NOTIFY_SOCKET": str(tmp_path / "gone")}, {"NOTIFY_SOCKET": "relative"}):
        Notifier(env, PID).ready("serving")


def test_the_watchdog_is_fed_twice_per_interval() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}, PID).watchdog_s == 15
    assert Notifier({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(PID)}, PID).watchdog_s == 15


@pytest.mark.parametrize(
    "env", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": f"{PID + 1}"}]
)
def test_a_watchdog_meant_for_nobody_is_ignored(env: dict[str, str]) -> None:
    assert Notifier(env, PID).watchdog_s is None


def test_a_long_checksum_asks_for_the_time_that_it_takes(manager: socket.socket, tmp_path: Path) -> None:
    shown: list[int] = []
    told = patient(
        Notifier({"NOTIFY_SOCKET": manager.getsockname()}, PID), lambda _, done_bytes: shown.append(done_bytes)
    )
    for done_bytes in range(1000):
        told(tmp_path / "large.gguf", done_bytes)
    assert shown == list(range(1000))
    assert manager.recv(512) == b"STATUS=checking large.gguf\nEXTEND_TIMEOUT_USEC=30000000"
    manager.setblocking(False)
    heard = []
    with contextlib.suppress(BlockingIOError):
        while True:
            heard.append(manager.recv(512))
    assert len(heard) < 20, "once a second, and not for each piece that is read"
