"""Makes a drop-in directory for K3s machines without a network: image, chart, models, keys, checksums, three commands.

The directory is made under another name and gets its own when it is whole. The same inputs give the same bytes.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge.api.auth import KeyStore
from edge.errors import ConfigurationError, DiskFull, EdgeError, ModelUnusable, StoreUnwritable
from edge.k3s import chart, manifest
from edge.k3s.archive import Image, copy_image
from edge.quantities import size
from edge.registry.digest import BLOCK_BYTES, sha256_of
from edge.registry.durable import FULL, sync_directory
from edge.registry.gguf import read_header
from edge.registry.resolve import Registry
from edge.registry.space import free_bytes
from edge.settings import NAME_PATTERN

_IMAGES = Path("rootfs/var/lib/rancher/k3s/agent/images")
_MANIFESTS = Path("rootfs/var/lib/rancher/k3s/server/manifests")
_MODELS = Path("rootfs" + manifest.MODELS_PATH)
_SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Carried:
    """A GGUF file to bring along, and what it is called there."""

    path: Path
    file: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a bundle is made of. The first of `models` is the node's own. `keys`: a file that `edge keys` wrote."""

    image: Path
    image_name: str | None
    models: tuple[Carried, ...]
    keys: Path | None
    values: Path | None
    namespace: str


def carried(wish: str, registry: Registry) -> Carried:
    """A GGUF file by its path, or a model that is known and here by its name. Raises ModelUnusable, ConfigurationError."""
    path = Path(wish).expanduser()
    if path.suffix == ".gguf" or path.exists():
        return Carried(path, path.name)
    model = registry.resolve(wish)
    return Carried(model.path, f"{model.name}.gguf")


class Observer(Protocol):
    """Who wants to see it grow."""

    def goes_on(self, what: str, done_bytes: int) -> None:
        """So much of `what` is there."""
        ...


@dataclass(frozen=True, slots=True)
class Bundle:
    """What came of it."""

    image: Image
    size_bytes: int
    files: int


def make_bundle(wish: Wish, target: Path, observer: Observer) -> Bundle:
    """Write the directory `target`, whole or not at all.

    Raises ArchiveUnusable, ModelUnusable, ConfigurationError, DiskFull, StoreUnwritable.
    """
    target = target.absolute()
    _require_new(target)
    keys, values = _keys(wish.keys), _text(wish.values)
    _require_models(wish.models)
    _require_room(target.parent, [model.path for model in wish.models])
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.mkdir()
        try:
            bundle = _fill(draft, wish, keys, values, observer)
            draft.replace(target)
            sync_directory(target.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise _storage_error(error, target.parent) from None
    return bundle


def _fill(draft: Path, wish: Wish, keys: bytes | None, values: str | None, observer: Observer) -> Bundle:
    for directory in (_IMAGES, _MANIFESTS, Path("helm")):
        (draft / directory).mkdir(parents=True)
    unnamed = draft / _IMAGES / "image.tar.zst"
    image = copy_image(wish.image, unnamed, wish.image_name, lambda done: observer.goes_on("image", done))
    source = chart.chart_directory()
    version = chart.chart_version(source)
    unnamed.replace(unnamed.with_name(f"{chart.NAME}-{image.name.tag}-{image.architecture}.tar.zst"))
    _write(draft / _IMAGES / ".cache.json", b"")
    if wish.models:
        (draft / _MODELS).mkdir(parents=True)
    for model in wish.models:
        _copy(model.path, draft / _MODELS / model.file, observer)
    packed, computed = chart.packed(source), _values(image, wish.models)
    _write(draft / _MANIFESTS / "edge-node.yaml", manifest.helm_chart(packed, computed, wish.namespace).encode())
    if values is not None:
        _write(draft / _MANIFESTS / "edge-node-values.yaml", manifest.helm_chart_config(values).encode())
        _write(draft / "helm" / "site-values.yaml", values.encode())
    if keys is not None:
        _write(draft / _MANIFESTS / "edge-node-keys.yaml", manifest.keys_secret(keys, wish.namespace).encode())
    _write(draft / "helm" / f"{chart.NAME}-{version}.tgz", packed)
    _write(draft / "helm" / "values.yaml", manifest.yaml_map(computed).encode())
    names = [model.file for model in wish.models]
    text = manifest.readme(str(image.name), image.architecture, names, wish.namespace, has_keys=keys is not None)
    _write(draft / "README.md", text.encode())
    return _sealed(draft, image)


def _sealed(draft: Path, image: Image) -> Bundle:
    """Write the checksums, of what can be read back."""
    paths = sorted(path for path in draft.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(draft).as_posix()}\n" for path in paths]
    _write(draft / _SUMS, "".join(lines).encode())
    for directory in sorted(path for path in draft.rglob("*") if path.is_dir()):
        sync_directory(directory)
    return Bundle(image, sum(path.stat().st_size for path in (*paths, draft / _SUMS)), len(paths) + 1)


def _values(image: Image, models: tuple[Carried, ...]) -> dict[str, Any]:
    """The chart's values that follow from what is on the stick."""
    values: dict[str, Any] = {
        "fullnameOverride": chart.NAME,
        "image": {"repository": image.name.repository, "tag": image.name.tag, "pullPolicy": "Never"},
        "nodeSelector": {"kubernetes.io/arch": image.architecture},
        "apiKeys": {"existingSecret": manifest.KEYS_SECRET},
    }
    if models:
        own, *further = models
        values["model"] = {"source": "hostPath", "file": own.file, "hostPath": {"path": manifest.MODELS_PATH}}
        if further:
            tables = {Path(model.file).stem: {"source": f"/models/{model.file}"} for model in further}
            values["config"] = {"models": tables}
    return values


def _require_new(target: Path) -> None:
    if target.exists():
        raise ConfigurationError(f"{target} exists already; remove it, or choose another directory")
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no directory {target.parent}; make it first, or mount the stick there")


def _require_models(models: tuple[Carried, ...]) -> None:
    for model in models:
        if not model.file.endswith(".gguf"):
            raise ModelUnusable(f"{model.path} is no GGUF file; bundles carry GGUF files")
        if not re.fullmatch(NAME_PATTERN, model.file) or set(model.file) & set(":/"):
            raise ModelUnusable(
                f"{model.file!r} is no name for a model: rename the file to letters, digits and . _ + -"
            )
        read_header(model.path)
    names = [model.file for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ModelUnusable(f"two models are named {twice}; give one of the files another name")


def _require_room(directory: Path, files: Iterable[Path]) -> None:
    """Over what is copied as it is; what images come to is known only when they are packed."""
    needed, free = sum(path.stat().st_size for path in files), free_bytes(directory)
    if needed > free:
        raise DiskFull(
            f"not enough space: the models have {size(needed)}, the disk of {directory} has {size(free)} free; "
            "use a larger stick"
        )


def _keys(path: Path | None) -> bytes | None:
    if path is None:
        return None
    if not KeyStore(path).all():
        raise ConfigurationError(f"{path} holds no API keys; `edge --home DIR keys create NAME` writes DIR/keys.json")
    return path.read_bytes()


def _text(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"cannot read {path}: {reason}") from None


def _copy(source: Path, target: Path, observer: Observer) -> None:
    try:
        file = source.open("rb")
    except OSError as error:
        raise ModelUnusable(f"cannot read {source}: {error.strerror or error}") from None
    done = 0
    with file, target.open("wb") as copy:
        while block := file.read(BLOCK_BYTES):
            copy.write(block)
            done += len(block)
            observer.goes_on(source.name, done)
        _sync(copy.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        _sync(file.fileno())


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _storage_error(error: OSError, where: Path) -> EdgeError:
    if error.errno == errno.EFBIG:
        return DiskFull(f"a file is larger than the file system of {where} allows; format the stick as exFAT or ext4")
    if error.errno in FULL:
        return DiskFull(f"the disk of {where} is full ({error.strerror}); use a larger stick. Nothing is left there")
    return StoreUnwritable(f"{where} cannot be written ({error.strerror or error}); choose another directory with --to")
