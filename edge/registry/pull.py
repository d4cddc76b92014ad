"""Brings a model into the store: locate, look at the disk, fetch, check, publish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx

from edge.durable import storage_error
from edge.errors import DownloadFailed, EdgeError, ModelUnusable
from edge.registry import hub, web
from edge.registry.describe import Describe
from edge.registry.digest import read_blocks
from edge.registry.fetch import Fetch, Fetched, Observer, Patience
from edge.registry.gguf import GgufHeader, read_header
from edge.registry.manifest import Manifest
from edge.registry.partial import Growing, Partial
from edge.registry.source import (
    Hub,
    LocalFile,
    Located,
    Web,
    file_name,
    is_part,
    shown_url,
)
from edge.registry.space import require_space
from edge.registry.store import Ready, Record, Store, StoredFile
from edge.registry.wanted import Place, Wanted, expecting, local_place, state_of

_HUB_TRIES = 4
_PAGES = (b"<!doctype", b"<html", b"<?xml")
"""How answers begin that are errors or logins and no file of a model, whatever their status."""
_PAGE_BYTES = 512


@dataclass(frozen=True, slots=True)
class Pulled:
    """What came of it. `trusted`: files whose sum nobody had stated before."""

    record: Record
    already: bool
    trusted: tuple[StoredFile, ...] = ()


class Puller:
    """Fetches into one store. Owns the HTTP client: use it in a `with` statement."""

    def __init__(self, store: Store, observer: Observer, patience: Patience | None = None) -> None:
        self._store, self._observer, self._patience = store, observer, patience or Patience()
        self._web: httpx.Client | None = None

    def __enter__(self) -> Puller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._web is not None:
            self._web.close()

    def locate(self, wanted: Wanted) -> Place:
        """Ask where a file is. Raises DownloadFailed, ModelUnusable."""
        if wanted.gguf and is_part(wanted.file):
            raise ModelUnusable(
                f"{wanted.file} is one part of a model in several, which this version does not join: get all of them, join them "
                "(llama-gguf-split --merge), and `edge models add` the whole"
            )
        match wanted.source:
            case LocalFile(path):
                return local_place(wanted, path)
            case Hub() as source:
                self._observer.notes(f"asking the hub about {source.repo}")
                located = self._ask_hub(source)
            case Web(url):
                located = Located(url, file_name(wanted.source), shown_url(url), url)
                located = self._probe(located)
            case _:
                raise ModelUnusable(
                    f"{wanted.file} is part of the installation, and is missing from it: install edge again"
                )
        return Place(wanted, expecting(located, wanted), None)

    def pull(self, name: str, places: list[Place], manifest: Manifest | Describe) -> Pulled:
        """Bring the files in and publish the model. The name's lock must be held.

        Raises DownloadFailed, DiskFull, StoreBusy, StoreUnwritable, ModelUnusable.
        """
        self._require_space(places)
        with contextlib.ExitStack() as held:
            files: list[Ready] = []
            trusted: list[StoredFile] = []
            header: GgufHeader | None = None
            for place in places:
                before = {found.stored.sha256: found for found in files}
                ready, stated = self._bring(name, place, before, held)
                files.append(ready)
                if not stated and place.local is None:
                    trusted.append(ready.stored)
                header = self._check(place, ready) or header
            if not isinstance(manifest, Manifest):
                assert header is not None
                manifest = _described(manifest, files[0], header)
            record = self._store.publish(manifest, places[0].located.shown, files)
        return Pulled(record, already=False, trusted=tuple(trusted))

    def _ask_hub(self, source: Hub) -> Located:
        for failures in range(1, _HUB_TRIES):
            try:
                return hub.locate(source)
            except web.Interrupted as error:
                pause_s = min(self._patience.pause_s * 2**failures, self._patience.longest_pause_s)
                self._observer.notes(f"{error.what}; on it goes in {pause_s:.1f} s")
                time.sleep(pause_s)
        try:
            return hub.locate(source)
        except web.Interrupted as error:
            raise DownloadFailed(
                f"{error.what}; check the network, HTTPS_PROXY and HF_ENDPOINT, or carry the file here and use `edge models add`"
            ) from None

    def _probe(self, located: Located) -> Located:
        """Size and sum before the first byte, where the server tells: the disk is judged by it, and 404 comes at once.

        Signed addresses often allow GET alone, so other refusals are left to that.
        """
        try:
            with web.ask(self._client, "HEAD", located, {}) as answer:
                return replace(located, size_bytes=answer.length or None, sha256=answer.sha256)
        except web.Absent:
            raise
        except (web.Interrupted, DownloadFailed):
            return located

    @property
    def _client(self) -> httpx.Client:
        if self._web is None:
            self._web = web.client()
        return self._web

    def _require_space(self, places: list[Place]) -> None:
        """Over all files, before the first byte. What is unknown is judged when its answer begins."""
        needed = 0
        for place in places:
            located = place.located
            if located.size_bytes is not None and not self._is_here(located):
                needed += max(0, located.size_bytes - self._partial(located).have_bytes)
        require_space(self._store.partials, needed)

    def _is_here(self, located: Located) -> bool:
        return located.sha256 is not None and self._store.blob(located.sha256).exists()

    def _partial(self, located: Located) -> Partial:
        return self._store.partial(located.sha256 or located.identity)

    def _bring(
        self, name: str, place: Place, ready: Mapping[str, Ready], held: contextlib.ExitStack
    ) -> tuple[Ready, bool]:
        """One file, checked, and whether its sum had been stated by anybody. `ready`: those before it, by sum."""
        located = place.located
        if located.sha256 is not None and located.sha256 in ready:  # the same file under two names
            stored = ready[located.sha256].stored
            return Ready(stored.model_copy(update={"file": located.file}), None), True
        if located.sha256 is not None and self._is_here(located):
            size = self._store.blob(located.sha256).stat().st_size
            return Ready(StoredFile(file=located.file, sha256=located.sha256, size_bytes=size), None), True
        partial = self._partial(located)
        held.enter_context(partial.held(located.file))
        if place.local is not None:
            fetched = self._copy(name, place, place.local, partial)
        else:
            fetch = Fetch(self._client, located, partial, state_of(name, place), self._observer, self._patience)
            try:
                fetched = fetch.run()
            except DownloadFailed as error:
                raise _changed(error, place, fetch, name) from None
        stored = StoredFile(file=located.file, sha256=fetched.sha256, size_bytes=fetched.size_bytes)
        return Ready(stored, partial), fetched.stated

    def _copy(self, name: str, place: Place, path: Path, partial: Partial) -> Fetched:
        """From a disk: always from the first byte, since reading again is as fast as checking what is here."""
        expected = place.wanted.sha256
        state = state_of(name, place)
        try:
            growing = Growing(partial, state)
            try:
                growing.begin_anew(state)
                self._observer.begins(path.name, 0, state.size_bytes)
                for block in read_blocks(path):
                    growing.append(block)
                    self._observer.has(growing.have)
                growing.checkpoint()
            finally:
                growing.close()
        except ModelUnusable:
            partial.discard()
            raise
        except OSError as error:
            partial.discard()
            raise storage_error(error, partial.path.parent) from None
        if expected is not None and growing.sha256 != expected:
            partial.discard()
            raise DownloadFailed(
                f"{path} is not the file that was meant: its sha256 is {growing.sha256[:12]}..., {expected[:12]}... was expected"
            )
        return Fetched(growing.sha256, growing.have, expected is not None)

    def _check(self, place: Place, ready: Ready) -> GgufHeader | None:
        """Whether the file is of the kind that is meant; the header of a GGUF file."""
        path = self._store.blob(ready.stored.sha256) if ready.partial is None else ready.partial.path
        try:
            if place.wanted.gguf:
                return read_header(path)
            if ready.partial is None:  # looked at when it came
                return None
            with path.open("rb") as file:
                if file.read(_PAGE_BYTES).lstrip().lower().startswith(_PAGES):
                    raise ModelUnusable(f"{path} is a web page")
            return None
        except ModelUnusable as error:
            if ready.partial is not None:
                ready.partial.discard()
            what = error.message.removeprefix(f"{path} ")
            raise DownloadFailed(f"what {place.located.shown} gave is refused: it {what}") from None


def _described(describe: Describe, ready: Ready, header: GgufHeader) -> Manifest:
    """The manifest of a file that has none. A file of which none can be made is not kept: it would be refused again."""
    try:
        return describe(ready.stored.sha256, header)
    except ModelUnusable:
        if ready.partial is not None:
            ready.partial.discard()
        raise


def _changed(error: DownloadFailed, place: Place, fetch: Fetch, name: str) -> EdgeError:
    if place.wanted.pinned and fetch.refused:
        return DownloadFailed(
            f"{error.message}. The sum is that of the first fetch: if the change is meant, `edge models remove {name}` and "
            f"`edge models pull {name}` take the new file"
        )
    return error
