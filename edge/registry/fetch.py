"""Fetches one file into a partial: goes on where it stopped, tries again, and ends with bytes that were summed up.

RFC 9110: `Range` with `If-Range` (14.2, 13.1.5), so that a server answers with the rest only if its file is still the same.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import httpx

from edge.durable import FULL, storage_error
from edge.errors import DiskFull, DownloadFailed
from edge.quantities import size
from edge.registry import space
from edge.registry.partial import Growing, Partial, State
from edge.registry.source import Located
from edge.registry.web import Answer, Interrupted, ask, chunks

_LONG_READ_BYTES = 256 << 20
_LOOK_BYTES = 16 << 20


class Observer(Protocol):
    """Who shows a download to people. Called from the thread that downloads."""

    def begins(self, file: str, have_bytes: int, size_bytes: int | None) -> None:
        """A file begins, or begins anew."""
        ...

    def has(self, have_bytes: int) -> None:
        """So much of it is here."""
        ...

    def notes(self, text: str) -> None:
        """Something that a person may want to know, such as a pause."""
        ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on with a server that fails. A try that brought bytes starts the count anew."""

    tries: int = 7
    first_tries: int = 4
    """Where nobody answers and nothing is here yet: the address may be misspelt."""
    restarts: int = 4
    """From the first byte, because the server does not go on in the middle or its file changed."""
    pause_s: float = 0.5
    longest_pause_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole file, checked against its sum if one was known. `stated`: that sum, whoever stated it."""

    sha256: str
    size_bytes: int
    stated: bool


class _Wrong(Exception):
    """What is here cannot be the beginning of the file; start from its first byte."""


class Fetch:
    """One download. `run` it once, while the partial is held. `state` says what is fetched, for a partial that is new."""

    def __init__(
        self,
        web: httpx.Client,
        located: Located,
        partial: Partial,
        state: State,
        observer: Observer,
        patience: Patience,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._web, self._located, self._partial = web, located, partial
        self._first, self._observer, self._patience, self._sleep = state, observer, patience, sleep
        self._size, self._sha256 = located.size_bytes, located.sha256
        self._restarts = 0
        self.refused = False
        """Whether it was fetched whole, and was another file."""

    def run(self) -> Fetched:
        """Raises DownloadFailed, DiskFull, StoreUnwritable. Whatever is raised, what is here can be gone on with."""
        try:
            self._partial.trust_only_durable()
            fetched = self._fetch()
            if self._sha256 is not None and fetched.sha256 != self._sha256:
                fetched = self._once_more(fetched)
            return fetched
        except OSError as error:
            raise self._storage_error(error) from None

    def _once_more(self, fetched: Fetched) -> Fetched:
        """A sum that is wrong once is the network's or the disk's; twice, it is another file."""
        self._partial.discard()
        self._observer.notes(f"{self._located.file} came damaged (sha256 {fetched.sha256[:12]}...); fetched once more")
        again = self._fetch()
        if again.sha256 == self._sha256:
            return again
        self._partial.discard()
        self.refused = True
        raise DownloadFailed(
            f"{self._located.shown} is refused: its sha256 is {again.sha256[:12]}..., {str(self._sha256)[:12]}... was expected, "
            "and fetching it a second time did not help: it is another file, or something on the way changes it; nothing is kept"
        )

    def _fetch(self) -> Fetched:
        growing = Growing(self._partial, self._partial.state or self._state(None))
        try:
            have = self._partial.have_bytes
            self._observer.begins(self._located.file, have, self._size)
            if have > _LONG_READ_BYTES:
                self._observer.notes(f"reading the {size(have)} that are here, for the checksum")
            growing.take_in()
            self._until_whole(growing)
            growing.checkpoint()
        finally:
            growing.close()
        return Fetched(growing.sha256, growing.have, self._sha256 is not None)

    def _until_whole(self, growing: Growing) -> None:
        failures = 0
        while not self._whole(growing):
            before = growing.have
            try:
                self._piece(growing)
                continue
            except _Wrong as wrong:
                self._restart(growing, str(wrong))
                failures = 0
                continue
            except Interrupted as error:
                interruption = error
            failures = 0 if growing.have > before else failures + 1
            first = not interruption.reached and not growing.have
            if failures >= (min(self._patience.first_tries, self._patience.tries) if first else self._patience.tries):
                kept = f"; {size(growing.have)} are here, the same command goes on from there" if growing.have else ""
                raise DownloadFailed(
                    f"{self._located.shown} cannot be fetched: {interruption.what}, {failures} times in a row{kept}"
                )
            self._pause(interruption, failures)

    def _whole(self, growing: Growing) -> bool:
        if self._size is None or growing.have < self._size:
            return False
        if growing.have > self._size:  # the file shrank since, or it is another one
            growing.begin_anew(self._state(None))
            return self._size == 0
        return True

    def _restart(self, growing: Growing, why: str) -> None:
        self._restarts += 1
        if self._restarts > self._patience.restarts:
            raise DownloadFailed(
                f"{self._located.shown} cannot be fetched: {why}, and the connection broke off {self._restarts} times; "
                "fetch the file by other means and use `edge models add`"
            )
        self._observer.notes(f"{why}: {self._located.file} begins anew")
        self._size, self._sha256 = self._located.size_bytes, self._located.sha256  # what was learnt was of another file
        growing.begin_anew(self._state(None))
        self._observer.begins(self._located.file, 0, self._size)

    def _pause(self, interruption: Interrupted, failures: int) -> None:
        patience = self._patience
        pause_s = min(patience.pause_s * 2 ** max(0, failures - 1), patience.longest_pause_s) * random.uniform(
            0.75, 1.25
        )
        if interruption.retry_after_s is not None:
            pause_s = max(pause_s, interruption.retry_after_s)
        self._observer.notes(f"{interruption.what}; on it goes in {pause_s:.1f} s")
        self._sleep(pause_s)

    def _piece(self, growing: Growing) -> None:
        """One request, as far as it gets."""
        headers = {}
        if growing.have:
            validator = growing.state.validator
            if validator is None and self._sha256 is None:
                raise _Wrong("the server gives no mark by which to tell that its file is still the same")
            headers["range"] = f"bytes={growing.have}-"
            if validator is not None:
                headers["if-range"] = validator
        with ask(self._web, "GET", self._located, headers) as answer:
            self._begin(growing, answer)
            self._sha256 = self._sha256 or answer.sha256
            if answer.status == 416:  # nothing is missing
                return
            room = None if self._size is None else self._size - growing.have
            looked = growing.have
            for chunk in chunks(answer, self._located):
                if room is not None:
                    room -= len(chunk)
                    if room < 0:
                        raise _Wrong(f"the server sends more than the {self._size} bytes that it announced")
                growing.append(chunk)
                self._observer.has(growing.have)
                if room is None and growing.have - looked >= _LOOK_BYTES:
                    looked = growing.have
                    self._keep_reserve()
            if self._size is None:
                self._size = growing.have  # the body ended as HTTP says that it ends
            elif growing.have < self._size:
                raise Interrupted("the server ended the file too early")

    def _keep_reserve(self) -> None:
        """Of a file whose size nobody states no more comes than leaves the disk its reserve. Raises OSError."""
        if space.free_bytes(self._partial.path.parent) < space.RESERVE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _begin(self, growing: Growing, answer: Answer) -> None:
        """What the answer's head means for what is here."""
        if answer.status == 206:
            self._go_on(growing, answer)
        elif answer.status == 416:
            if answer.span is None or answer.span.size_bytes != growing.have:
                raise _Wrong("the server has less of the file than is here already")
            self._learn_size(growing.have)
        elif growing.have:
            self._restart(growing, "the server has another file now, or does not go on in the middle")
            self._begin_whole(growing, answer)
        else:
            self._begin_whole(growing, answer)

    def _begin_whole(self, growing: Growing, answer: Answer) -> None:
        self._learn_size(answer.length)
        growing.begin_anew(self._state(answer.validator))
        if self._size is not None:
            space.require_space(self._partial.path.parent, self._size)
        self._observer.begins(self._located.file, 0, self._size)

    def _go_on(self, growing: Growing, answer: Answer) -> None:
        span = answer.span
        if span is None or span.first != growing.have:
            raise _Wrong("the server sends another part than was asked for")
        if answer.contradicts(growing.state.validator):  # it knows ranges, and no conditions for them
            raise _Wrong("the server has another file now")
        self._learn_size(span.size_bytes)

    def _learn_size(self, size: int | None) -> None:
        if size is None:
            return
        if self._size is not None and self._size != size:
            if self._located.size_bytes is not None:
                raise DownloadFailed(
                    f"{self._located.shown} has {size} bytes, {self._size} were expected: it is not the file that was meant"
                )
            raise _Wrong("the file's size changed meanwhile")
        self._size = size

    def _state(self, validator: str | None) -> State:
        return self._first.model_copy(update={"size_bytes": self._size, "validator": validator})

    def _storage_error(self, error: OSError) -> Exception:
        where = self._partial.path.parent
        if error.errno not in FULL:
            return storage_error(error, where)
        of = "" if self._size is None else f" of {size(self._size)}"
        return DiskFull(
            f"the disk of {where} is full: {size(self._partial.have_bytes)}{of} of {self._located.file} are here and kept; "
            "free some space (`edge models prune`), then the same command goes on from there"
        )
