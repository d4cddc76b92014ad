"""The fleet's server, which kills itself with SIGKILL at a chosen thing that it does to a file or the database, after SIGUSR1.

`python -m bench.dying_server DIR WHAT`: WHAT is a number, for the Nth thing, or a part of a thing's name. Nothing of the server
is changed: SQLAlchemy and Python say what is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Engine, event

from bench.fleet_side import FleetSide
from edge.control.serve import serve_fleet
from edge.control.settings import FleetHome
from edge.logs import start_logging

_FILE_EVENTS = frozenset({"os.rename", "os.remove"})
_SETTLED_S = 0.3
"""No thread of a server that has started wants to run for so long."""
_MARK = "dies at: "


class Death:
    """Waits for its moment."""

    def __init__(self, what: str) -> None:
        self._left = int(what) if what.isdecimal() else None
        self._part, self._armed = what, False

    def arm(self, *_: Any) -> None:
        """From now on."""
        self._armed = True

    def step(self, what: str) -> None:
        """This is about to be done."""
        if not self._armed:
            return
        if self._left is not None:
            self._left -= 1
        if self._left == 0 or (self._left is None and self._part in what):
            os.write(2, f"{_MARK}{what}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        """What Python says (PEP 578)."""
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_CREAT)
        if writes or name in _FILE_EVENTS:
            self.step(f"{name} {Path(str(arguments[0])).name}")


def start_dying(fleet: FleetSide, what: str) -> None:
    """Run it as `fleet.server`, and arm it when all that a start does is done."""
    with fleet.log.open("ab") as log:
        command = [sys.executable, "-m", "bench.dying_server", str(fleet.home.root), what]
        fleet.server = subprocess.Popen(command, stdout=log, stderr=log)
    give_up_s = time.monotonic() + 240
    while True:
        try:
            httpx.get(f"{fleet.people_url}/health", timeout=60, trust_env=False)
            break
        except httpx.HTTPError:
            if fleet.server.poll() is not None or time.monotonic() > give_up_s:
                raise RuntimeError(f"the fleet's server does not start:\n{fleet.log.read_text()[-2000:]}") from None
            time.sleep(0.02)
    _settle(fleet.server.pid, give_up_s)
    fleet.server.send_signal(signal.SIGUSR1)
    time.sleep(0.05)


def _settle(pid: int, give_up_s: float) -> None:
    """Wait until all that a start does is done: on a busy machine its threads may not even have begun."""
    quiet_since_s = time.monotonic()
    while (now_s := time.monotonic()) - quiet_since_s < _SETTLED_S and now_s < give_up_s:
        states = [stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
        if set(states) != {"S"}:
            quiet_since_s = now_s
        time.sleep(0.005)


def died(fleet: FleetSide, within_s: float = 1.5) -> bool:
    """Whether it dies, given that time for what follows an answer; ends it if not."""
    assert fleet.server is not None
    give_up_s = time.monotonic() + within_s
    while fleet.server.poll() is None and time.monotonic() < give_up_s:
        time.sleep(0.02)
    dead = fleet.server.poll() is not None
    fleet.kill()
    return dead


def deaths(fleet: FleetSide) -> list[str]:
    """What the servers of this fleet died at."""
    lines = fleet.log.read_text().splitlines()
    return [line.removeprefix(_MARK).strip() for line in lines if line.startswith(_MARK)]


def main() -> None:
    """Command line."""
    death = Death(sys.argv[2])
    signal.signal(signal.SIGUSR1, death.arm)

    @event.listens_for(Engine, "before_cursor_execute")
    def _statement(_: Any, __: Any, statement: str, *___: Any) -> None:
        if not statement.startswith("SELECT"):
            death.step(statement.split("(")[0][:60])

    @event.listens_for(Engine, "commit")
    def _before_commit(_: Any) -> None:
        death.step("commit")

    @event.listens_for(Engine, "checkin")
    def _after_commit(*_: Any) -> None:
        death.step("connection given back")

    sys.addaudithook(death.audit)
    start_logging("info", "text")
    serve_fleet(FleetHome(Path(sys.argv[1])), lambda _: None)


if __name__ == "__main__":
    main()
