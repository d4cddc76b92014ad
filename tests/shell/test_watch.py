"""What keeps the service manager's watchdog from ending a node: an engine that is well, however slow its passes are."""

import asyncio
import os
import socket
from pathlib import Path

from edge.residency import Pool, PoolLimits, Spec
from edge.settings import Engine, Settings
from edge.systemd import Notifier
from edge.watch import Watch
from tests.api.fake_engine import FakeEngine
from tests.residency.fake_planner import MIB, FakePlanner

WATCHDOG_USEC = 40_000
TURNS = 30
"""Of the watch, in silence: far beyond three times `engine.wedge_timeout_s`."""


def test_an_engine_in_one_long_pass_is_not_taken_for_wedged(tmp_path: Path) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "notify"))
    manager.setblocking(False)
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(WATCHDOG_USEC)}
    settings = Settings(engine=Engine(wedge_timeout_s=0.05))

    async def main() -> None:
        stop, specs = asyncio.Event(), [Spec("main", "main", main=True)]
        pool = Pool(specs, FakePlanner(), lambda *_: FakeEngine(patience_s=60.0), PoolLimits(8 * MIB, 8, 1.0))
        await pool.start()
        await pool.wait_main()
        watching = asyncio.create_task(Watch(Notifier(env, os.getpid()), pool, settings, stop, "main").serving())
        heard = 0
        while heard < TURNS:
            heard += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(manager, 512), 60) == b"WATCHDOG=1"
        stop.set()
        await watching
        await pool.stop()

    with manager:
        asyncio.run(main())
