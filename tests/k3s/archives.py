"""Small image archives as podman and docker write them, with whatever is to be wrong with them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

NAME = "registry.example/edge-node:0.1.0"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _layer() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo("opt/edge/readme")
        entry.size = 5
        tar.addfile(entry, io.BytesIO(b"hello"))
    return out.getvalue()


@dataclass
class Contents:
    """The files of an archive, by path; `links` are symbolic."""

    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path, *, mtime: int = 0, uid: int = 0) -> Path:
        """As a tar file, packed as its name says."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, data in self.files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime, entry.uid = len(data), mtime, uid
                tar.addfile(entry, io.BytesIO(data))
            for name, to in self.links.items():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname, entry.mtime = tarfile.SYMTYPE, to, mtime
                tar.addfile(entry)
        packer = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(packer(out.getvalue()))
        return path


def config(
    arch: str = "amd64", env: tuple[str, ...] = ("EDGE_HOME=/var/lib/edge",), created: str = "1970-01-01T00:00:00Z"
) -> dict[str, Any]:
    """An image's configuration."""
    return {
        "created": created,
        "architecture": arch,
        "os": "linux",
        "config": {"Env": list(env), "Entrypoint": ["edge"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha(_layer())}"]},
    }


class Oci(Contents):
    """As `podman save --format oci-archive` writes it: one manifest for each name."""

    def __init__(self, *names: str, configs: tuple[dict[str, Any], ...] = (config(),), note: str = "") -> None:
        super().__init__()
        self.files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        layer = gzip.compress(_layer(), mtime=0)
        manifests = []
        for one in configs:
            described = {
                "schemaVersion": 2,
                "config": self.blob(json.dumps(one).encode(), "application/vnd.oci.image.config.v1+json"),
                "layers": [self.blob(layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
            }
            manifests.append(self.blob(json.dumps(described).encode(), "application/vnd.oci.image.manifest.v1+json"))
        (target,) = manifests if len(manifests) == 1 else [self.index(manifests)]
        key = note or "org.opencontainers.image.ref.name"
        entries = [{**target, "annotations": {key: name}} for name in names or (NAME,)]
        self.files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()

    def index(self, manifests: list[dict[str, Any]]) -> dict[str, Any]:
        """Several machines' manifests as one."""
        data = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
        return self.blob(data, "application/vnd.oci.image.index.v1+json")

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Lay it down and describe it."""
        self.files[f"blobs/sha256/{sha(data)}"] = data
        return {"mediaType": media_type, "digest": f"sha256:{sha(data)}", "size": len(data)}


class Docker(Contents):
    """As `podman save --format docker-archive` writes it."""

    def __init__(self, *names: str, described: dict[str, Any] | None = None) -> None:
        super().__init__()
        layer = _layer()
        self.layer = f"{sha(layer)}.tar"
        described_bytes = json.dumps(described or config()).encode()
        self.files = {self.layer: layer, f"{sha(described_bytes)}.json": described_bytes}
        self.links = {"old/layer.tar": f"../{self.layer}"}
        entry = {
            "Config": f"{sha(described_bytes)}.json",
            "RepoTags": list(names or (NAME,)),
            "Layers": ["old/layer.tar"],
        }
        self.files["manifest.json"] = json.dumps([entry]).encode()
