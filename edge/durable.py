"""Writing so that a power cut leaves the old or the new, and locks that die with their process.

A file is written as a draft beside it, which gets its name when it is on the disk. Whoever writes a draft holds its lock
meanwhile; so a draft that can be locked is one that a killed process left, and whoever writes there next removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from edge.errors import DiskFull, EdgeError, StoreBusy, StoreUnwritable

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Nothing more can be written there, whoever says so."""
DRAFTS = ".*.draft"
"""A pattern for drafts, for owners of a directory who know that nobody writes there."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
"""What flock(2) says on file systems without locks; the last is NFS, of a directory: it wants to have it open for writing."""
_DRAFT_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.draft", re.DOTALL)
_NAME_LETTERS = 50
"""So much of a file's name is in its draft's: four bytes each at most, and a name may have 255."""
_TRIES = 100
_AGAIN_S = 0.01
_LOCK_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
"""Root locks in directories of others: it must not lead elsewhere."""

Before = Callable[[str], None]


def unwatched(_: str) -> None:
    """Nobody looks."""


# --- files ------------------------------------------------------------------------------------------------------------


def write_atomically(
    path: Path,
    data: bytes | Iterable[bytes | memoryview],
    mode: int | None = None,
    *,
    owner: tuple[int, int] | None = None,
    before: Before = unwatched,
) -> None:
    """Replace a file as a whole; on return it is on the disk. `mode` None: as the umask has it; never has it more rights than
    that in between. `owner`: user and group to give it to, see `heirs`. `before` hears of each effect first. Raises OSError."""
    tidy_drafts(path.parent)
    before(f"draft {path.name}")
    draft, descriptor = _new_draft(path, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.writelines([data] if isinstance(data, bytes) else data)
            before(f"sync {path.name}")
            file.flush()
            os.fsync(descriptor)
            before(f"place {path.name}")
            draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_directory(path.parent)


def _new_draft(path: Path, mode: int) -> tuple[Path, int]:
    """A file of a name that was never there, open and locked."""
    for _ in range(_TRIES):
        draft = path.with_name(f".{path.name[:_NAME_LETTERS]}.{secrets.token_hex(8)}.draft")
        descriptor = os.open(draft, _LOCK_FLAGS | os.O_CREAT | os.O_EXCL, mode)
        try:
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                lock(descriptor, wait=False)
                if os.path.samestat(os.lstat(draft), os.fstat(descriptor)):
                    return draft, descriptor
        except BaseException:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        os.close(descriptor)  # who tidies up was quicker: it was taken for one that somebody left
        draft.unlink(missing_ok=True)
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))


def tidy_drafts(directory: Path) -> None:
    """Remove the drafts there whose writers are dead: files with a draft's name, of this user (root's hand reaches all), which
    nobody holds. Where there are no locks nobody can tell, and all stay."""
    with contextlib.suppress(OSError):
        place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(place):
                if _DRAFT_NAME.fullmatch(name):
                    with contextlib.suppress(OSError):
                        _tidy(place, name)
        finally:
            os.close(place)


def _tidy(place: int, name: str) -> None:
    descriptor = os.open(name, _LOCK_FLAGS | os.O_NONBLOCK, dir_fd=place)
    try:
        found = os.fstat(descriptor)
        ours = stat.S_ISREG(found.st_mode) and os.geteuid() in (0, found.st_uid)
        if ours and not lock(descriptor, wait=False):
            os.unlink(name, dir_fd=place)
    finally:
        os.close(descriptor)


def heirs(directory: Path) -> tuple[int, int] | None:
    """To whom root has to give what it makes in a directory of somebody else's; None if there is nothing to give. Raises
    OSError."""
    if os.geteuid() != 0:
        return None
    found = directory.stat()
    return (found.st_uid, found.st_gid) if found.st_uid != 0 else None


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where the file system can. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # fsync(2): it has nothing of the kind
            raise
    finally:
        os.close(descriptor)


# --- locks ------------------------------------------------------------------------------------------------------------


def open_lock(path: Path) -> int:
    """A descriptor of a file to lock, which is made if need be. Children do not inherit it. Raises OSError."""
    return os.open(path, _LOCK_FLAGS | os.O_CREAT, 0o600)  # who may read it could hold the lock


def lock(descriptor: int, *, wait: bool, shared: bool = False, patience_s: float = 0.0) -> str:
    """Take the lock of an open file, until it is closed or this process ends, however it ends. Shared: beside others who take
    it so. Returns why nothing is held, on file systems without locks, and nothing if it is: a box on such a one has to work
    too, and whoever asks knows whether that is worth a word. Raises BlockingIOError if another holds it, still after
    `patience_s`, and OSError."""
    give_up_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            return ""
        except BlockingIOError:
            if time.monotonic() >= give_up_s:
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return error.strerror or str(error)
        time.sleep(_AGAIN_S)


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file; on file systems without locks nothing is held.

    The file stays: removing it would let two processes hold locks on two files of one name. Raises StoreBusy when another
    process holds it, still after `patience_s`, and `wait` is not set.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(path)
    except OSError as error:
        raise storage_error(error, path.parent) from None
    try:
        try:
            lock(descriptor, wait=wait, patience_s=patience_s)
        except BlockingIOError:
            raise StoreBusy(f"another process is at work on {what}; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock at the moment. To look is to hold it for a moment, beside others who look: who
    takes such a lock has some patience."""
    try:
        descriptor = os.open(path, _LOCK_FLAGS)
    except OSError:
        return False
    try:
        lock(descriptor, wait=False, shared=True)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def storage_error(error: OSError, where: Path) -> EdgeError:
    """What a failed write means to people."""
    if error.errno in FULL:
        return DiskFull(
            f"the disk of {where} is full ({error.strerror}); free some space, `edge models prune` may help"
        )
    return StoreUnwritable(
        f"{where} cannot be written ({error.strerror or error}); give this user the directory, or choose another with "
        "EDGE_HOME or --home"
    )
