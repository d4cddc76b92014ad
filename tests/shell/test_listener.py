"""Taking an address: one that is here, one that comes later, a name, and what is none of these."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from typing import Any

import pytest

from edge.errors import ConfigurationError, NotYet
from edge.listener import PortBusy, bind, is_here, is_loopback_address, keep_looking_for
from edge.settings import Server

NOT_OURS = "192.0.2.77"
"""RFC 5737: no machine has it."""


@pytest.mark.parametrize("host", [NOT_OURS, "2001:db8::77"])
def test_an_address_that_the_machine_gets_later_is_taken_before_it_is_there(host: str) -> None:
    with bind(Server(host=host, port=0)) as listener:
        assert listener.getsockname()[0] == host and not is_here(listener)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_what_the_machine_has_is_here(host: str) -> None:
    with bind(Server(host=host, port=0)) as listener:
        assert is_here(listener)


class Moving(socket.socket):
    """The machine gets its address after a while."""

    looks = 0

    def getsockname(self) -> Any:
        self.looks += 1
        return (NOT_OURS if self.looks < 5 else "127.0.0.1", 0)


def test_an_address_that_is_missing_is_told_of_once_and_so_is_its_coming(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Moving() as listener:
        asyncio.run(keep_looking_for(listener, every_s=0.01))
    said = [(record.levelname, record.event, record.address) for record in caplog.records if hasattr(record, "address")]  # type: ignore[attr-defined]
    assert said == [("WARNING", "address_absent", NOT_OURS), ("INFO", "address_here", "127.0.0.1")]


def test_of_an_address_that_is_here_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with bind(Server(port=0)) as listener:
        asyncio.run(keep_looking_for(listener))
    assert not caplog.records


@pytest.mark.parametrize("host", ["256.1.1.1", "fe80:::1", "[::1]", "a..b"])
def test_what_is_neither_address_nor_name_is_a_mistake(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no address of this machine; use 127\.0\.0\.1") as refused:
        bind(Server(host=host, port=0)).close()
    assert not isinstance(refused.value, NotYet), "trying again would not help"


def test_a_name_that_cannot_be_looked_up_may_be_one_later() -> None:
    with pytest.raises(NotYet, match="no name that can be looked up now"):
        bind(Server(host="box.invalid", port=0))


def test_a_port_that_is_taken_is_busy_whatever_else_a_name_stands_for() -> None:
    with bind(Server(host="localhost", port=0)) as first, pytest.raises(PortBusy):
        bind(Server(host="localhost", port=first.getsockname()[1]))


def test_a_name_is_no_loopback_address_by_its_looks() -> None:
    assert [is_loopback_address(host) for host in ("127.0.0.9", "::1", "localhost", "10.0.0.1")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_process_that_may_open_few_files_takes_fewer_connections() -> None:
    code = """
import resource
from edge.listener import raise_file_limit
for hard in (4096, 1024, 256):
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
    print(raise_file_limit(1024))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["1024", "768", "128"]
    assert done.stderr.count("so it takes fewer connections; raise its limit (ulimit -n, LimitNOFILE)") == 2
