"""From a model's name or path to a file that is fit to be loaded."""

from __future__ import annotations

import functools
import logging
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import ConfigurationError, ModelUnusable
from edge.registry.digest import Checksums, sha256_of
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.manifest import LANGUAGE, NAME_PATTERN, Manifest, NewerManifest, read_manifest
from edge.registry.source import Builtin, Hub, LocalFile, Source, Web, is_source, parse_source, shown, writable
from edge.registry.store import Record, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A file that passed its header check and, if it has a manifest, its checksum. `files`: all of the model's, by name."""

    name: str
    path: Path
    header: GgufHeader
    manifest: Manifest | None
    files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResolvedTensors:
    """A model that answers with numbers. `manifest` None: a file of which nothing is known but itself."""

    name: str
    path: Path
    manifest: Manifest | None
    files: Mapping[str, Path]
    file_bytes: int
    """Of the main file, and of those with weights beside it."""
    header: GgufHeader | None = None
    """Of a GGUF file; None: it is ONNX."""

    @property
    def task(self) -> str:
        """What it is for."""
        if self.manifest is not None:
            return self.manifest.task
        return (self.header.reads if self.header is not None else None) or "tensors"


_NO_WEIGHTS = frozenset({".json", ".txt", ".md", ".jinja"})
"""Endings of files that take no memory worth planning."""

Found = ResolvedModel | ResolvedTensors
OnChecksum = Callable[[Path, int], None]
"""Told of the file, and how many of its bytes were read so far."""


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
        self._left_out: dict[Path, str] = {}

    @classmethod
    def at(cls, home: Path) -> Registry:
        """The registry of an EDGE_HOME."""
        return cls(model_directories(home), home / "verified.json")

    def manifests(self) -> dict[str, tuple[Manifest, Path]]:
        """Every manifest and where it lies, by model name; the first directory wins. Those that cannot be read are left out: one
        that somebody is writing, or a power cut has cut short, keeps no other model from being served."""
        found: dict[str, tuple[Manifest, Path]] = {}
        for directory in self._directories:
            for path in sorted(directory.glob("*.toml")):
                try:
                    manifest = read_manifest(path)
                except NewerManifest:
                    continue
                except ConfigurationError as error:
                    self._leave_out(path, error)
                    continue
                found.setdefault(manifest.name, (manifest, path))
        for name, record in self.store.records().items():  # fetched under a manifest that has gone since
            found.setdefault(name, (record.manifest, self.store.root / "names" / f"{name}.json"))
        return found

    def _leave_out(self, path: Path, error: ConfigurationError) -> None:
        """Said once for each reason: manifests are read again and again."""
        if self._left_out.get(path) != error.message:
            self._left_out[path] = error.message
            log.warning(
                f"{error.message}; that model is left out", extra={"event": "manifest_unusable", "file": str(path)}
            )

    def resolve(self, wish: str, on_checksum: OnChecksum | None = None) -> ResolvedModel:
        """Find a language model by name or path and check its file; `on_checksum` is told before a long read and during it.

        Raises ModelUnusable that says what is wrong with it, ConfigurationError for a broken manifest.
        """
        found = self.find(wish, on_checksum)
        if isinstance(found, ResolvedTensors):
            source = f' and `source = "{found.path}"`' if found.manifest is None else ""
            raise ModelUnusable(
                f"model {found.name} is for {found.task}, and the node's own model must write text: serve it beside one, with "
                f"`[models.{found.name}]`{source} in edge.toml"
            )
        return found

    def find(self, wish: str, on_checksum: OnChecksum | None = None) -> Found:
        """The same for any model that can be served."""
        known = self.manifests()
        if wish in known:
            return self._resolve_known(*known[wish], on_checksum)
        source = _source(wish)
        if isinstance(source, LocalFile):
            wish = str(source.path)
        elif source is not None:
            raise ModelUnusable(
                f"{shown(wish)} is not on this machine: `edge models pull {shown(wish)}` brings it here and names it"
            )
        path = Path(writable(wish)).expanduser()
        if path.suffix == ".onnx":
            return _tensors(path.stem, path.absolute(), None, _with_weights(path.absolute()))
        if os.path.exists(path) or path.suffix == ".gguf" or "/" in wish:
            return _bare(path)
        self._say_if_unreadable(wish)
        names = ", ".join(sorted(known)) or "none"
        raise ModelUnusable(f"unknown model {wish!r}: known are {names}; or give the path of a .gguf or .onnx file")

    def _say_if_unreadable(self, wish: str) -> None:
        """Raises ConfigurationError if there is a manifest of that name and it cannot be read, or by a newer version only."""
        if not re.fullmatch(NAME_PATTERN, wish):
            return
        for directory in self._directories:
            if (path := directory / f"{wish}.toml").is_file():
                read_manifest(path)
        for path in self.store.unreadable():
            if path.stem == wish:
                raise ModelUnusable(
                    f"what is noted of {wish} in {path} cannot be read: a newer version of edge wrote it, or it is damaged; "
                    f"upgrade this one, or `edge models pull {wish}`"
                )

    def elsewhere(self, wish: str) -> str | None:
        """Where a model lies that could be fetched and is not on this machine; None for all others."""
        known = self.manifests()
        if wish in known:
            manifest, where = known[wish]
            here = self.beside(manifest, where) is not None or self.store.record(wish) is not None
            return (
                manifest.source if manifest.holds_gguf and not here and isinstance(manifest.where, Hub | Web) else None
            )
        return wish if isinstance(_source(wish), Hub | Web) else None

    def beside(self, manifest: Manifest, where: Path) -> Path | None:
        """The main file where the manifest says that it lies, if it does."""
        if not manifest.file:
            return None
        path = where.parent / manifest.file
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:  # it may be there: whoever reads it says what stands in the way
            pass
        return path

    def _resolve_known(self, manifest: Manifest, where: Path, on_checksum: OnChecksum | None) -> Found:
        name = manifest.name
        if not manifest.served:
            if manifest.task == "detection" and not manifest.holds_gguf:
                raise ModelUnusable(
                    f"the manifest of model {name} has no [detector], which says how its outputs are read; add it to {where}"
                )
            form = " as GGUF" if manifest.holds_gguf else ""
            raise ModelUnusable(
                f"model {name} is for {manifest.task}{form}, which this version does not serve yet; `edge models list` shows "
                "which models it serves"
            )
        path = self.beside(manifest, where)
        if path is not None:
            if manifest.holds_gguf:
                read_header(path)  # what is no model at all is said before a long read
            if manifest.sha256 is not None:
                self._verify(path, manifest.sha256, "that its manifest names", "get it again", on_checksum)
            parts = {part.file: path.parent / part.file for part in manifest.files}
            if absent := next((part for part in parts.values() if not part.exists()), None):
                raise ModelUnusable(f"{absent.name} of model {name} is not beside it: put it at {absent}")
            return _checked(name, path, manifest, {manifest.main_file: path, **parts})
        record = self.store.record(name)
        if record is None:
            raise ModelUnusable(_absent(manifest, where))
        files = self._stored(manifest, record, on_checksum)
        main = files[record.files[0].file]
        return _checked(name, main, manifest, files)

    def _stored(self, manifest: Manifest, record: Record, on_checksum: OnChecksum | None) -> dict[str, Path]:
        name = manifest.name
        if record.contradicts(manifest):
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
        tree = self.store.tree(record)
        return files if tree is None else {file: tree / file for file in files}

    def _verify(self, path: Path, sha256: str, whose: str, cure: str, on_checksum: OnChecksum | None) -> None:
        try:
            if self.checksums.holds(path, sha256):
                return
            tell = None if on_checksum is None else functools.partial(on_checksum, path)
            if tell is not None:
                tell(0)
            computed = sha256_of(path, tell)
            if computed != sha256:
                raise ModelUnusable(
                    f"{path} is not the file {whose} (sha256 {computed[:12]}..., expected {sha256[:12]}...): {cure}"
                )
            self.checksums.remember(path, sha256)
        except OSError as error:
            raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None


def _source(wish: str) -> Source | None:
    """What is meant as a source, taken apart; None for names and paths. Raises ModelUnusable."""
    if not is_source(wish):
        return None
    try:
        return parse_source(wish)
    except ValueError as error:
        raise ModelUnusable(str(error)) from None


def _checked(name: str, path: Path, manifest: Manifest, files: Mapping[str, Path]) -> Found:
    header = read_header(path) if manifest.holds_gguf else None
    if header is not None and manifest.task in LANGUAGE:
        return ResolvedModel(name, path, header, manifest, files)
    return _tensors(name, path, manifest, files, header)


def _with_weights(path: Path) -> dict[str, Path]:
    """A bare ONNX file, and the one with its weights as exporters call it, where that lies beside it."""
    beside = (path.with_name(path.name + ending) for ending in ("_data", ".data"))
    return {file.name: file for file in (path, *(file for file in beside if file.exists()))}


def _bare(path: Path) -> Found:
    """A GGUF file without a manifest: its header says what it is for."""
    header, path = read_header(path), path.absolute()
    if header.reads is None:
        return ResolvedModel(path.stem, path, header, None)
    return _tensors(path.stem, path, None, {path.name: path}, header)


def _tensors(
    name: str, path: Path, manifest: Manifest | None, files: Mapping[str, Path], header: GgufHeader | None = None
) -> ResolvedTensors:
    size = 0
    for file in {path, *files.values()}:
        try:
            found = file.stat()
        except OSError as error:
            raise ModelUnusable(f"cannot read {file}: {error.strerror or error}") from None
        if not stat.S_ISREG(found.st_mode):
            raise ModelUnusable(f"{file} is no regular file")
        size += found.st_size if file.suffix not in _NO_WEIGHTS else 0
    return ResolvedTensors(name, path, manifest, files, size, header)


def _absent(manifest: Manifest, where: Path) -> str:
    problem = f"model {manifest.name} is known but its file is not here"
    path = where.parent / manifest.file
    if manifest.where == Builtin():
        return f"{problem}: it is part of the installation, so install edge again, or put it at {path}"
    by_hand = f", or put it at {path}" if manifest.file else ""
    return f"{problem}: `edge models pull {manifest.name}` fetches it from {shown(manifest.source)}{by_hand}"
