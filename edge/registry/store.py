"""The content-addressed store: files by their sha256, and small records that say which model has which files.

    store/blobs/SHA256         whole, checked, read-only
    store/names/NAME.json      a model's files, by sum
    store/trees/KEY/           files of one model side by side, where it has several (hard links)
    store/partial/             unfinished downloads
    store/damaged/             what `verify` set aside
    store/locks/               empty files to lock

A blob is complete from the moment that it has its name, and a record is written only after its blobs: a power cut leaves the
state before or after, nothing between.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edge.durable import locked, storage_error, sync_directory, write_atomically
from edge.errors import StoreBusy
from edge.registry.digest import Checksums
from edge.registry.manifest import MANIFEST_VERSION, Manifest, known_part
from edge.registry.partial import Partial
from edge.registry.source import file_mode
from edge.registry.trees import Trees
from edge.versions import Fit, fit_of

RECORD_VERSION = 1
_STALE_S = 7 * 86400
_DRAFT_S = 3600
_ASIDE_FORM = "%Y%m%dT%H%M%SZ"
_ASIDE_LETTERS = 50
"""Of a file's own name: with more of them the new one might be too long for a disk."""


class StoredFile(BaseModel):
    """One file of a model."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    file: str
    sha256: str
    size_bytes: int


class Record(BaseModel):
    """A model that was fetched: its manifest as it was then, and its files, the main one first."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: int = RECORD_VERSION
    readable_by: int | None = None
    manifest: Manifest
    shown: str
    """Where it came from, for people."""
    fetched_at: str
    files: list[StoredFile]

    def fits(self, manifest: Manifest) -> bool:
        """Whether these are the files that a manifest names now: it may have changed since."""
        here = self.part_sources
        same = all(here.get(part.file) == part.source for part in manifest.files)
        return manifest.source == self.manifest.source and same and not self.contradicts(manifest)

    def contradicts(self, manifest: Manifest) -> bool:
        """Whether a manifest states another sum for one of these files, wherever they come from."""
        stated = {part.file: part.sha256 for part in manifest.files}
        return manifest.sha256 not in (None, self.files[0].sha256) or any(
            stated.get(stored.file) not in (None, stored.sha256) for stored in self.files
        )

    @property
    def part_sources(self) -> dict[str, str]:
        """Where its further files came from, by name."""
        return {part.file: part.source for part in self.manifest.files}

    @property
    def sums(self) -> dict[str, str]:
        """Sums of its files by name."""
        return {stored.file: stored.sha256 for stored in self.files}

    @property
    def lies_apart(self) -> bool:
        """It is loaded from several files, which must find each other by name."""
        return len(self.files) > 1 and not self.manifest.holds_gguf

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(stored.size_bytes for stored in self.files)


@dataclass(frozen=True, slots=True)
class Ready:
    """A checked file that waits in its partial to become a blob; None where the blob is there already."""

    stored: StoredFile
    partial: Partial | None


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that nobody needs."""

    path: Path
    size_bytes: int
    why: str
    partial: Partial | None = None
    """The unfinished download that `path` belongs to."""


class Store:
    """All that was fetched. `edge models` writes, under locks; serving only reads."""

    def __init__(self, root: Path, checksums: Checksums) -> None:
        self.root = root
        self._checksums = checksums
        self._blobs, self._names, self.partials = root / "blobs", root / "names", root / "partial"
        self._damaged, self._locks = root / "damaged", root / "locks"
        self._trees = Trees(root / "trees")

    def prepare(self) -> None:
        """Make the directories. Raises StoreUnwritable, DiskFull."""
        try:
            for directory in (self._blobs, self._names, self.partials, self._damaged, self._locks):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, self.root) from None

    def blob(self, sha256: str) -> Path:
        """Where a file with this sum lies, if it is here."""
        return self._blobs / sha256

    def record(self, name: str) -> Record | None:
        """What was fetched under this name; None if nothing was, or if the record cannot be read."""
        try:
            return _record(self._record_path(name).read_bytes())
        except (OSError, ValueError):
            return None

    def unreadable(self) -> list[Path]:
        """Records that cannot be read, of a newer version or damaged: nobody knows here which files they mean."""
        return [path for path in _records_in(self._names) if self.record(path.stem) is None]

    def records(self) -> dict[str, Record]:
        """All of them, by name."""
        found = {path.stem: self.record(path.stem) for path in _records_in(self._names)}
        return {name: record for name, record in found.items() if record is not None}

    def missing(self, record: Record) -> list[StoredFile]:
        """Files of a record that are not in the store."""
        return [stored for stored in record.files if not self.blob(stored.sha256).exists()]

    def tree(self, record: Record) -> Path | None:
        """Where a model's files lie side by side; None for those of one file."""
        return self._trees.of(record.sums) if record.lies_apart else None

    def lay_out(self, record: Record) -> None:
        """Put a model's files side by side if it has several. Raises DiskFull, StoreUnwritable."""
        try:
            with self._store_lock():
                self._lay_out(record)
        except OSError as error:
            raise storage_error(error, self.root) from None

    def _lay_out(self, record: Record) -> None:
        if record.lies_apart:
            self._trees.lay_out(record.sums, self._blobs)

    def partial(self, identity: str) -> Partial:
        """The unfinished download of what `identity` names: a sum where one is known, else an address."""
        return Partial(self.partials, hashlib.sha256(identity.encode()).hexdigest()[:40])

    def unfinished(self) -> Iterator[tuple[str, Partial]]:
        """Unfinished downloads by model's name."""
        for partial in Partial.all_in(self.partials):
            state = partial.state
            if state is not None:
                yield state.model, partial

    def name_lock(self, name: str) -> AbstractContextManager[None]:
        """Be the only one to fetch, add, check or remove this model. Raises StoreBusy."""
        return locked(self._locks / f"name-{name}", f"model {name}")

    def _store_lock(self) -> AbstractContextManager[None]:
        """For the short moments in which blobs come and go."""
        return locked(self._locks / "store", "the store of models", wait=True)

    def publish(self, manifest: Manifest, shown: str, files: Sequence[Ready]) -> Record:
        """Give checked files their place, and then the model its record. Raises DiskFull, StoreUnwritable."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        record = Record(manifest=manifest, shown=shown, fetched_at=stamp, files=[ready.stored for ready in files])
        try:
            with self._store_lock():
                former = self.record(manifest.name)
                for ready in files:
                    self._place(ready)
                sync_directory(self._blobs)
                self._lay_out(record)
                mode = file_mode(manifest.source, *(part.source for part in manifest.files))
                text = record.model_dump_json(indent=1).encode()
                write_atomically(self._record_path(manifest.name), text, mode)
                self._drop_unused(former)
        except OSError as error:
            raise storage_error(error, self.root) from None
        for stored in record.files:
            self._checksums.remember(self.blob(stored.sha256), stored.sha256)
        return record

    def _place(self, ready: Ready) -> None:
        blob = self.blob(ready.stored.sha256)
        if ready.partial is None:
            if not blob.exists():  # pruned or set aside since it was looked at
                raise StoreBusy(f"{ready.stored.file} has left the store meanwhile; start again")
            return
        descriptor = os.open(ready.partial.path, os.O_RDONLY)
        try:
            os.fchmod(descriptor, 0o444)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        ready.partial.path.replace(blob)
        ready.partial.forget_state()

    def remove(self, name: str) -> int:
        """Take a model's record, its unfinished downloads, and the files that no other model has. Returns bytes freed."""
        try:
            with self._store_lock():
                former = self.record(name)
                self._record_path(name).unlink(missing_ok=True)
                freed = self._drop_unused(former)
                for owner, partial in self.unfinished():
                    if owner == name:
                        freed += partial.discard_idle()
            return freed
        except OSError as error:
            raise storage_error(error, self.root) from None

    def set_aside(self, stored: StoredFile) -> Path:
        """Take a damaged file out of use, keeping it for whoever wants to look. Returns where it is. Raises as `remove`."""
        blob = self.blob(stored.sha256)
        stamp = time.strftime(_ASIDE_FORM, time.gmtime())
        aside = self._damaged / f"{stored.sha256[:16]}-{stamp}-{stored.file[-_ASIDE_LETTERS:]}"
        try:
            with self._store_lock():
                self._checksums.forget(blob)
                blob.replace(aside)
                sync_directory(self._blobs)
                self._drop_trees(without=stored.sha256)
            return aside
        except OSError as error:
            raise storage_error(error, self.root) from None

    def leftovers(self, now_s: float, *, every_partial: bool) -> list[Leftover]:
        """What `prune` takes: files that no model has, damaged ones, and downloads that nobody went on with."""
        used = {stored.sha256 for record in self.records().values() for stored in record.files}
        unclaimed = [path for path in _files(self._blobs) if path.name not in used]
        if self.unreadable():
            unclaimed = []  # they may be those of a model that a newer version fetched
        found = [Leftover(path, _bytes(path), "no model has it") for path in unclaimed]
        found += [Leftover(path, _bytes(path), "damaged") for path in _files(self._damaged)]
        for path in [*_files(self._names), *_files(self.partials)]:
            with contextlib.suppress(FileNotFoundError):  # of a download that runs: it comes and goes
                if path.name[0] == "." and now_s - path.stat().st_mtime > _DRAFT_S:
                    found.append(Leftover(path, _bytes(path), "half-written note"))  # of a killed process
        for partial in Partial.all_in(self.partials):
            stale = every_partial or partial.state is None or now_s - partial.touched_s > _STALE_S
            if stale and not partial.busy:
                found.append(Leftover(partial.path, partial.disk_bytes, "unfinished download", partial))
        return found

    def prune(self, now_s: float, *, every_partial: bool) -> list[Leftover]:
        """Remove the leftovers. Raises as `remove`."""
        try:
            with self._store_lock():
                found = self.leftovers(now_s, every_partial=every_partial)
                for leftover in found:
                    if leftover.partial is not None:
                        leftover.partial.discard_idle()
                        continue
                    self._checksums.forget(leftover.path)
                    leftover.path.unlink(missing_ok=True)
                self._drop_trees()
            return found
        except OSError as error:
            raise storage_error(error, self.root) from None

    def _drop_unused(self, former: Record | None) -> int:
        """Remove what only a former record used. Returns bytes freed."""
        self._drop_trees()  # made anew when they are wanted
        if self.unreadable():
            return 0
        used = {stored.sha256 for record in self.records().values() for stored in record.files}
        freed = 0
        for stored in former.files if former is not None else []:
            blob = self.blob(stored.sha256)
            if stored.sha256 not in used and blob.exists():
                freed += blob.stat().st_size
                self._checksums.forget(blob)
                blob.unlink()
        return freed

    def _drop_trees(self, without: str = "") -> None:
        """Trees that no model has, and those with the file `without`: they would keep its bytes. Which ones the records mean
        that cannot be read, nobody knows here: all stay, unless a file is damaged. Then `edge models pull` makes them anew."""
        if not without and self.unreadable():
            return
        records = self.records().values()
        self._trees.drop_all_but(record.sums for record in records if without not in record.sums.values())

    def _record_path(self, name: str) -> Path:
        return self._names / f"{name}.json"


def _record(text: bytes) -> Record:
    """Raises ValueError, also for one that only a newer version can read."""
    found = json.loads(text)
    if not isinstance(found, dict) or (fits := fit_of(found, RECORD_VERSION)) is Fit.FOREIGN:
        raise ValueError("not for this version")
    manifest = found.get("manifest")
    if isinstance(manifest, dict):
        inner = fit_of(manifest, MANIFEST_VERSION, "schema_version")
        if inner is Fit.FOREIGN:
            raise ValueError("its manifest is not for this version")
        if Fit.NEWER in (fits, inner):
            found = {**found, "manifest": known_part(manifest)}
    return Record.model_validate(found)


def _records_in(names: Path) -> list[Path]:
    return [path for path in sorted(names.glob("*.json")) if path.stem[0] != "."]


def _bytes(path: Path) -> int:
    """0 for a file that has gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.is_file()) if directory.is_dir() else []
