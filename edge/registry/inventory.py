"""What `edge models` does with the models of a node, all but the fetching itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge.durable import storage_error
from edge.errors import DownloadFailed, ModelUnusable
from edge.registry.describe import described, name_from_file, write_manifest
from edge.registry.digest import sha256_of
from edge.registry.fetch import Observer, Patience
from edge.registry.gguf import read_header
from edge.registry.manifest import WRITTEN_MARK, Manifest
from edge.registry.pull import Pulled, Puller
from edge.registry.resolve import Registry
from edge.registry.source import (
    Builtin,
    Hub,
    LocalFile,
    Source,
    Web,
    file_name,
    local_source,
    parse_source,
    shown,
    shown_url,
    without_credentials,
    writable,
)
from edge.registry.store import Leftover, StoredFile
from edge.registry.wanted import Wanted, wanted_files

State = Literal["here", "partial", "incomplete", "unreadable", "not here"]


@dataclass(frozen=True, slots=True)
class Row:
    """One known model, or one whose first download is not finished: that has no manifest yet. `have_bytes` of `size_bytes`
    are here."""

    name: str
    manifest: Manifest | None
    origin: Literal["own", "shipped", "kept", "none"]
    """Whose the manifest is. `kept`: it came with the files, and is no longer anywhere else."""
    state: State
    have_bytes: int
    size_bytes: int | None
    source: str


@dataclass(frozen=True, slots=True)
class Check:
    """One file of a model, read whole. `aside`: where a damaged one was put."""

    name: str
    file: str
    path: Path
    verdict: Literal["good", "damaged", "missing", "unreadable", "unstated"]
    aside: Path | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """What went with a model. `manifest`: one that `edge models` had written."""

    freed_bytes: int
    manifest: bool


class Inventory:
    """The models of one EDGE_HOME, for the command line."""

    def __init__(self, home: Path) -> None:
        self._own = home / "models"
        self._registry = Registry.at(home)
        self._store = self._registry.store

    def rows(self) -> list[Row]:
        """Every known model, by name. Raises ConfigurationError."""
        known = self._registry.manifests()
        partial: dict[str, tuple[int, int]] = {}
        nameless: list[Row] = []
        for name, unfinished in self._store.unfinished():
            state = unfinished.state
            had, of = partial.get(name, (0, 0))
            size = state.size_bytes if state is not None and state.size_bytes else unfinished.have_bytes
            partial[name] = (had + unfinished.have_bytes, of + size)
            if name not in known:
                text = state.source if state is not None else ""
                nameless.append(Row(name, None, "none", "partial", unfinished.have_bytes, size, text))
        rows = [self._row(manifest, where, partial) for manifest, where in known.values()]
        return sorted([*rows, *nameless], key=lambda row: row.name)

    def _row(self, manifest: Manifest, where: Path, partial: dict[str, tuple[int, int]]) -> Row:
        own: Literal["own", "kept", "shipped"] = "own" if where.parent == self._own else "shipped"
        if where.is_relative_to(self._store.root):
            own = "kept"
        source = shown(manifest.source)
        beside = self._registry.beside(manifest, where)
        if beside is not None:
            return self._row_beside(manifest, beside, own, source)
        record = self._store.record(manifest.name)
        if record is not None:
            lost = sum(stored.size_bytes for stored in self._store.missing(record))
            if not lost or manifest.name not in partial:
                have = record.size_bytes - lost
                return Row(
                    manifest.name, manifest, own, "incomplete" if lost else "here", have, record.size_bytes, source
                )
        if manifest.name in partial:
            have, of = partial[manifest.name]
            return Row(manifest.name, manifest, own, "partial", have, max(of, manifest.total_bytes() or 0), source)
        return Row(manifest.name, manifest, own, "not here", 0, manifest.total_bytes(), source)

    def _row_beside(self, manifest: Manifest, path: Path, own: Literal["own", "kept", "shipped"], source: str) -> Row:
        try:
            size = path.stat().st_size
        except OSError:  # of another user's directory, or gone since
            return Row(manifest.name, manifest, own, "unreadable", 0, manifest.total_bytes(), source)
        return Row(manifest.name, manifest, own, "here", size, size, source)

    def pull(
        self,
        wish: str,
        observer: Observer,
        *,
        name: str | None = None,
        sha256: str | None = None,
        licence: str,
        patience: Patience | None = None,
    ) -> Pulled:
        """Fetch a known model by name, or any source. Raises EdgeError."""
        known = self._registry.manifests()
        self._store.prepare()
        if wish in known:
            if name is not None or sha256 is not None:
                raise ModelUnusable(f"{wish} is known already: --name and --sha256 are for a new source")
            return self._pull_known(known[wish][0], known[wish][1], observer, patience)
        try:
            source = parse_source(wish)
        except ValueError as error:
            names = ", ".join(sorted(known))
            raise ModelUnusable(f"no model of that name is known, and {error}; known are {names}") from None
        text = writable(without_credentials(wish))
        return self._pull_source(source, text, observer, name, sha256, licence, patience)

    def _pull_known(self, manifest: Manifest, where: Path, observer: Observer, patience: Patience | None) -> Pulled:
        name = manifest.name
        with self._store.name_lock(name):
            record = self._store.record(name)
            if self._registry.beside(manifest, where) is not None:
                raise ModelUnusable(f"{name} is here already, at {where.parent / manifest.file}; nothing is fetched")
            if record is not None and record.fits(manifest) and not self._store.missing(record):
                self._store.lay_out(record)
                return Pulled(record, already=True)
            with Puller(self._store, observer, patience) as puller:
                places = [puller.locate(wanted) for wanted in wanted_files(manifest, record)]
                return puller.pull(name, places, manifest)

    def _pull_source(
        self,
        source: Source,
        text: str,
        observer: Observer,
        name: str | None,
        sha256: str | None,
        licence: str,
        patience: Patience | None,
    ) -> Pulled:
        with Puller(self._store, observer, patience) as puller:
            place = puller.locate(Wanted(source, text, file_name(source), sha256, None, gguf=True))
            name = name or name_from_file(place.located.file)
            with self._store.name_lock(name):
                known = self._registry.manifests().get(name)
                if known is not None:
                    self._require_same(known[0], text)
                    record = self._store.record(name)
                    local = isinstance(source, LocalFile)  # may be another one now, and is soon read
                    same = record is not None and sha256 in (None, record.files[0].sha256)
                    if record is not None and same and not local and not self._store.missing(record):
                        return Pulled(record, already=True)
                origin = _shown(source, place.located.file)
                pulled = puller.pull(name, [place], described(name, text, origin, licence))
                verb = "add" if isinstance(source, LocalFile) else "pull"
                self._write_own(pulled.record.manifest, f"edge models {verb} {origin}")
                return pulled

    def _require_same(self, known: Manifest, text: str) -> None:
        if known.source != text:
            raise ModelUnusable(
                f"a model {known.name} is known already, from {shown(known.source)}: choose a name with --name, or take that "
                f"one away first: `edge models remove {known.name}`"
            )

    def add(self, path: Path, observer: Observer, *, name: str | None, link: bool, licence: str) -> Pulled | Manifest:
        """Make a file of this machine a known model. With `link` the file stays where it is. Raises EdgeError."""
        path = path.expanduser().absolute()
        header, text = read_header(path), local_source(path)
        name = name or name_from_file(path.name)
        self._store.prepare()
        if not link:
            source = LocalFile(path)
            return self._pull_source(source, text, observer, name, None, licence, None)
        with self._store.name_lock(name):
            known = self._registry.manifests().get(name)
            if known is not None:
                self._require_same(known[0], text)
            observer.begins(path.name, 0, header.file_bytes)
            try:
                sha256 = sha256_of(path, observer.has)
            except OSError as error:
                raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None
            manifest = described(name, text, str(path), licence)(sha256, header)
            manifest = manifest.model_copy(update={"file": str(path)})
            self._write_own(manifest, f"edge models add --link {path}")
            self._registry.checksums.remember(path, sha256)
            return manifest

    def _write_own(self, manifest: Manifest, command: str) -> None:
        write_manifest(self._own, manifest, command)

    def verify(self, names: list[str], on_file: Callable[[str, Path], None]) -> list[Check]:
        """Read every file of these models whole, or of all that are here; damaged ones of the store are set aside."""
        known = self._registry.manifests()
        for name in names:
            if name not in known:
                raise ModelUnusable(f"unknown model {name!r}: known are {', '.join(sorted(known))}")
        checks: list[Check] = []
        for name in names or sorted(known):
            manifest, where = known[name]
            beside = self._registry.beside(manifest, where)
            record = self._store.record(name)
            if beside is not None:
                checks.append(self._check_beside(manifest, beside, on_file))
            elif record is not None:
                with self._store.name_lock(name):
                    checks += [self._check_stored(name, stored, on_file) for stored in record.files]
            elif names:
                checks.append(Check(name, manifest.main_file or name, where, "missing"))
        return checks

    def _check_beside(self, manifest: Manifest, path: Path, on_file: Callable[[str, Path], None]) -> Check:
        if manifest.sha256 is None:
            return Check(manifest.name, path.name, path, "unstated")
        on_file(path.name, path)
        found = self._sum(path)
        if found == manifest.sha256:
            self._registry.checksums.remember(path, manifest.sha256)
            return Check(manifest.name, path.name, path, "good")
        self._registry.checksums.forget(
            path
        )  # it is not ours to move; without its mark it is refused at the next start
        return Check(manifest.name, path.name, path, "damaged" if found else "unreadable")

    def _check_stored(self, name: str, stored: StoredFile, on_file: Callable[[str, Path], None]) -> Check:
        blob = self._store.blob(stored.sha256)
        if not blob.exists():
            return Check(name, stored.file, blob, "missing")
        on_file(stored.file, blob)
        if self._sum(blob) == stored.sha256:
            self._registry.checksums.remember(blob, stored.sha256)
            return Check(name, stored.file, blob, "good")
        return Check(name, stored.file, blob, "damaged", self._store.set_aside(stored))

    def _sum(self, path: Path) -> str:
        """Empty where the disk cannot even read it."""
        try:
            return sha256_of(path)
        except OSError:
            return ""

    def remove(self, name: str) -> Removed:
        """Take a model away: its files, and the manifest if `edge models` wrote it. Raises EdgeError."""
        known = self._registry.manifests()
        if name not in known and name not in dict(self._store.unfinished()):
            raise ModelUnusable(f"unknown model {name!r}: known are {', '.join(sorted(known))}")
        if name in known and known[name][0].where == Builtin():
            raise ModelUnusable(f"{name} is part of the installation and stays")
        self._store.prepare()
        with self._store.name_lock(name):
            freed = self._store.remove(name)
            where = known[name][1] if name in known else None
            ours = where is not None and where.parent == self._own and _written_by_us(where)
            if where is not None and ours:
                try:
                    where.unlink()
                except OSError as error:
                    raise storage_error(error, where.parent) from None
        return Removed(freed, ours)

    def prune(self, *, every_partial: bool, dry_run: bool) -> list[Leftover]:
        """Remove what no model needs; with `dry_run` only say what that would be. Raises EdgeError."""
        self._store.prepare()
        chosen = self._store.leftovers if dry_run else self._store.prune
        return chosen(time.time(), every_partial=every_partial)


def _written_by_us(path: Path) -> bool:
    try:
        return path.read_text("utf-8").startswith(WRITTEN_MARK)
    except OSError:
        return False


def _shown(source: Source, file: str) -> str:
    match source:
        case Hub():
            return f"hf:{source.repo}:{file}"
        case Web(url):
            return shown_url(url)
        case LocalFile(path):
            return str(path)
        case _:
            raise DownloadFailed("a builtin model cannot be fetched")
