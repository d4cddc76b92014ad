"""The line of models that are to be loaded, and of those who wait for them."""

from __future__ import annotations

import asyncio

from edge.errors import EdgeError
from edge.residency.book import Instance, Lease, Model, Wanted, again
from edge.residency.model import Version


class Line:
    """Owner of the order. Each model has one place at most; the main one goes first."""

    def __init__(self) -> None:
        self._line: list[Wanted] = []

    def __bool__(self) -> bool:
        return bool(self._line)

    def add(self, model: Model, *, replaces: Instance | None = None, version: Version | None = None) -> Wanted:
        """A place for a model that has none."""
        assert model.wanted is None
        model.wanted = Wanted(model, replaces=replaces, version=version)
        self._line.append(model.wanted)
        self._line.sort(key=lambda wanted: not wanted.model.spec.main)
        return model.wanted

    def ripe(self) -> dict[str, Wanted]:
        """By name and in order: those whose memory is planned, and whose turn has not come."""
        return {w.model.spec.name: w for w in self._line if w.instance is None and w.fitted is not None}

    def forget(self, wanted: Wanted) -> bool:
        """Give up its place if its last client has left: nobody else is to make room for it. False if it stays."""
        if wanted not in self._line or wanted.waiters or wanted.watchers or wanted.keep or wanted.instance is not None:
            return False
        self._drop(wanted)
        return True

    def conclude(self, wanted: Wanted, error: EdgeError | None, instance: Instance | None = None) -> None:
        """It is loaded, or will not be: tell all who wait. Each of them has a lease before anybody else decides anything."""
        self._drop(wanted)
        for waiter in [w for w in wanted.waiters if not w.done()]:
            if instance is not None:
                waiter.set_result(Lease(instance))
            elif error is not None:
                waiter.set_exception(again(error))
        for watcher in [w for w in wanted.watchers if not w.done()]:
            if error is None:
                watcher.set_result(None)
            else:
                watcher.set_exception(again(error))

    def disband(self, error: EdgeError) -> None:
        """The node stops: nobody is served any more."""
        for wanted in self._line.copy():
            self.conclude(wanted, error)

    def _drop(self, wanted: Wanted) -> None:
        if wanted in self._line:
            self._line.remove(wanted)
            wanted.model.wanted = None


async def end_of(wanted: Wanted) -> None:
    """Wait until it is loaded. Raises why it was not."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    wanted.watchers.append(future)
    await future
