"""What is to be brought into the store, and where it was found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edge.errors import DownloadFailed, ModelUnusable
from edge.registry.gguf import read_header
from edge.registry.manifest import Manifest
from edge.registry.partial import State
from edge.registry.source import Located, Source, without_credentials
from edge.registry.store import Record


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file to bring in. `sha256`: what it must be; `pinned`: whether that is merely what it was the first time."""

    source: Source
    text: str
    """The source as it is written, without credentials."""
    file: str
    sha256: str | None
    size_bytes: int | None
    gguf: bool
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A wanted file and where its bytes are now. `local`: on this machine."""

    wanted: Wanted
    located: Located
    local: Path | None


def wanted_files(manifest: Manifest, record: Record | None) -> list[Wanted]:
    """A manifest's files, with the sums of the first fetch for those whose sum nobody states."""
    if record is not None and record.manifest.source != manifest.source:
        record = None  # another file is meant now
    known = record.sums if record is not None else {}
    first = next(iter(known.values()), None)
    if record is not None:
        sources = record.part_sources
        moved = {part.file for part in manifest.files if part.source != sources.get(part.file)}
        known = {file: sha256 for file, sha256 in known.items() if file not in moved}
    main = Wanted(
        manifest.where,
        without_credentials(manifest.source),
        manifest.main_file,
        manifest.sha256 or first,
        manifest.size_bytes,
        manifest.holds_gguf,
        manifest.sha256 is None and first is not None,
    )
    return [main] + [
        Wanted(
            source=part.where,
            text=without_credentials(part.source),
            file=part.file,
            sha256=part.sha256 or known.get(part.file),
            size_bytes=part.size_bytes,
            gguf=False,
            pinned=part.sha256 is None and part.file in known,
        )
        for part in manifest.files
    ]


def local_place(wanted: Wanted, path: Path) -> Place:
    """Of a file of this machine. Raises ModelUnusable."""
    if wanted.gguf:
        read_header(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None
    if not path.is_file():  # to open a pipe may take for ever
        raise ModelUnusable(f"{path} is no regular file")
    located = Located("", path.name, str(path), f"file:{path}", {}, size, wanted.sha256)
    return Place(wanted, _named(located, wanted), path)


def expecting(located: Located, wanted: Wanted) -> Located:
    """Hold what a server states against what is wanted, before anything is fetched."""
    stated, expected = located.sha256, wanted.sha256
    if stated is not None and expected is not None and stated != expected:
        raise DownloadFailed(
            f"{located.shown} has another file now: its sha256 is {stated[:12]}..., {expected[:12]}... was "
            + ("fetched the first time: `edge models remove` forgets that one" if wanted.pinned else "expected")
        )
    size = located.size_bytes
    if wanted.size_bytes is not None and size is not None and size != wanted.size_bytes:
        raise DownloadFailed(f"{located.shown} has {size} bytes, {wanted.size_bytes} were expected: it is another file")
    return _named(replace(located, size_bytes=size or wanted.size_bytes, sha256=expected or stated), wanted)


def _named(located: Located, wanted: Wanted) -> Located:
    return replace(located, file=wanted.file or located.file)


def state_of(name: str, place: Place) -> State:
    """What is noted of its download, for model `name`."""
    located = place.located
    return State(model=name, source=place.wanted.text, file=located.file, size_bytes=located.size_bytes)
