"""From a model's name or path to a file that is fit to be loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import ModelUnusable
from edge.registry.digest import Checksums, sha256_of
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.manifest import Manifest, read_manifest
from edge.registry.source import Builtin, Hub, Web, is_source, parse_source
from edge.registry.store import Record, Store


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A file that passed its header check and, if it has a manifest, its checksum. `files`: all of the model's, by name."""

    name: str
    path: Path
    header: GgufHeader
    manifest: Manifest | None
    files: Mapping[str, Path] = field(default_factory=dict)


def model_directories(home: Path) -> list[Path]:
    """Where manifests lie: the operator's own first, then those that came with this installation."""
    package = Path(__file__).parent.parent
    installed = package / "_models"
    return [home / "models", installed if installed.is_dir() else package.parent / "models"]


class Registry:
    """The models known to this node.

    `verified` is a file that remembers checksums by size and modification time, so that a large file is read whole once
    and not at every start. It is a cache: losing it costs time only. The store lies beside it unless `store` says where.
    """

    def __init__(self, directories: Sequence[Path], verified: Path, store: Path | None = None) -> None:
        self._directories = directories
        self.checksums = Checksums(verified)
        self.store = Store(store or verified.parent / "store", self.checksums)

    @classmethod
    def at(cls, home: Path) -> Registry:
        """The registry of an EDGE_HOME."""
        return cls(model_directories(home), home / "verified.json")

    def manifests(self) -> dict[str, tuple[Manifest, Path]]:
        """Every manifest and where it lies, by model name; the first directory wins. Raises ConfigurationError."""
        found: dict[str, tuple[Manifest, Path]] = {}
        for directory in self._directories:
            for path in sorted(directory.glob("*.toml")):
                manifest = read_manifest(path)
                found.setdefault(manifest.name, (manifest, path))
        for name, record in self.store.records().items():  # fetched under a manifest that has gone since
            found.setdefault(name, (record.manifest, self.store.root / "names" / f"{name}.json"))
        return found

    def resolve(self, wish: str, on_checksum: Callable[[Path], None] | None = None) -> ResolvedModel:
        """Find a model by name or path and check its file; `on_checksum` is told before a long read.

        Raises ModelUnusable that says what is wrong with it, ConfigurationError for a broken manifest.
        """
        known = self.manifests()
        if wish in known:
            return self._resolve_known(*known[wish], on_checksum)
        if is_source(wish):
            raise ModelUnusable(f"{wish} is not on this machine: `edge models pull {wish}` brings it here and names it")
        path = Path(wish).expanduser()
        if os.path.exists(path) or path.suffix == ".gguf" or "/" in wish:
            return ResolvedModel(path.stem, path.absolute(), read_header(path), None)
        names = ", ".join(sorted(known)) or "none"
        raise ModelUnusable(f"unknown model {wish!r}: known are {names}; or give the path of a .gguf file")

    def elsewhere(self, wish: str) -> str | None:
        """Where a model lies that could be fetched and is not on this machine; None for all others."""
        known = self.manifests()
        if wish in known:
            manifest, where = known[wish]
            here = self.beside(manifest, where) is not None or self.store.record(wish) is not None
            return manifest.source if manifest.served and not here and isinstance(manifest.where, Hub | Web) else None
        return wish if is_source(wish) and isinstance(parse_source(wish), Hub | Web) else None

    def beside(self, manifest: Manifest, where: Path) -> Path | None:
        """The main file where the manifest says that it lies, if it does."""
        path = where.parent / manifest.file if manifest.file else None
        return path if path is not None and path.exists() else None

    def _resolve_known(
        self, manifest: Manifest, where: Path, on_checksum: Callable[[Path], None] | None
    ) -> ResolvedModel:
        name = manifest.name
        if not manifest.served:
            raise ModelUnusable(
                f"model {name} is for {manifest.task}, which this version does not serve yet; `edge models list` shows which "
                "models are for chat"
            )
        path = self.beside(manifest, where)
        if path is not None:
            header = read_header(path)
            if manifest.sha256 is not None:
                self._verify(path, manifest.sha256, "that its manifest names", "get it again", on_checksum)
            return ResolvedModel(name, path, header, manifest, {manifest.main_file: path})
        record = self.store.record(name)
        if record is None:
            raise ModelUnusable(_absent(manifest, where))
        files = self._stored(manifest, record, on_checksum)
        main = files[record.files[0].file]
        return ResolvedModel(name, main, read_header(main), manifest, files)

    def _stored(
        self, manifest: Manifest, record: Record, on_checksum: Callable[[Path], None] | None
    ) -> dict[str, Path]:
        name = manifest.name
        if manifest.sha256 not in (None, record.files[0].sha256):
            raise ModelUnusable(
                f"the manifest of {name} names another file than the one that is here: `edge models pull {name}` fetches it"
            )
        missing = self.store.missing(record)
        if missing:
            raise ModelUnusable(
                f"{missing[0].file} of model {name} is not in the store any more: `edge models pull {name}` fetches it"
            )
        cure = f"`edge models verify {name}` sets it aside, then `edge models pull {name}` fetches it again"
        files = {stored.file: self.store.blob(stored.sha256) for stored in record.files}
        for stored in record.files:
            self._verify(files[stored.file], stored.sha256, f"that was fetched for {name}", cure, on_checksum)
        return files

    def _verify(
        self, path: Path, sha256: str, whose: str, cure: str, on_checksum: Callable[[Path], None] | None
    ) -> None:
        try:
            if self.checksums.holds(path, sha256):
                return
            if on_checksum is not None:
                on_checksum(path)
            computed = sha256_of(path)
            if computed != sha256:
                raise ModelUnusable(
                    f"{path} is not the file {whose} (sha256 {computed[:12]}..., expected {sha256[:12]}...): {cure}"
                )
            self.checksums.remember(path, sha256)
        except OSError as error:
            raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None


def _absent(manifest: Manifest, where: Path) -> str:
    problem = f"model {manifest.name} is known but its file is not here"
    path = where.parent / manifest.file
    if manifest.where == Builtin():
        return f"{problem}: it is part of the installation, so install edge again, or put it at {path}"
    by_hand = f", or put it at {path}" if manifest.file else ""
    return f"{problem}: `edge models pull {manifest.name}` fetches it from {manifest.source}{by_hand}"
