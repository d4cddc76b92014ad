"""A model of some megabytes, a server to fetch it from, and an EDGE_HOME to fetch it into."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
import pytest

from bench.file_server import FileServer, Served
from edge.registry.fetch import Patience
from edge.registry.inventory import Inventory
from edge.registry.pull import Pulled

SOON = Patience(pause_s=0.001, longest_pause_s=0.01)

MANIFEST = """
name = "{name}"
task = "{task}"
source = "{source}"
licence = "Apache-2.0"
context_tokens = 128
description = "A test model."
"""


@dataclass
class Watcher:
    """An observer that remembers."""

    begun: list[tuple[str, int, int | None]] = field(default_factory=list)
    notes_said: list[str] = field(default_factory=list)
    most: int = 0

    def begins(self, file: str, have_bytes: int, size_bytes: int | None) -> None:
        self.begun.append((file, have_bytes, size_bytes))

    def has(self, have_bytes: int) -> None:
        self.most = max(self.most, have_bytes)

    def notes(self, text: str) -> None:
        self.notes_said.append(text)


@dataclass
class Node:
    """An EDGE_HOME with what a test does to it."""

    home: Path
    watcher: Watcher

    @property
    def inventory(self) -> Inventory:
        return Inventory(self.home)

    @property
    def store(self) -> Path:
        return self.home / "store"

    def know(self, name: str, source: str, task: str = "chat", **keys: object) -> None:
        """Write a manifest."""
        (self.home / "models").mkdir(exist_ok=True)
        text = MANIFEST.format(name=name, source=source, task=task)
        text += "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in keys.items())
        (self.home / "models" / f"{name}.toml").write_text(text)

    def pull(self, wish: str, patience: Patience = SOON, **options: str) -> Pulled:
        return self.inventory.pull(wish, self.watcher, licence="MIT", patience=patience, **options)

    def state(self, name: str) -> str:
        return next(row.state for row in self.inventory.rows() if row.name == name)

    def blobs(self) -> list[str]:
        return sorted(path.name for path in (self.store / "blobs").iterdir())

    def partials(self) -> list[Path]:
        return sorted((self.store / "partial").glob("*.part"))


@pytest.fixture
def node(home: Path) -> Node:
    return Node(home, Watcher())


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as running:
        yield running


@pytest.fixture(scope="session")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real GGUF file of 3 MB."""
    return gguf_bytes(tmp_path_factory.mktemp("gguf") / "model.gguf", seed=1)


def gguf_bytes(path: Path, seed: int, name: str = "Tiny") -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_context_length(128)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(300)])
    writer.add_chat_template("{{ messages[0].content }}")
    weights = np.random.default_rng(seed).random((1500, 1000), dtype=np.float32).astype(np.float16)
    writer.add_tensor("token_embd.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def served(server: FileServer, model_bytes: bytes) -> Served:
    """The model at /m.gguf."""
    server.routes["/m.gguf"] = found = Served(model_bytes)
    return found
