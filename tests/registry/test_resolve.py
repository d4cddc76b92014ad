"""Names and paths of models, and the checks before a file is loaded."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edge.errors import ConfigurationError, ModelUnusable
from edge.registry.resolve import Registry

MANIFEST = """
name = "{name}"
task = "chat"
source = "builtin"
file = "{file}"
sha256 = "{sha256}"
licence = "Apache-2.0"
context_tokens = 128
tools_format = "none"
description = "A test model."
"""


@pytest.fixture
def models(tmp_path: Path, tiny_gguf: Path) -> Path:
    directory = tmp_path / "models"
    directory.mkdir()
    data = tiny_gguf.read_bytes()
    (directory / "tiny.gguf").write_bytes(data)
    text = MANIFEST.format(name="tiny", file="tiny.gguf", sha256=hashlib.sha256(data).hexdigest())
    (directory / "tiny.toml").write_text(text)
    return directory


@pytest.fixture
def registry(models: Path, home: Path) -> Registry:
    return Registry([home / "models", models], home / "verified.json")


def test_a_name_finds_its_file(registry: Registry, models: Path) -> None:
    found = registry.resolve("tiny")
    assert (found.name, found.path) == ("tiny", models / "tiny.gguf")
    assert found.manifest is not None and found.manifest.context_tokens == 128


def test_a_path_needs_no_manifest(registry: Registry, tiny_gguf: Path) -> None:
    found = registry.resolve(str(tiny_gguf))
    assert (found.name, found.path, found.manifest) == ("tiny", tiny_gguf, None)


def test_a_checksum_is_computed_once_and_again_when_the_file_changes(registry: Registry, models: Path) -> None:
    told: list[tuple[Path, int]] = []

    def tell(path: Path, done_bytes: int) -> None:
        told.append((path, done_bytes))

    registry.resolve("tiny", tell)
    registry.resolve("tiny", tell)
    path = models / "tiny.gguf"
    assert told == [(path, 0), (path, path.stat().st_size)]
    status = (models / "tiny.gguf").stat()
    os.utime(models / "tiny.gguf", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    registry.resolve("tiny", tell)
    assert told == [(path, 0), (path, path.stat().st_size)] * 2


def test_a_changed_file_is_refused(registry: Registry, models: Path) -> None:
    data = bytearray((models / "tiny.gguf").read_bytes())
    data[-1] ^= 1
    (models / "tiny.gguf").write_bytes(data)
    with pytest.raises(ModelUnusable, match=r"not the file that its manifest names .* get it again"):
        registry.resolve("tiny")


def test_an_unknown_name_lists_the_known_ones(registry: Registry) -> None:
    with pytest.raises(ModelUnusable, match=r"unknown model 'tinny': known are tiny; or give the path"):
        registry.resolve("tinny")


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ("hf:bad", "write hf:OWNER/REPO"),
        ("file:model.gguf", "needs a whole path"),
        ("https://[/model.gguf", "the address cannot be read .* a source is"),
    ],
)
def test_what_is_no_source_is_refused_with_words(registry: Registry, wish: str, complaint: str) -> None:
    for ask in (registry.find, registry.elsewhere):
        with pytest.raises(ModelUnusable, match=complaint):
            ask(wish)


def test_a_name_that_can_be_no_files_is_unknown(registry: Registry) -> None:
    with pytest.raises(ModelUnusable, match="unknown model"):
        registry.resolve("a" * 300)


def test_a_known_model_without_its_file_says_where_to_put_it(registry: Registry, models: Path) -> None:
    (models / "tiny.gguf").unlink()
    with pytest.raises(ModelUnusable, match="its file is not here"):
        registry.resolve("tiny")


def test_the_operators_manifest_comes_first(registry: Registry, models: Path, home: Path) -> None:
    (home / "models").mkdir()
    text = (models / "tiny.toml").read_text().replace("A test model.", "Mine.")
    (home / "models" / "mine.toml").write_text(text)
    assert registry.manifests()["tiny"][0].description == "Mine."


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("colour = 'red'", "`colour`"),
        ("context_tokens = '7'", "not valid TOML"),
        ("= 3", "not valid TOML"),
        ("size_bytes = " + "9" * 5000, "not valid TOML"),
        ("x = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_wrong_manifest_is_named(registry: Registry, models: Path, line: str, complaint: str) -> None:
    with (models / "tiny.toml").open("a") as file:
        file.write(line)
    with pytest.raises(ConfigurationError, match=complaint):
        registry.resolve("tiny")


@pytest.mark.parametrize("text", ["", "name = 'half", "\0\0\0\0"])
def test_a_manifest_that_is_cut_short_costs_no_other_model(
    registry: Registry, home: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "models").mkdir()
    broken = home / "models" / "other.toml"
    broken.write_text(text)
    assert registry.resolve("tiny").name == registry.resolve("tiny").name == "tiny"
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("edge.registry.")]
    assert said.startswith(str(broken)) and said.endswith("; that model is left out")
    with pytest.raises(ConfigurationError, match=r"other\.toml"):
        registry.resolve("other")


def test_a_home_that_cannot_be_written_costs_only_time(models: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    registry = Registry([models], tmp_path / "file" / "verified.json")
    assert registry.resolve("tiny").name == "tiny"
