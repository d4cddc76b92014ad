"""Manifests for files that came without one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from edge.dialects.tools import detect_tool_format
from edge.durable import storage_error, write_atomically
from edge.errors import ModelUnusable
from edge.registry.gguf import GgufHeader
from edge.registry.manifest import NAME_PATTERN, Manifest, manifest_text
from edge.registry.source import file_mode

Describe = Callable[[str, GgufHeader], Manifest]
"""Makes the manifest of a model without one, from its sum and its header."""


def described(name: str, source: str, shown: str, licence: str) -> Describe:
    """How a manifest is made for a file that has none."""

    def describe(sha256: str, header: GgufHeader) -> Manifest:
        tools = detect_tool_format(header.chat_template)
        if header.context_tokens <= 0:
            raise ModelUnusable(
                f"{shown} does not say how long its context is; it is no language model of a kind known here"
            )
        return Manifest(
            name=name,
            task=header.reads or ("chat" if header.chat_template else "completion"),
            source=source,
            sha256=sha256,
            size_bytes=header.file_bytes,
            licence=licence,
            parameters=header.parameters,
            context_tokens=header.context_tokens,
            tools_format="none" if tools is None else tools.value,
            description=f"{header.name or name}, {header.quantization}, from {shown}.",
        )

    return describe


def name_from_file(file: str) -> str:
    """A model's name made from a file's. Raises ModelUnusable where none can be."""
    name = re.sub(r"[^a-z0-9._-]+", "-", file.lower().removesuffix(".gguf")).strip("-._")[:63]
    if not re.match(NAME_PATTERN, name):
        raise ModelUnusable(f"no name can be made from {file!r}; choose one with --name")
    return name


def write_manifest(directory: Path, manifest: Manifest, command: str) -> Path:
    """Put a manifest where this node finds it. Raises StoreUnwritable, DiskFull."""
    path = directory / f"{manifest.name}.toml"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomically(path, manifest_text(manifest, command).encode(), file_mode(manifest.source))
    except OSError as error:
        raise storage_error(error, directory) from None
    return path
