"""Writing so that a power cut leaves the old or the new, and locks that die with their process."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from edge.errors import DiskFull, EdgeError, StoreBusy, StoreUnwritable

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
"""What flock(2) says on file systems without locks; the last is NFS, of a directory: it wants to have it open for writing."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Nothing more can be written there, whoever says so."""


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace a small file as a whole; on return it is on the disk. `mode` None: as the umask has it. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        with open(os.open(draft, flags, 0o666 if mode is None else 0o600), "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    sync_directory(path.parent)


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


def lock(descriptor: int, *, wait: bool) -> None:
    """Take the lock of an open file. On a file system without locks nothing is held, as a node says when it starts there: keys
    and certificates have to be changed on such a box too. Raises BlockingIOError, OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock that the kernel takes back when this process ends, however it ends.

    The file stays: removing it would let two processes hold locks on two files of one name. Raises StoreBusy when another
    process holds it and `wait` is not set.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # who may read it could hold the lock
    except OSError as error:
        raise storage_error(error, path.parent) from None
    try:
        try:
            lock(descriptor, wait=wait)
        except BlockingIOError:
            raise StoreBusy(f"another process is at work on {what}; wait for it to end") from None
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds this lock at the moment."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        lock(descriptor, wait=False)
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
