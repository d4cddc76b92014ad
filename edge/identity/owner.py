"""Root at work in a home that is somebody else's.

Whoever owns the home can put a link anywhere in it, at any moment, and what root does through it is done to the rest of the
machine: to check first is no help. So root becomes the owner before it touches anything there.
"""

from __future__ import annotations

import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a home belongs to."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def other_owner(home: Path) -> Owner | None:
    """The owner of that home, or of where it will be made, if this process is root and he is not."""
    if os.geteuid() != 0:
        return None
    place = next(path for path in (home, *home.parents) if path.exists())
    found = place.stat()
    if found.st_uid == 0:
        return None
    try:
        entry = pwd.getpwuid(found.st_uid)
    except KeyError:  # a container's user needs no entry
        return Owner(found.st_uid, found.st_gid, (found.st_gid,))
    return Owner(entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def become(owner: Owner, home: Path) -> None:
    """For good, and in all threads. `home` stays the one that root meant. Raises ConfigurationError."""
    os.environ["EDGE_HOME"] = str(home)
    try:
        os.setgroups(owner.groups)
        os.setresgid(owner.gid, owner.gid, owner.gid)
        os.setresuid(owner.uid, owner.uid, owner.uid)
    except OSError as error:
        raise ConfigurationError(
            f"{home} belongs to user {owner.uid}, and this process may not become that user ({error.strerror}); run the "
            "command as that user"
        ) from None
    if not all(os.access(file, os.R_OK) for file in (os.__file__, __file__)):
        raise ConfigurationError(
            f"{home} belongs to user {owner.uid}, who cannot read the Python or the edge that root runs here ({os.__file__}, "
            f"{__file__}); install edge where that user reaches it, and run it from there"
        )


def roots_own(path: Path) -> Path | None:
    """That file without links on the way, if nobody but root can put another into its place; else None."""
    try:
        place = path.resolve(strict=True)
        above = [one.stat() for one in place.parents]
    except OSError:
        return None
    sound = all(one.st_uid == 0 and (not one.st_mode & 0o022 or one.st_mode & stat.S_ISVTX) for one in above)
    return place if sound and place.stat().st_uid == 0 else None
