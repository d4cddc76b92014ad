"""What an engine leaves on disk for its next start: how long passes take, and the cells of pinned prefixes.

Everything is filed under what it depends on (model, library, machine, plan) and checked when it is read. A file that does not
pass is dropped and made anew: nothing here is worth a refused start, and nothing damaged is ever served.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from edge.engine.calibrate import Threads
from edge.engine.steps import StepTable

_MAGIC = b"edge-cells-1\n"
_STEPS_VERSION = 1
_LENGTH_BYTES = 8
_LARGEST_HEAD_BYTES = 64 << 20


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


class _CellsHead(msgspec.Struct, frozen=True):
    made_for: str
    tokens: list[int]
    size: int
    sha256: str


class StateFiles:
    """One engine's directory. Losing it costs time at the next start, nothing else."""

    def __init__(self, directory: Path | None, depends_on: Iterable[str]) -> None:
        self._made_for = hashlib.sha256("\n".join(depends_on).encode()).hexdigest()[:24]
        self._directory = directory / self._made_for if directory is not None else None
        self.complaint = ""
        """Why the last write failed; empty if it did not."""

    def read_steps(self) -> tuple[StepTable, Threads] | None:
        """The kept calibration, None if there is none that can be used."""
        if self._directory is None:
            return None
        try:
            kept = msgspec.json.decode((self._directory / "steps.json").read_bytes(), type=KeptSteps)
        except (OSError, ValueError, msgspec.DecodeError):
            return None
        if (kept.version, kept.made_for) != (_STEPS_VERSION, self._made_for) or kept != kept.sealed():
            return None
        return kept.table, Threads(kept.decode_threads, kept.prefill_threads)

    def write_steps(self, table: StepTable, threads: Threads) -> None:
        """Keep a calibration."""
        kept = KeptSteps(_STEPS_VERSION, self._made_for, threads.decode, threads.prefill, table)
        self._write("steps.json", [msgspec.json.encode(kept.sealed())])

    def read_cells(self, tokens: Sequence[int]) -> npt.NDArray[np.uint8] | None:
        """The kept cells of exactly these tokens: uint8[size]; None if there are none. A damaged file is deleted."""
        if self._directory is None:
            return None
        path = self._directory / _cells_name(tokens)
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
        whole = len(state) == head.size and hashlib.sha256(state.data).hexdigest() == head.sha256
        if not whole or (head.made_for, head.tokens) != (self._made_for, list(tokens)):
            self._drop(path)
            return None
        return state

    def write_cells(self, tokens: Sequence[int], state: npt.NDArray[np.uint8]) -> None:
        """Keep the cells of these tokens."""
        digest = hashlib.sha256(state.data).hexdigest()
        head = msgspec.msgpack.encode(_CellsHead(self._made_for, list(tokens), len(state), digest))
        length = len(head).to_bytes(_LENGTH_BYTES, "little")
        self._write(_cells_name(tokens), [_MAGIC, length, head, state.data])

    def keep_only(self, pinned: Iterable[Sequence[int]]) -> None:
        """Delete cells of prefixes that are not pinned any more."""
        if self._directory is None:
            return
        wanted = {_cells_name(tokens) for tokens in pinned}
        with contextlib.suppress(OSError):
            for path in self._directory.glob("*.cells"):
                if path.name not in wanted:
                    self._drop(path)

    def _write(self, name: str, parts: Iterable[bytes | memoryview]) -> None:
        """Whole or not at all. A full or read-only disk is no reason to stop."""
        if self._directory is None:
            return
        self.complaint = ""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".draft-", delete=False) as file:
                try:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                    Path(file.name).replace(self._directory / name)
                except BaseException:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            self.complaint = f"{self._directory / name} cannot be written: {error.strerror}"

    @staticmethod
    def _drop(path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()


def _cells_name(tokens: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()[:32] + ".cells"
