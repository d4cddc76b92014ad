"""From a model's name or path to a file that is fit to be loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.errors import ModelUnusable
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.manifest import Manifest, read_manifest

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A file that passed its header check and, if it has a manifest, its checksum."""

    name: str
    path: Path
    header: GgufHeader
    manifest: Manifest | None


def model_directories(home: Path) -> list[Path]:
    """Where manifests lie: the operator's own first, then those that came with this installation."""
    package = Path(__file__).parent.parent
    installed = package / "_models"
    return [home / "models", installed if installed.is_dir() else package.parent / "models"]


class Registry:
    """The models known to this node.

    `verified` is a file that remembers checksums by size and modification time, so that a large file is read whole once
    and not at every start. It is a cache: losing it costs time only.
    """

    def __init__(self, directories: Sequence[Path], verified: Path) -> None:
        self._directories = directories
        self._verified = verified

    def manifests(self) -> dict[str, tuple[Manifest, Path]]:
        """Every manifest and where it lies, by model name; the first directory wins. Raises ConfigurationError."""
        found: dict[str, tuple[Manifest, Path]] = {}
        for directory in self._directories:
            for path in sorted(directory.glob("*.toml")):
                manifest = read_manifest(path)
                found.setdefault(manifest.name, (manifest, path))
        return found

    def resolve(self, wish: str, on_checksum: Callable[[Path], None] | None = None) -> ResolvedModel:
        """Find a model by name or path and check its file; `on_checksum` is told before a long read.

        Raises ModelUnusable that says what is wrong with it, ConfigurationError for a broken manifest.
        """
        known = self.manifests()
        if wish in known:
            manifest, where = known[wish]
            path = where.parent / manifest.file
            if not path.exists():
                raise ModelUnusable(f"model {wish} is known but its file is not here: put {manifest.source} at {path}")
            header = read_header(path)
            self._verify(path, manifest, on_checksum)
            return ResolvedModel(wish, path, header, manifest)
        path = Path(wish).expanduser()
        if os.path.exists(path) or path.suffix == ".gguf" or "/" in wish:
            return ResolvedModel(path.stem, path.absolute(), read_header(path), None)
        names = ", ".join(sorted(known)) or "none"
        raise ModelUnusable(f"unknown model {wish!r}: known are {names}; or give the path of a .gguf file")

    def _verify(self, path: Path, manifest: Manifest, on_checksum: Callable[[Path], None] | None) -> None:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, manifest.sha256]
        known = self._remembered()
        if known.get(str(path)) == stamp:
            return
        if on_checksum is not None:
            on_checksum(path)
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        if digest.hexdigest() != manifest.sha256:
            raise ModelUnusable(
                f"{path} is not the file that its manifest names (sha256 {digest.hexdigest()[:12]}..., expected "
                f"{manifest.sha256[:12]}...): get it again"
            )
        self._remember({**known, str(path): stamp})

    def _remembered(self) -> dict[str, object]:
        try:
            found = json.loads(self._verified.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, known: dict[str, object]) -> None:
        draft = self._verified.with_suffix(f".{os.getpid()}")
        try:
            self._verified.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(known, indent=1), "utf-8")
            draft.replace(self._verified)
        except OSError:  # a read-only or full home: the checksum is computed at every start
            with contextlib.suppress(OSError):
                draft.unlink()
