"""Manifests of models that read text, and how such models are found."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest

from bench.make_gguf_encoder import write_encoder
from bench.make_onnx import SHAPES, Head
from bench.make_onnx import write_encoder as write_onnx_encoder
from edge.errors import ConfigurationError, ModelUnusable
from edge.registry.digest import sha256_of
from edge.registry.inventory import Inventory
from edge.registry.manifest import Encoder, Manifest, manifest_text, read_manifest
from edge.registry.resolve import Registry, ResolvedModel, ResolvedTensors
from edge.registry.store import RECORD_VERSION
from tests.engine.conftest import Q4_0
from tests.registry.conftest import Watcher

HEAD = 'name = "oak"\nsource = "file:/stick/model.onnx"\nlicence = "MIT"\ncontext_tokens = 128\ndescription = "Made."\n'
TOKENIZER = '[[files]]\nfile = "tokenizer.json"\nsource = "file:/stick/tokenizer.json"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('task = "embedding"\n', r"needs \[encoder\] with `pooling`: mean, cls, last or none"),
        ('task = "embedding"\n[encoder]\nnormalise = true\n', r"needs \[encoder\] with `pooling`"),
        ('task = "embedding"\n[encoder]\npooling = "middle"\n', r"encoder\.pooling"),
        ('task = "embedding"\n[encoder]\npooling = "mean"\nspeed = 1\n', r"encoder\.speed"),
        ('task = "embedding"\n[encoder]\npooling = "mean"\ndimensions = [0]\n', r"encoder\.dimensions"),
        ('task = "embedding"\n[encoder]\npooling = "mean"\n', r"needs tokenizer\.json among its \[\[files\]\]"),
        ('task = "classification"\n', r"needs \[encoder\] with `labels`"),
        ('task = "classification"\n[encoder]\nlabels = ["a", "a"]\n', "two labels are the same"),
        (
            'task = "detection"\n[encoder]\npooling = "mean"\n',
            r"\[encoder\] is for embedding, rerank and classification",
        ),
    ],
)
def test_a_manifest_that_leaves_something_open_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "oak.toml").write_text(HEAD + text)
    with pytest.raises(ConfigurationError, match=said):
        read_manifest(tmp_path / "oak.toml")


def test_a_manifest_is_read_again_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "oak.toml").write_text(
        f'{HEAD}task = "embedding"\n[encoder]\npooling = "cls"\nquery_prompt = "q: \\"x\\" "\ndimensions = [8, 16]\n{TOKENIZER}'
    )
    manifest = read_manifest(tmp_path / "oak.toml")
    assert manifest.encoder == Encoder(pooling="cls", query_prompt='q: "x" ', dimensions=[8, 16])
    (tmp_path / "again.toml").write_text(manifest_text(manifest, "a test"))
    assert read_manifest(tmp_path / "again.toml") == manifest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[encoder]\npooling = "none"\n', "`pooling` none is for ONNX models"),
        ('[encoder]\noutput = "x"\n', "`output` is for ONNX models"),
    ],
)
def test_a_gguf_file_says_itself_how_it_pools(tmp_path: Path, text: str, said: str) -> None:
    head = HEAD.replace("model.onnx", "model.gguf") + 'task = "embedding"\n'
    (tmp_path / "oak.toml").write_text(head)
    assert read_manifest(tmp_path / "oak.toml").served
    (tmp_path / "oak.toml").write_text(head + text)
    with pytest.raises(ConfigurationError, match=said):
        read_manifest(tmp_path / "oak.toml")


@pytest.mark.parametrize(("head", "task"), [(None, "embedding"), ("reranker", "rerank")])
def test_a_bare_gguf_encoder_is_known_by_its_header_and_is_no_model_of_the_nodes_own(
    home: Path, tmp_path: Path, head: Head | None, task: str
) -> None:
    path = write_encoder(tmp_path / "Oak-v2.gguf", SHAPES["tiny"], head=head)
    registry = known(home)
    found = registry.find(str(path))
    assert isinstance(found, ResolvedTensors) and (found.task, found.name) == (task, "Oak-v2")
    assert found.header is not None and found.header.context_tokens == 128
    with pytest.raises(
        ModelUnusable, match=rf"is for {task}, .* with `\[models\.Oak-v2\]` and `source = \"{path}\"` in edge"
    ):
        registry.resolve(str(path))


def test_a_gguf_encoder_that_is_added_gets_a_manifest_of_its_task(home: Path, tmp_path: Path) -> None:
    path = write_encoder(tmp_path / "oak.gguf", SHAPES["tiny"])
    Inventory(home).add(path, Watcher(), name=None, link=True, licence="MIT")
    found = Registry.at(home).find("oak")
    assert isinstance(found, ResolvedTensors) and found.task == "embedding" and found.manifest is not None
    assert found.manifest.context_tokens == 128 and found.manifest.encoder is None


EYES = '[detector]\nlayout = "detr"\nsize = [64, 64]\nlabels = ["a", "b"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (EYES.replace("detr", "ssd"), r"detector\.layout"),
        (EYES.replace("[64, 64]", "[64]"), r"detector\.size"),
        (EYES.replace('"a", "b"', ""), r"detector\.labels"),
        (EYES + "threshold = 2.0\n", r"detector\.threshold"),
        (EYES + "std = [1.0, 0.0, 1.0]\n", r"detector\.std"),
    ],
)
def test_a_detector_that_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "oak.toml").write_text(HEAD + 'task = "detection"\n' + text)
    with pytest.raises(ConfigurationError, match=said):
        read_manifest(tmp_path / "oak.toml")


def test_a_detector_is_read_as_it_was_written_and_without_its_section_it_is_not_served(home: Path) -> None:
    (home / "oak").mkdir()
    (home / "oak" / "model.onnx").write_bytes(b"a model")
    path, registry = home / "oak.toml", Registry([home], home / "verified.json")
    path.write_text(f'{HEAD}file = "oak/model.onnx"\ntask = "detection"\n')
    with pytest.raises(
        ModelUnusable, match=r"oak has no \[detector\], which says how its outputs are read; add it to .*oak\.toml"
    ):
        registry.find("oak")
    path.write_text(f'{HEAD}file = "oak/model.onnx"\ntask = "detection"\n{EYES}fit = "letterbox"\n')
    manifest = read_manifest(path)
    assert manifest.served and manifest.detector is not None and manifest.detector.labels == ["a", "b"]
    found = registry.find("oak")
    assert isinstance(found, ResolvedTensors) and found.task == "detection"
    path.write_text(manifest_text(manifest, "a test"))
    assert read_manifest(path) == manifest
    path.write_text(HEAD + 'task = "rerank"\n' + EYES + TOKENIZER)
    with pytest.raises(ConfigurationError, match=r"\[detector\] is for detection, not for rerank"):
        read_manifest(path)


def known(home: Path, *, parts: bool = True) -> Registry:
    """A home with an encoder beside its manifest; what is in the file is not looked at here."""
    (home / "oak").mkdir()
    (home / "oak" / "model.onnx").write_bytes(b"a model")
    if parts:
        (home / "oak" / "tokenizer.json").write_text("{}")
    (home / "oak.toml").write_text(
        f'{HEAD}file = "oak/model.onnx"\ntask = "embedding"\n[encoder]\npooling = "mean"\n{TOKENIZER}'
    )
    return Registry([home], home / "verified.json")


def test_an_encoder_is_found_with_its_files_and_is_no_model_of_the_nodes_own(home: Path) -> None:
    registry = known(home)
    found = registry.find("oak")
    assert isinstance(found, ResolvedTensors) and found.file_bytes == 7
    assert found.files == {"model.onnx": home / "oak" / "model.onnx", "tokenizer.json": home / "oak" / "tokenizer.json"}
    with pytest.raises(ModelUnusable, match=r"oak is for embedding, and the node's own model must write text"):
        registry.resolve("oak")


def test_a_bare_file_is_found_by_its_path_and_a_language_model_as_before(home: Path) -> None:
    registry = known(home)
    bare = registry.find(str(home / "oak" / "model.onnx"))
    assert isinstance(bare, ResolvedTensors) and bare.manifest is None and bare.name == "model"
    with pytest.raises(ModelUnusable, match=r"cannot read /nowhere/m\.onnx"):
        registry.find("/nowhere/m.onnx")
    (home / "folder.onnx").mkdir()
    os.mkfifo(home / "tube.onnx")
    for odd in ("folder.onnx", "tube.onnx"):
        with pytest.raises(ModelUnusable, match=f"{odd} is no regular file"):
            registry.find(str(home / odd))
    assert isinstance(registry.find(str(Q4_0)), ResolvedModel)


def test_a_missing_tokenizer_is_named(home: Path) -> None:
    with pytest.raises(
        ModelUnusable, match=r"tokenizer\.json of model oak is not beside it: put it at .*/oak/tokenizer\.json"
    ):
        known(home, parts=False).find("oak")


def test_which_models_this_version_serves(tmp_path: Path) -> None:
    def served(source: str, task: str) -> bool:
        fields = {
            "name": "x",
            "task": task,
            "source": source,
            "licence": "MIT",
            "context_tokens": 8,
            "description": "x",
        }
        encoder = {"pooling": "mean", "labels": ["a"]} if task in ("embedding", "classification") else None
        files = [{"file": "tokenizer.json", "source": "hf:a/b:tokenizer.json"}]
        return Manifest.model_validate({**fields, "encoder": encoder, "files": files}).served

    assert all(served("hf:a/b:model.onnx", task) for task in ("embedding", "rerank", "classification"))
    assert all(served("hf:a/b:Q8_0", task) for task in ("embedding", "rerank", "chat"))
    assert not served("hf:a/b:Q8_0", "classification")


# --- weights in a file of their own -----------------------------------------------------------------------------------


def apart(directory: Path) -> Path:
    """A model whose weights lie in `model.onnx_data`."""
    write_onnx_encoder(directory, SHAPES["tiny"])
    model = onnx.load(directory / "model.onnx")
    (directory / "model.onnx").unlink()
    onnx.save(
        model, directory / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )
    return directory


def know_apart(home: Path, stick: Path) -> Registry:
    (home / "models").mkdir(exist_ok=True)
    parts = "".join(
        f'[[files]]\nfile = "{name}"\nsource = "file:{stick / name}"\n'
        for name in ("tokenizer.json", "model.onnx_data")
    )
    (home / "models" / "elm.toml").write_text(
        f'name = "elm"\nsource = "file:{stick}/model.onnx"\nlicence = "MIT"\ncontext_tokens = 128\ndescription = "Made."\n'
        f'task = "embedding"\n[encoder]\npooling = "mean"\n{parts}'
    )
    return Registry.at(home)


def test_weights_in_a_second_file_are_found_from_the_store(home: Path, tmp_path: Path) -> None:
    stick = apart(tmp_path / "stick")
    registry, inventory = know_apart(home, stick), Inventory(home)
    inventory.pull("elm", Watcher(), licence="MIT")
    found = registry.find("elm")
    assert isinstance(found, ResolvedTensors)
    assert (
        found.file_bytes == sum((stick / name).stat().st_size for name in ("model.onnx", "model.onnx_data")) > 600_000
    )
    bare = registry.find(str(stick / "model.onnx"))
    assert isinstance(bare, ResolvedTensors) and bare.file_bytes == found.file_bytes
    session = onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == ["last_hidden_state", "pooler_output"]
    assert found.path.samefile(registry.store.blob(sha256_of(stick / "model.onnx"))), "it takes its bytes once"


def test_a_tree_goes_and_comes_back_with_its_model(home: Path, tmp_path: Path) -> None:
    stick = apart(tmp_path / "stick")
    registry, inventory = know_apart(home, stick), Inventory(home)

    def trees() -> list[Path]:
        return list((registry.store.root / "trees").iterdir())

    inventory.pull("elm", Watcher(), licence="MIT")
    (tree,) = trees()
    shutil.rmtree(tree)  # as from a store of an older version
    assert inventory.pull("elm", Watcher(), licence="MIT").already and trees() == [tree]
    blob = registry.store.blob(sha256_of(stick / "model.onnx_data"))
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.write(b"damage")
    checks = {check.file: check.verdict for check in inventory.verify(["elm"], lambda name, path: None)}
    assert checks["model.onnx_data"] == "damaged" and trees() == [], "nobody loads what was set aside"
    with pytest.raises(ModelUnusable, match=r"model\.onnx_data of model elm is not in the store any more"):
        registry.find("elm")
    inventory.pull("elm", Watcher(), licence="MIT")
    assert trees() == [tree] and isinstance(registry.find("elm"), ResolvedTensors)
    (registry.store.root / "trees" / ".left").mkdir()
    inventory.prune(every_partial=False, dry_run=False)
    assert trees() == [tree]
    inventory.remove("elm")
    assert trees() == []


def test_a_tree_outlives_the_time_in_which_its_record_cannot_be_read(home: Path, tmp_path: Path) -> None:
    """As after a downgrade: whatever is pruned, fetched or removed meanwhile, the model loads after the upgrade."""
    registry, inventory = know_apart(home, apart(tmp_path / "stick")), Inventory(home)
    inventory.pull("elm", Watcher(), licence="MIT")
    path = registry.store.root / "names" / "elm.json"
    written = path.read_text()
    path.write_text(json.dumps({**json.loads(written), "version": RECORD_VERSION + 1}))
    inventory.prune(every_partial=False, dry_run=False)
    write_onnx_encoder(tmp_path / "other", SHAPES["tiny"])
    (home / "models" / "oak.toml").write_text(
        HEAD.replace("/stick", str(tmp_path / "other")) + 'task = "embedding"\n[encoder]\npooling = "mean"\n'
        + TOKENIZER.replace("/stick", str(tmp_path / "other"))
    )  # fmt: skip
    inventory.pull("oak", Watcher(), licence="MIT")
    inventory.remove("oak")
    path.write_text(written)
    found = registry.find("elm")
    assert found.path.with_name("model.onnx_data").exists()
    onnxruntime.InferenceSession(str(found.path), providers=["CPUExecutionProvider"])
