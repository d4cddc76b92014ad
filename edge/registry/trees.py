"""Models of several files as a loader wants them: under their own names, side by side. Hard links to what the store has by sum.

    store/trees/KEY/model.onnx
    store/trees/KEY/model.onnx_data

No symbolic links: onnxruntime opens no weights beside a model whose resolved path lies elsewhere. Written under the store's lock.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from edge.durable import sync_directory


class Trees:
    """The directories below `root`. A tree is whole from the moment that it has its name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, sums: Mapping[str, str]) -> Path | None:
        """Where files with these names and sums lie side by side, if they do."""
        path = self._root / _key(sums)
        return path if path.is_dir() else None

    def lay_out(self, sums: Mapping[str, str], blobs: Path) -> None:
        """Put these files side by side. Raises OSError."""
        if self.of(sums) is not None:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        draft = self._root / f".{_key(sums)}.{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            for name, sha256 in sums.items():
                _link(blobs / sha256, draft / name)
            sync_directory(draft)
            draft.rename(self._root / _key(sums))
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_directory(self._root)

    def drop_all_but(self, kept: Iterable[Mapping[str, str]]) -> None:
        """Remove the trees that no model has, and what an interrupted one left. Raises OSError."""
        names = {_key(sums) for sums in kept}
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if path.name not in names:
                shutil.rmtree(path)


def _key(sums: Mapping[str, str]) -> str:
    lines = "".join(f"{sha256} {name}\n" for name, sha256 in sorted(sums.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:40]


def _link(blob: Path, path: Path) -> None:
    try:
        os.link(blob, path)
    except FileNotFoundError:
        raise
    except OSError:  # a file system without hard links
        shutil.copyfile(blob, path)
