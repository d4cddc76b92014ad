"""Archives of container images: what `podman save` and `docker save` write. Read once, checked whole, written anew.

Every blob's checksum is compared while it is copied. What is written has no times and owners in it, so that one image gives
one file, whenever it was saved. The layout's specification: OCI image-layout.md; docker's older form: manifest.json with layers
as plain tar files.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edge.errors import ArchiveUnusable, ConfigurationError
from edge.k3s.reference import ImageName, full_name, is_full

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_LEVEL = 9
_JSON_BYTES = 8 << 20
"""Larger members are layers and are not kept in memory."""
_BLOBS = "blobs/sha256/"
_CONTAINERD_NAME, _OCI_NAME = "io.containerd.image.name", "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class Image:
    """The node's image in an archive."""

    name: ImageName
    architecture: str
    """As Kubernetes labels machines: amd64, arm64."""
    config_digest: str
    """sha256:... of its configuration, which names its layers: another one is another image, whatever its tag."""
    for_gpus: bool
    """It asks NVIDIA's container runtime for GPUs, as the images for CUDA and Jetson do."""


@dataclass(slots=True)
class _Members:
    """What was met on the way through an archive."""

    sums: dict[str, str] = field(default_factory=dict)
    """sha256 of each file, by path."""
    small: dict[str, bytes] = field(default_factory=dict)
    """Contents of the small ones."""
    links: dict[str, str] = field(default_factory=dict)


def copy_image(source: Path, target: Path, wanted: str | None, on_bytes: Callable[[int], None]) -> Image:
    """Check the image archive `source` and write it to `target` as .tar.zst. `wanted` chooses among several names.

    Raises ArchiveUnusable, ConfigurationError when zstandard is not installed, OSError when `target` cannot be written. What is
    in `target` is worth something only when this returns.
    """
    compressor = _zstandard().ZstdCompressor(level=_ZSTD_LEVEL, threads=-1, write_checksum=True)
    try:
        raw = source.open("rb")
    except OSError as error:
        raise _unread(source, error) from None
    with raw, target.open("wb") as file, compressor.stream_writer(file, closefd=False) as packed:
        members = _copied(source, raw, packed, on_bytes)
    try:
        images = _images(source, members)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ArchiveUnusable(
            f"{source} is no archive of a container image: what it says of its images is not as it must be "
            f"({type(error).__name__}: {error}); write it with `podman save -o FILE IMAGE`"
        ) from None
    return _chosen(source, images, wanted)


def _unread(source: Path, error: OSError) -> ArchiveUnusable:
    return ArchiveUnusable(f"cannot read {source}: {error.strerror or error}")


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise ConfigurationError(
            "packing images needs the package zstandard: pip install 'edge-node[bundle]', or in a checkout make install "
            "EXTRA=bundle"
        ) from None
    return zstandard


def _copied(source: Path, raw: IO[bytes], packed: Any, on_bytes: Callable[[int], None]) -> _Members:
    members = _Members()
    plain: Any = _Counted(source, raw, on_bytes)
    try:
        if plain.begins_with(_ZSTD_MAGIC):
            plain = _zstandard().ZstdDecompressor().stream_reader(plain)
        with (
            tarfile.open(fileobj=plain, mode="r|*") as read,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as written,
        ):
            for entry in read:
                _copy_member(source, read, entry, written, members)
    except (tarfile.TarError, EOFError, _zstandard().ZstdError) as error:
        what = "is no archive of a container image" if not members.sums else "ends in the middle, or is damaged"
        raise ArchiveUnusable(f"{source} {what} ({error}); write it with `podman save -o FILE IMAGE`") from None
    return members


def _copy_member(
    source: Path, read: tarfile.TarFile, entry: tarfile.TarInfo, written: tarfile.TarFile, members: _Members
) -> None:
    fresh = tarfile.TarInfo(entry.name)
    fresh.type, fresh.linkname, fresh.mode = entry.type, entry.linkname, 0o755 if entry.isdir() else 0o644
    name = entry.name.removeprefix("./").rstrip("/")
    if entry.isfile():
        fresh.size = entry.size
        content = read.extractfile(entry)
        assert content is not None
        watched = _Watched(content, keep=entry.size <= _JSON_BYTES)
        written.addfile(fresh, watched)
        members.sums[name] = watched.sum.hexdigest()
        if watched.kept is not None:
            members.small[name] = bytes(watched.kept)
        if name.startswith(_BLOBS) and name.removeprefix(_BLOBS) != members.sums[name]:
            raise ArchiveUnusable(f"{source} is damaged: {name} has another checksum than its name says; save it again")
        return
    if entry.issym() or entry.islnk():
        members.links[name] = entry.linkname
    elif not entry.isdir():
        raise ArchiveUnusable(f"{source} holds {name}, which no image has; write it with `podman save -o FILE IMAGE`")
    written.addfile(fresh)


def _images(source: Path, members: _Members) -> list[Image]:
    if "oci-layout" in members.small and "index.json" in members.small:
        return _oci_images(source, members)
    if "manifest.json" in members.small:
        return _docker_images(source, members)
    raise ArchiveUnusable(
        f"{source} is no archive of a container image: it has neither index.json nor manifest.json; write it with "
        "`podman save -o FILE IMAGE`"
    )


def _oci_images(source: Path, members: _Members) -> list[Image]:
    found = []
    for entry in _json(source, members, "index.json").get("manifests", []):
        notes = entry.get("annotations", {})
        text = notes.get(_CONTAINERD_NAME) or notes.get(_OCI_NAME) or ""
        if not is_full(text):
            raise ArchiveUnusable(
                f"{source} holds an image named {text or 'nothing'!r}, and containerd wants registry, path and tag: "
                "`podman tag` gives it a full name, such as registry.example/edge-node:1.0, to be saved under"
            )
        found += [
            _image(source, full_name(text), digest, config)
            for digest, config in _configurations(source, members, entry)
        ]
    return found


def _configurations(source: Path, members: _Members, entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Of a manifest, or of those that an index of several machines leads to and that are here."""
    manifest = _blob(source, members, entry["digest"])
    if "manifests" in manifest:
        here = [one for one in manifest["manifests"] if _path(one["digest"]) in members.sums]
        return [found for one in here for found in _configurations(source, members, one)]
    if "config" not in manifest:
        return []
    for layer in manifest.get("layers", []):
        if _path(layer["digest"]) not in members.sums:
            raise ArchiveUnusable(
                f"{source} is not whole: the layer {layer['digest']} is missing; save the image again"
            )
    digest = manifest["config"]["digest"]
    config = _blob(source, members, digest)
    return [(digest, config)] if "rootfs" in config else []  # a statement about the image has none


def _docker_images(source: Path, members: _Members) -> list[Image]:
    found = []
    for entry in json.loads(members.small["manifest.json"]):
        config = _json(source, members, entry["Config"])
        sums = config.get("rootfs", {}).get("diff_ids", [])
        for path, expected in zip(entry["Layers"], sums, strict=False):
            actual = members.sums.get(_followed(members, path))
            if actual is None:
                raise ArchiveUnusable(f"{source} is not whole: {path} is missing; save the image again")
            if f"sha256:{actual}" != expected:
                raise ArchiveUnusable(
                    f"{source} is damaged: {path} has another checksum than stated; save the image again"
                )
        if len(entry["Layers"]) != len(sums):
            raise ArchiveUnusable(
                f"{source} is not whole: {len(sums)} layers are stated, {len(entry['Layers'])} are named"
            )
        digest = f"sha256:{members.sums[_followed(members, entry['Config'])]}"
        found += [_image(source, full_name(tag), digest, config) for tag in entry.get("RepoTags") or []]
    if not found:
        raise ArchiveUnusable(f"{source} holds no image with a name: save it by its name, not by its id")
    return found


def _image(source: Path, name: ImageName, digest: str, config: dict[str, Any]) -> Image:
    names = [variable.partition("=")[0] for variable in config.get("config", {}).get("Env") or []]
    if "EDGE_HOME" not in names:
        raise ArchiveUnusable(
            f"{source} holds another image than the node's: it does not set EDGE_HOME; give the archive of the node's image"
        )
    return Image(name, str(config.get("architecture", "")), digest, "NVIDIA_VISIBLE_DEVICES" in names)


def _chosen(source: Path, images: list[Image], wanted: str | None) -> Image:
    names = ", ".join(sorted({str(image.name) for image in images})) or "none"
    fitting = [image for image in images if wanted is None or image.name == full_name(wanted)]
    if not fitting:
        raise ArchiveUnusable(f"{source} has no image {wanted or ''!r}; it has {names}")
    if len({image.name for image in fitting}) > 1:
        raise ArchiveUnusable(f"{source} has several images ({names}): choose one with --image-name")
    if len({image.architecture for image in fitting}) > 1:
        kinds = ", ".join(sorted({image.architecture for image in fitting}))
        raise ArchiveUnusable(f"{source} is for several kinds of machines ({kinds}): save one of them")
    return fitting[0]


def _json(source: Path, members: _Members, path: str) -> Any:
    data = members.small.get(_followed(members, path))
    try:
        if data is None:
            raise ValueError("it is missing")
        return json.loads(data)
    except ValueError as error:
        raise ArchiveUnusable(f"{source} is not whole: {path} cannot be read ({error}); save the image again") from None


def _blob(source: Path, members: _Members, digest: str) -> Any:
    return _json(source, members, _path(digest))


def _path(digest: str) -> str:
    return _BLOBS + digest.removeprefix("sha256:")


def _followed(members: _Members, path: str) -> str:
    """The file that a path means. Links lead to the archive's own root, one step up at most."""
    link = members.links.get(path)
    return link.removeprefix("../") if link is not None else path


class _Counted:
    """Tells how much was read so far. Raises ArchiveUnusable: a stick that cannot be read is no disk that cannot be written."""

    def __init__(self, source: Path, file: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._source, self._file, self._on_bytes, self._done = source, file, on_bytes, 0

    def begins_with(self, mark: bytes) -> bool:
        """Whether the file does. To be asked before anything is read."""
        try:
            found = self._file.read(len(mark))
            self._file.seek(0)
        except OSError as error:
            raise _unread(self._source, error) from None
        return found == mark

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise _unread(self._source, error) from None
        self._done += len(data)
        self._on_bytes(self._done)
        return data


class _Watched:
    """A file whose checksum is taken while it is read, and whose content is kept if it is small."""

    def __init__(self, file: IO[bytes], *, keep: bool) -> None:
        self._file = file
        self.sum = hashlib.sha256()
        self.kept: bytearray | None = bytearray() if keep else None

    def read(self, size: int = -1) -> bytes:
        """As of any file."""
        data = self._file.read(size)
        self.sum.update(data)
        if self.kept is not None:
            self.kept += data
        return data
