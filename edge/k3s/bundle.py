"""Makes a drop-in directory for K3s machines without a network: image, chart, models, keys, checksums, what to do.

The directory is made under another name and gets its own when it is whole. The same inputs give the same bytes and modes,
whatever the umask of who makes it: on the machine the node's user must be able to read them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge.api.auth import KeyStore
from edge.durable import FULL, sync_directory
from edge.errors import ConfigurationError, DiskFull, EdgeError, ModelUnusable, StoreUnwritable
from edge.k3s import chart, manifest
from edge.k3s.archive import Image, copy_image
from edge.k3s.readme import Stick, readme
from edge.k3s.site import (
    Site,
    read_site,
    require_gpu_said,
    require_one_gpu_mode,
    require_this_image,
    require_valid,
)
from edge.quantities import size
from edge.registry.digest import read_blocks, sha256_of
from edge.registry.gguf import read_header
from edge.registry.resolve import Registry
from edge.registry.space import free_bytes
from edge.settings import NAME_PATTERN

_IMAGES = Path("rootfs/var/lib/rancher/k3s/agent/images")
_MANIFESTS = Path("rootfs-server/var/lib/rancher/k3s/server/manifests")
_KEYS = Path("keys")
"""Not among the manifests: K3s applies those anew at each start, and a key that was revoked meanwhile would be valid again."""
_MODELS = Path("rootfs" + manifest.MODELS_PATH)
_SUMS = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Carried:
    """A GGUF file to bring along, and what it is called there."""

    path: Path
    file: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a bundle is made of. The first of `models` is the node's own. `keys`: a file that `edge keys` wrote. `gpu`: the
    chart's gpu.mode. `cache_file`: K3s shall import the image once, and not at each start."""

    image: Path
    image_name: str | None
    models: tuple[Carried, ...]
    keys: Path | None
    values: Path | None
    namespace: str
    gpu: str | None = None
    cache_file: bool = False


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
    keys, site = _keys(wish.keys), read_site(wish.values) if wish.values is not None else None
    require_one_gpu_mode(wish.gpu, site)
    _require_models(wish.models)
    _require_room(target.parent, [model.path for model in wish.models])
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}")  # nobody else's, whoever writes there too
    try:
        try:
            draft.mkdir()
            bundle = _fill(draft, wish, keys, site, observer)
            draft.replace(target)
            sync_directory(target.parent)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        raise _storage_error(error, target.parent) from None
    return bundle


def _fill(draft: Path, wish: Wish, keys: bytes | None, site: Site | None, observer: Observer) -> Bundle:
    for directory in (_IMAGES, _MANIFESTS, Path("helm")):
        (draft / directory).mkdir(parents=True)
    source = chart.chart_directory()
    if site is not None:  # again with the image's part when that is known; but most mistakes need not wait for it
        require_valid(source, [site.values], site.path)
    unnamed = draft / _IMAGES / "image.tar.zst"
    image = copy_image(wish.image, unnamed, wish.image_name, lambda done: observer.goes_on("image", done))
    require_gpu_said(wish.gpu, image, site)
    if site is not None:
        require_this_image(image, site)
    archive = unnamed.replace(unnamed.with_name(f"{chart.NAME}-{image.name.tag}-{image.architecture}.tar.zst"))
    if wish.cache_file:
        (draft / _IMAGES / ".cache.json").write_bytes(b"")
    computed = _values(wish, image, _copy_models(draft, wish.models, observer))
    _write_chart(draft, source, computed, wish.namespace)
    if site is not None:
        require_valid(source, [computed, site.values], site.path)
        (draft / _MANIFESTS / "edge-node-values.yaml").write_bytes(manifest.helm_chart_config(site.text).encode())
        (draft / "helm" / "site-values.yaml").write_bytes(site.text.encode())
    if keys is not None:
        (draft / _KEYS).mkdir(mode=0o700)
        (draft / _KEYS / "edge-node-keys.yaml").write_bytes(manifest.keys_secret(keys, wish.namespace).encode())
    stick = Stick(
        image=str(image.name),
        architecture=image.architecture,
        archive=archive.name,
        models=tuple(model.file for model in wish.models),
        namespace=wish.namespace,
        has_keys=keys is not None,
        has_site_values=site is not None,
        has_cache_file=wish.cache_file,
    )
    (draft / "README.md").write_bytes(readme(stick).encode())
    return _sealed(draft, image)


def _copy_models(draft: Path, models: tuple[Carried, ...], observer: Observer) -> dict[str, str]:
    """Their sums (sha256), by their names there."""
    if models:
        (draft / _MODELS).mkdir(parents=True)
    return {model.file: _copy(model.path, draft / _MODELS / model.file, observer) for model in models}


def _write_chart(draft: Path, source: Path, computed: dict[str, Any], namespace: str) -> None:
    """For K3s, and as it is for other clusters."""
    packed, version = chart.packed(source), chart.chart_version(source)
    (draft / _MANIFESTS / "edge-node.yaml").write_bytes(manifest.helm_chart(packed, computed, namespace).encode())
    (draft / "helm" / f"{chart.NAME}-{version}.tgz").write_bytes(packed)
    (draft / "helm" / "values.yaml").write_bytes(manifest.yaml_map(computed).encode())


def _sealed(draft: Path, image: Image) -> Bundle:
    """Write the checksums, of what can be read back, and give everything its mode."""
    paths = sorted(path for path in draft.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(draft).as_posix()}\n" for path in paths]
    (draft / _SUMS).write_bytes("".join(lines).encode())
    for path in (draft, *draft.rglob("*")):
        secret = path.is_relative_to(draft / _KEYS)
        _set_mode(path, (0o700 if secret else 0o755) if path.is_dir() else (0o600 if secret else 0o644))
    for path in (draft, *draft.rglob("*")):  # who is told that it is made may pull the stick
        _sync(path)
    return Bundle(image, sum(path.stat().st_size for path in (*paths, draft / _SUMS)), len(paths) + 1)


def _set_mode(path: Path, mode: int) -> None:
    """Where there are modes: FAT has none. What is copied from there gets them by the README's command."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise


def _values(wish: Wish, image: Image, sums: Mapping[str, str]) -> dict[str, Any]:
    """The chart's values that follow from what is on the stick.

    The sums stand in the pods' annotations: with another image or model under the same name, the pods are others too, and are
    replaced.
    """
    values: dict[str, Any] = {
        "fullnameOverride": chart.NAME,
        "image": {"repository": image.name.repository, "tag": image.name.tag, "pullPolicy": "Never"},
        "nodeSelector": {"kubernetes.io/arch": image.architecture},
        "apiKeys": {"existingSecret": manifest.KEYS_SECRET},
        "podAnnotations": {"checksum/image": image.config_digest},
    }
    if sums:
        own, *further = sums
        lines = "".join(f"{sums[name]}  {name}\n" for name in sums)
        values["podAnnotations"]["checksum/models"] = hashlib.sha256(lines.encode()).hexdigest()
        values["model"] = {"source": "hostPath", "file": own, "hostPath": {"path": manifest.MODELS_PATH}}
        if further:
            values["config"] = {"models": {Path(name).stem: {"source": f"/models/{name}"} for name in further}}
    if wish.gpu is not None:
        values["gpu"] = {"mode": wish.gpu}
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


def _copy(source: Path, target: Path, observer: Observer) -> str:
    """The sum of what was copied. Raises ModelUnusable."""
    done, digest = 0, hashlib.sha256()
    with target.open("wb") as copy:
        for block in read_blocks(source):
            copy.write(block)
            digest.update(block)
            done += len(block)
            observer.goes_on(source.name, done)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir():
        sync_directory(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _storage_error(error: OSError, where: Path) -> EdgeError:
    if error.errno == errno.EFBIG:
        return DiskFull(f"a file is larger than the file system of {where} allows; format the stick as exFAT or ext4")
    if error.errno in FULL:
        return DiskFull(f"the disk of {where} is full ({error.strerror}); use a larger stick. Nothing is left there")
    return StoreUnwritable(f"{where} cannot be written ({error.strerror or error}); choose another directory with --to")
