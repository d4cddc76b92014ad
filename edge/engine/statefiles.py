"""What an engine leaves on disk for its next start: how long passes take, and the cells of prefixes.

Everything is filed under what it depends on (model, library, machine, plan) and checked when it is read. A file that does not
pass is dropped and made anew: nothing here is worth a refused start, and nothing damaged is ever served.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edge.durable import DRAFTS, write_atomically
from edge.engine.calibrate import Threads
from edge.engine.steps import StepTable

_MAGIC = b"edge-cells-2\n"
_STEPS_VERSION = 1
_LENGTH_BYTES = 8
_LARGEST_HEAD_BYTES = 64 << 20
_PINNED, _PREFIX = ".cells", ".prefix"
_STEPS = "steps.json"
_UNUSED_S = 30 * 86_400.0


class KeptSteps(msgspec.Struct, frozen=True):
    """A calibration: its table, and the threads it was measured with. `made_for`: what it depends on."""

    version: int
    made_for: str
    decode_threads: int
    prefill_threads: int
    table: StepTable
    sha256: str = ""
    """Of the rest, this being empty."""

    def sealed(self) -> KeptSteps:
        """The same with its checksum."""
        bare = msgspec.structs.replace(self, sha256="")
        return msgspec.structs.replace(bare, sha256=hashlib.sha256(msgspec.json.encode(bare)).hexdigest())


class _CellsHead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    made_for: str
    owner: str
    tokens: list[int]
    size: int
    sha256: str
    """Of the cells and of everything above."""


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """Cells that were worth keeping at a stop: `owner` is their namespace, `state` uint8[size]."""

    owner: str
    tokens: list[int]
    state: npt.NDArray[np.uint8]


class StateFiles:
    """One engine's directory. Losing it costs time at the next start, nothing else."""

    def __init__(self, directory: Path | None, depends_on: Iterable[str]) -> None:
        self._made_for = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:24]
        self._directory = directory / self._made_for if directory is not None else None
        self.complaint = ""
        """Why the last write failed; empty if it did not."""

    def complain(self, consequence: str) -> bool:
        """Say on standard error that the last write failed, and what follows from that. False if it did not fail."""
        if self.complaint:
            print(f"engine: {self.complaint}; {consequence}", file=sys.stderr, flush=True)
        return bool(self.complaint)

    def read_steps(self) -> tuple[StepTable, Threads] | None:
        """The kept calibration, None if there is none that can be used."""
        if self._directory is None:
            return None
        try:
            kept = msgspec.json.decode((self._directory / _STEPS).read_bytes(), type=KeptSteps)
        except (OSError, ValueError, msgspec.DecodeError):
            return None
        if (kept.version, kept.made_for) != (_STEPS_VERSION, self._made_for) or kept != kept.sealed():
            return None
        return kept.table, Threads(kept.decode_threads, kept.prefill_threads)

    def write_steps(self, table: StepTable, threads: Threads) -> None:
        """Keep a calibration."""
        kept = KeptSteps(_STEPS_VERSION, self._made_for, threads.decode, threads.prefill, table)
        self._write(_STEPS, [msgspec.json.encode(kept.sealed())])

    # --- pinned prefixes ----------------------------------------------------------------------------------------------

    def read_cells(self, tokens: Sequence[int]) -> npt.NDArray[np.uint8] | None:
        """The kept cells of exactly these pinned tokens: uint8[size]; None if there are none. A damaged file is deleted."""
        if self._directory is None:
            return None
        path = self._directory / _name(tokens, "", _PINNED)
        read = self._read(path)
        if read is None:
            return None
        head, state = read
        if head.tokens != list(tokens):
            self._drop(path)
            return None
        return state

    def write_cells(self, tokens: Sequence[int], state: npt.NDArray[np.uint8]) -> None:
        """Keep the cells of these pinned tokens."""
        self._write_cells(_PINNED, tokens, "", state)

    def keep_only(self, pinned: Iterable[Sequence[int]]) -> None:
        """Delete cells of prefixes that are not pinned any more."""
        self._keep_only(_PINNED, {_name(tokens, "", _PINNED) for tokens in pinned})

    # --- prefixes over a restart --------------------------------------------------------------------------------------

    def read_prefixes(self, room_bytes: int) -> Iterator[KeptPrefix]:
        """What was kept at the last stop, as far as it fits into `room_bytes`. Damaged files are deleted."""
        if self._directory is None:
            return
        for path in sorted(self._directory.glob(f"*{_PREFIX}")):
            with contextlib.suppress(OSError):
                if path.stat().st_size > room_bytes:
                    continue
            if (read := self._read(path)) is not None:
                head, state = read
                room_bytes -= len(state)
                yield KeptPrefix(head.owner, head.tokens, state)

    def write_prefix(self, tokens: Sequence[int], owner: str, state: npt.NDArray[np.uint8]) -> None:
        """Keep the cells of these tokens over a restart."""
        self._write_cells(_PREFIX, tokens, owner, state)

    def tidy(self) -> None:
        """Delete what other models or plans kept over a restart, and drafts that a power cut left: what users sent does not lie
        about longer than it is of use. What nobody has used for a month goes too: each version of a model leaves something."""
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            os.utime(self._directory)
        with contextlib.suppress(OSError):
            for path in self._directory.parent.glob(f"*/*{_PREFIX}"):
                if path.parent != self._directory:
                    self._drop(path)
            for path in self._directory.parent.glob(f"*/{DRAFTS}"):
                self._drop(path)
            long_ago = time.time() - _UNUSED_S
            for other in [path for path in self._directory.parent.iterdir() if path.stat().st_mtime < long_ago]:
                for path in (*other.glob(f"*{_PINNED}"), other / _STEPS):
                    self._drop(path)
                with contextlib.suppress(OSError):  # of further models: each has a directory of its own in it
                    other.rmdir()

    def keep_only_prefixes(self, kept: Iterable[tuple[Sequence[int], str]]) -> None:
        """Delete all but these (tokens, owner)."""
        self._keep_only(_PREFIX, {_name(tokens, owner, _PREFIX) for tokens, owner in kept})

    # --- parts --------------------------------------------------------------------------------------------------------

    def _read(self, path: Path) -> tuple[_CellsHead, npt.NDArray[np.uint8]] | None:
        """A file of cells. None if it is not there; if it is not what it should be, it is deleted."""
        try:
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    raise ValueError("not ours")
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                if length > _LARGEST_HEAD_BYTES:
                    raise ValueError("head too long")
                head = msgspec.msgpack.decode(file.read(length), type=_CellsHead)
                state = np.fromfile(file, np.uint8)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.DecodeError):
            self._drop(path)
            return None
        whole = len(state) == head.size and _seal(head.made_for, head.owner, head.tokens, state) == head.sha256
        if not whole or head.made_for != self._made_for:
            self._drop(path)
            return None
        return head, state

    def _write_cells(self, suffix: str, tokens: Sequence[int], owner: str, state: npt.NDArray[np.uint8]) -> None:
        digest = _seal(self._made_for, owner, list(tokens), state)
        head = msgspec.msgpack.encode(_CellsHead(self._made_for, owner, list(tokens), len(state), digest))
        length = len(head).to_bytes(_LENGTH_BYTES, "little")
        self._write(_name(tokens, owner, suffix), [_MAGIC, length, head, state.data])

    def _keep_only(self, suffix: str, wanted: set[str]) -> None:
        if self._directory is None:
            return
        with contextlib.suppress(OSError):
            for path in self._directory.glob(f"*{suffix}"):
                if path.name not in wanted:
                    self._drop(path)

    def _write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Whole or not at all. A full or read-only disk is no reason to stop."""
        if self._directory is None:
            return
        self.complaint = ""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self._directory / name, parts, 0o600)
        except OSError as error:
            self.complaint = f"{self._directory / name} cannot be written: {error.strerror}"

    @staticmethod
    def _drop(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()


def _seal(made_for: str, owner: str, tokens: list[int], state: npt.NDArray[np.uint8]) -> str:
    digest = hashlib.sha256(msgspec.msgpack.encode((made_for, owner, tokens)))
    digest.update(state.data)
    return digest.hexdigest()


def _name(tokens: Sequence[int], owner: str, suffix: str) -> str:
    key = np.asarray(tokens, np.int32).tobytes() + owner.encode()
    return hashlib.sha256(key).hexdigest()[:32] + suffix
