"""Durable writing for the identity's directory: nothing in it can be read by others, and a power cut leaves the old or the new.

Every effect is announced to `before` first. In a node that does nothing; trials use it to end the process at each of them.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edge.durable import Before, heirs, sync_directory, unwatched, write_atomically

PRIVATE_FILE, PRIVATE_DIRECTORY = 0o600, 0o700
DRAFT = ".draft-"
"""What the names of unfinished links begin with."""


class Files:
    """Writes for the owner of the home directory: root may enroll a node that runs as somebody else. Methods raise OSError."""

    def __init__(self, owner_of: Path, before: Before = unwatched) -> None:
        self._owner_of, self.before = owner_of, before

    def make_directory(self, path: Path) -> None:
        """With 0700, if it is not there."""
        if path.is_dir():
            return
        self.before(f"make {path.name}/")
        path.mkdir(mode=PRIVATE_DIRECTORY)
        self.give(path)
        sync_directory(path.parent)

    def write(self, path: Path, data: bytes) -> None:
        """A file with 0600, whole and on the disk at once, or not at all."""
        write_atomically(path, data, PRIVATE_FILE, owner=heirs(self._owner_of), before=self.before)

    def move(self, source: Path, target: Path) -> None:
        """A directory to where there is none."""
        self.before(f"move {source.name}/")
        source.rename(target)
        sync_directory(target.parent)
        sync_directory(source.parent)

    def point(self, link: Path, target: str) -> None:
        """The link leads to `target` from now on: the one moment at which an identity changes."""
        draft = link.with_name(f"{DRAFT}{link.name}")
        draft.unlink(missing_ok=True)
        draft.symlink_to(target)
        self.give(draft)
        self.before(f"point {link.name}")
        draft.replace(link)
        sync_directory(link.parent)

    def remove(self, path: Path) -> None:
        """A file, link or whole directory, whether it is there or not. A directory loses its key first."""
        if not path.is_symlink() and not path.exists():
            return
        self.before(f"remove {path.name}")
        if path.is_dir() and not path.is_symlink():
            (path / "key.pem").unlink(missing_ok=True)
            shutil.rmtree(path)
        else:
            path.unlink()
        sync_directory(path.parent)

    def give(self, path: Path) -> None:
        """To the owner of the home directory, where root works in somebody else's."""
        if (owner := heirs(self._owner_of)) is not None:
            os.chown(path, *owner, follow_symlinks=False)
