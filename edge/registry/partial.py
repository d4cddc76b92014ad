"""A download that is not finished: its bytes, and beside them what is needed to go on with it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edge.durable import is_locked, locked, sync_directory, write_atomically
from edge.errors import StoreBusy
from edge.registry.digest import BLOCK_BYTES
from edge.registry.source import file_mode

CHECKPOINT_BYTES = 32 << 20
"""At most so much is lost to a power cut; a process that is killed loses nothing."""
STATE_VERSION = 1
_LOOKS_S = 0.5
"""Who asks whether a download is `busy` holds its lock for a moment; a stall of the machine may come in between."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class State(BaseModel):
    """What is known of an unfinished download. `durable_bytes` are on the disk even if the power fails."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: int = STATE_VERSION
    model: str
    source: str
    """As it was asked for, so that it can be asked for again; without credentials."""
    file: str
    size_bytes: int | None = None
    validator: str | None = None
    durable_bytes: int = 0
    boot: str = ""


class Partial:
    """One unfinished download. Whoever writes holds its lock, from `open` to `close`; others may look at `state` and `have`."""

    def __init__(self, directory: Path, key: str) -> None:
        self.path = directory / f"{key}.part"
        self._state_path = directory / f"{key}.json"
        self._lock_path = directory.parent / "locks" / f"partial-{key}"

    @classmethod
    def all_in(cls, directory: Path) -> list[Partial]:
        """Every one there is, however little is left of it."""
        keys = {path.stem for ending in ("*.part", "*.json") for path in directory.glob(ending) if path.stem[0] != "."}
        return [cls(directory, key) for key in sorted(keys)]

    @property
    def state(self) -> State | None:
        """None if there is none, or none that can be read: of a newer version too, and then the download begins anew."""
        try:
            found = State.model_validate_json(self._state_path.read_bytes())
        except (OSError, ValidationError):
            return None
        return found if found.version <= STATE_VERSION else None

    @property
    def have_bytes(self) -> int:
        """How much is here."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def disk_bytes(self) -> int:
        """Space that it takes on the disk."""
        try:
            return self.path.stat().st_blocks * 512
        except OSError:
            return 0

    @property
    def touched_s(self) -> float:
        """When it was last written to, in seconds since 1970; 0 if nothing is there."""
        times = [0.0]
        for path in (self.path, self._state_path):
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times)

    @property
    def busy(self) -> bool:
        """Whether a living process works on it."""
        return is_locked(self._lock_path)

    @contextlib.contextmanager
    def held(self, what: str) -> Iterator[None]:
        """Be the only one at work on it. Raises StoreBusy."""
        with locked(self._lock_path, what, patience_s=_LOOKS_S):
            yield

    def discard(self) -> None:
        """Throw it away. The state goes first: bytes without a state are not gone on with."""
        for path in (self._state_path, self.path):
            path.unlink(missing_ok=True)

    def discard_idle(self) -> int:
        """Throw it away unless a living process works on it, which would go on writing into nothing. Returns bytes freed."""
        with contextlib.suppress(StoreBusy), self.held(self.path.name):
            freed = self.disk_bytes
            self.discard()
            return freed
        return 0

    def save(self, state: State) -> None:
        """Write the state down, with this boot's mark."""
        text = state.model_copy(update={"boot": boot_id()}).model_dump_json()
        write_atomically(self._state_path, text.encode(), file_mode(state.source))

    def forget_state(self) -> None:
        """The bytes have become a blob."""
        self._state_path.unlink(missing_ok=True)

    def trust_only_durable(self) -> None:
        """Cut off what a power cut since then may have spoilt: without this boot's mark only checkpointed bytes count."""
        state = self.state
        if state is None:
            self.path.unlink(missing_ok=True)
        elif state.boot != boot_id() and self.have_bytes > state.durable_bytes:
            os.truncate(self.path, state.durable_bytes)


class Growing:
    """A partial's file while it is written: appends, sums up, and makes durable from time to time. Raises OSError."""

    def __init__(self, partial: Partial, state: State) -> None:
        self.state = state
        self._partial = partial
        fresh = not partial.path.exists()
        self._descriptor = os.open(partial.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if fresh:
            sync_directory(partial.path.parent)
        self.have = 0
        self._digest = hashlib.sha256()
        self._written_down = 0

    def close(self) -> None:
        """Write down how far it came, as well as the disk allows."""
        try:
            with contextlib.suppress(OSError):
                self.checkpoint()
        finally:
            os.close(self._descriptor)

    def take_in(self) -> None:
        """Sum up what is here already."""
        while block := os.pread(self._descriptor, BLOCK_BYTES, self.have):
            self._digest.update(block)
            self.have += len(block)
        self._written_down = self.have

    def begin_anew(self, state: State) -> None:
        """Nothing of what is here counts.

        The order matters: the old file must be gone before the new file's validator is written down, else the two could
        be joined.
        """
        os.ftruncate(self._descriptor, 0)
        self.have, self._written_down, self._digest = 0, 0, hashlib.sha256()
        self.state = state.model_copy(update={"durable_bytes": 0})
        self._partial.save(self.state)

    def append(self, data: bytes) -> None:
        """Write all of it, or raise OSError with as much kept as went in."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, self.have)
            self._digest.update(view[:count])
            self.have += count
            view = view[count:]
        if self.have - self._written_down >= CHECKPOINT_BYTES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Bytes first, then the state that vouches for them."""
        os.fsync(self._descriptor)
        self.state = self.state.model_copy(update={"durable_bytes": self.have})
        self._partial.save(self.state)
        self._written_down = self.have

    @property
    def sha256(self) -> str:
        """Of all that is here."""
        return self._digest.hexdigest()


def boot_id() -> str:
    """Changes with each start of the machine."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
