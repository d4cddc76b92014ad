"""State that a newer version wrote: an older one uses it or leaves it alone, and loses nothing of it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import pytest
from pydantic import BaseModel

from edge.api.auth import SCHEMA_VERSION, KeyStore
from edge.engine.calibrate import Threads
from edge.engine.statefiles import KeptSteps, StateFiles
from edge.engine.steps import StepTable
from edge.errors import ConfigurationError, ModelUnusable, Unavailable
from edge.registry.digest import CHECKSUMS_VERSION, Checksums, sha256_of
from edge.registry.manifest import MANIFEST_VERSION, Manifest, NewerManifest, known_part, read_manifest
from edge.registry.partial import STATE_VERSION, Partial, State
from edge.registry.resolve import Registry
from edge.registry.store import RECORD_VERSION, Ready, StoredFile
from edge.telemetry.otherversions import waiting
from edge.telemetry.outboxdisk import FILE
from edge.telemetry.outboxfile import FORM
from edge.versions import Fit, fit, fit_of
from tests.telemetry.conftest import HandClock, NodeSide, small_sample

ROOT = Path(__file__).resolve().parent.parent.parent
BUILTIN = ROOT / "models" / "builtin" / "edge-builtin-q4_0.gguf"


@pytest.mark.parametrize(
    ("version", "readable_by", "expected"),
    [
        (1, None, Fit.OWN),
        (2, None, Fit.OWN),
        (3, None, Fit.FOREIGN),
        (3, 3, Fit.FOREIGN),
        (3, 2, Fit.NEWER),
        (9, 1, Fit.NEWER),
    ],
)
def test_a_file_fits_by_its_version_and_by_what_its_writer_allows(
    version: int, readable_by: int | None, expected: Fit
) -> None:
    assert fit(version, readable_by, own=2) is expected


def test_marks_that_are_no_numbers_are_nobodys() -> None:
    assert fit_of({"version": "2"}, own=2) is Fit.FOREIGN
    assert fit_of({"version": 3, "readable_by": "1"}, own=2) is Fit.FOREIGN
    assert fit_of({}, own=1) is Fit.OWN


# --- keys.json --------------------------------------------------------------------------------------------------------


def _keys(path: Path) -> str:
    return KeyStore(path).create(
        "robot", scopes=("inference",), requests_per_minute=None, created="2026-01-01T00:00:00Z"
    )


def _change(path: Path, **marks: object) -> bytes:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **marks}), "utf-8")
    return path.read_bytes()


def test_keys_of_a_newer_version_that_allows_it_are_good_and_are_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = _keys(path)
    written = _change(path, version=SCHEMA_VERSION + 1, readable_by=SCHEMA_VERSION, hint_for_people="new")
    store = KeyStore(path)
    found = store.find(secret)
    assert found is not None and found.name == "robot"
    for change in (
        lambda: store.revoke("robot"),
        lambda: store.create("b", scopes=("inference",), requests_per_minute=None, created=""),
    ):
        with pytest.raises(ConfigurationError, match="newer version"):
            change()
    assert path.read_bytes() == written
    _change(path, version=SCHEMA_VERSION)  # upgraded again
    store.revoke("robot")
    assert store.all() == []


def test_keys_that_only_a_newer_version_may_judge_are_refused_by_name_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret = _keys(path)
    written = _change(path, version=SCHEMA_VERSION + 1)
    with pytest.raises(ConfigurationError, match=r"keys\.json was written by a newer version"):
        KeyStore(path).all()
    with pytest.raises(Unavailable):
        KeyStore(path).find(secret)
    assert path.read_bytes() == written
    _change(path, version=SCHEMA_VERSION)
    assert KeyStore(path).find(secret) is not None


# --- models -----------------------------------------------------------------------------------------------------------


def _home(tmp_path: Path) -> Path:
    """A home with a model in the store that only its record knows."""
    registry = Registry([tmp_path / "models"], tmp_path / "verified.json")
    registry.store.prepare()
    sum_ = sha256_of(BUILTIN)
    blob = registry.store.blob(sum_)
    blob.write_bytes(BUILTIN.read_bytes())
    manifest = read_manifest(ROOT / "models" / "builtin.toml").model_copy(
        update={"name": "plant", "source": "https://models.example/plant.gguf", "file": ""}
    )
    stored = StoredFile(file="plant.gguf", sha256=sum_, size_bytes=BUILTIN.stat().st_size)
    registry.store.publish(manifest, "a test", [Ready(stored, None)])
    return tmp_path


def _registry(home: Path) -> Registry:
    return Registry([home / "models"], home / "verified.json")


def test_a_models_record_of_a_newer_version_that_allows_it_is_served(tmp_path: Path) -> None:
    home = _home(tmp_path)
    path = home / "store" / "names" / "plant.json"
    manifest = {**json.loads(path.read_bytes())["manifest"], "colour": "blue"}
    _change(path, version=RECORD_VERSION + 1, readable_by=RECORD_VERSION, manifest=manifest, tier="gold")
    assert _registry(home).resolve("plant").path.name == sha256_of(BUILTIN)


def test_a_models_record_that_only_a_newer_version_can_read_keeps_its_files_from_being_pruned(tmp_path: Path) -> None:
    home = _home(tmp_path)
    path = home / "store" / "names" / "plant.json"
    written = _change(path, version=RECORD_VERSION + 1)
    registry = _registry(home)
    with pytest.raises(ModelUnusable, match=r"plant\.json cannot be read: a newer version"):
        registry.resolve("plant")
    assert registry.store.prune(2e9, every_partial=True) == []
    assert path.read_bytes() == written
    _change(path, version=RECORD_VERSION)
    assert _registry(home).resolve("plant").path.exists()


def test_without_such_a_record_prune_takes_what_no_model_has(tmp_path: Path) -> None:
    home = _home(tmp_path)
    (home / "store" / "names" / "plant.json").unlink()
    assert [left.why for left in _registry(home).store.prune(2e9, every_partial=True)] == ["no model has it"]


def test_a_manifest_of_a_newer_version_stops_its_own_model_only(tmp_path: Path) -> None:
    home = _home(tmp_path)
    (home / "models").mkdir()
    text = (ROOT / "models" / "builtin.toml").read_text("utf-8").replace('"edge-builtin"', '"fresh"', 1)
    path = home / "models" / "fresh.toml"
    path.write_text(f"schema_version = {MANIFEST_VERSION + 1}\nshade = 3\n{text}", "utf-8")
    registry = _registry(home)
    assert registry.resolve("plant").name == "plant"
    with pytest.raises(ConfigurationError, match="was written for a newer version"):
        registry.resolve("fresh")
    path.write_text(
        f"schema_version = {MANIFEST_VERSION + 1}\nreadable_by = {MANIFEST_VERSION}\nshade = 3\n{text}", "utf-8"
    )
    assert _registry(home).manifests()["fresh"][0].task == "chat"


_MADE = (
    'name = "oak"\nsource = "file:/stick/model.onnx"\nlicence = "MIT"\ncontext_tokens = 128\ndescription = "Made."\n'
)
_FILES = '[[files]]\nfile = "tokenizer.json"\nsource = "file:/stick/tokenizer.json"\nshade = 3\n'


@pytest.mark.parametrize(
    "tables",
    [
        'task = "detection"\n[detector]\nlayout = "yolo"\nlabels = ["a"]\nsize = [64, 64]\nshade = 3\n',
        f'task = "embedding"\n[encoder]\npooling = "mean"\nshade = 3\n{_FILES}',
    ],
)
def test_a_newer_manifest_that_may_be_read_is_read_without_the_new_keys_of_its_tables(
    tmp_path: Path, tables: str
) -> None:
    marks = f"schema_version = {MANIFEST_VERSION + 1}\nreadable_by = {MANIFEST_VERSION}\n"
    path = tmp_path / "oak.toml"
    path.write_text(f"{marks}{_MADE}{tables}", "utf-8")
    newer = read_manifest(path).model_dump(exclude={"schema_version", "readable_by"})
    path.write_text(f"{_MADE}{tables}".replace("shade = 3\n", ""), "utf-8")
    assert newer == read_manifest(path).model_dump(exclude={"schema_version", "readable_by"})


def test_the_new_keys_of_every_table_of_a_manifest_are_left_out() -> None:
    """Also of tables that are yet to come."""
    for name, field in Manifest.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        if any(issubclass(kind, BaseModel) for kind in kinds):
            assert known_part({name: {"shade": 3}}) == {name: {}}
            assert known_part({name: [{"shade": 3}]}) == {name: [{}]}


def test_a_manifest_whose_marks_are_no_numbers_is_for_another_version(tmp_path: Path) -> None:
    path = tmp_path / "oak.toml"
    path.write_text(f'readable_by = "one"\n{_MADE}task = "chat"\n', "utf-8")
    with pytest.raises(NewerManifest, match=r"oak\.toml was written for a newer version"):
        read_manifest(path)


def test_a_manifest_with_an_unknown_key_and_no_newer_version_is_a_mistake(tmp_path: Path) -> None:
    text = (ROOT / "models" / "builtin.toml").read_text("utf-8")
    path = tmp_path / "typo.toml"
    path.write_text(f"shade = 3\n{text}", "utf-8")
    with pytest.raises(ConfigurationError, match="shade"):
        read_manifest(path)


def test_remembered_sums_of_a_newer_version_are_computed_anew_and_those_of_an_older_one_hold(tmp_path: Path) -> None:
    path, file = tmp_path / "verified.json", tmp_path / "f"
    file.write_bytes(b"x")
    sums = Checksums(path)
    sums.remember(file, "ab" * 32)
    stamps = json.loads(path.read_bytes())["files"]
    _change(path, version=CHECKSUMS_VERSION + 1)
    assert not Checksums(path).holds(file, "ab" * 32)
    path.write_text(json.dumps(stamps), "utf-8")  # as the first versions wrote it
    assert Checksums(path).holds(file, "ab" * 32)


def test_a_download_that_a_newer_version_began_is_begun_anew(tmp_path: Path) -> None:
    partial = Partial(tmp_path, "k")
    partial.save(State(model="m", source="https://x.example/m", file="m.gguf"))
    assert partial.state is not None
    _change(tmp_path / "k.json", version=STATE_VERSION + 1)
    assert partial.state is None


# --- the outbox -------------------------------------------------------------------------------------------------------


def _told(node: NodeSide) -> list[tuple[str, int, str]]:
    return [(r.boot_id, r.seq, r.kind) for _, r in node.outbox.after(0, 1_000_000)]


def _mark(path: Path, form: int, readable_by: int | None = None) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {form}")
    if readable_by is not None:
        db.execute("ALTER TABLE records ADD COLUMN shade INTEGER DEFAULT 3")
        db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('readable_by', ?)", (str(readable_by),))
    db.commit()
    db.close()


def _a_node_that_wrote(directory: Path) -> list[tuple[str, int, str]]:
    node = NodeSide(directory, HandClock())
    node.outbox.append_event("start", {})
    node.outbox.append_metrics(small_sample(), 15)
    assert node.outbox.remember_command("c1", 4e9, "done", 1.8e9)
    told = _told(node)
    node.stop()
    return told


def test_an_outbox_of_a_newer_version_waits_beside_a_new_one_and_comes_back_whole(tmp_path: Path) -> None:
    first = _a_node_that_wrote(tmp_path)
    _mark(tmp_path / FILE, FORM + 1)

    older = NodeSide(tmp_path, HandClock())
    assert _told(older) == []
    assert older.outbox.command("c1") == (True, "done")  # it is not carried out a second time
    older.outbox.append_event("stop", {})
    second = _told(older)
    older.stop()
    (aside,) = tmp_path.glob(f"{FILE}.form-{FORM + 1}")

    _mark(aside, FORM)  # the version that reads it runs again
    aside.rename(tmp_path / f"{FILE}.form-{FORM}")
    again = NodeSide(tmp_path, HandClock())
    assert sorted(_told(again)) == sorted([*first, *second])
    assert waiting(tmp_path / FILE) == []
    again.stop()
    at_last = NodeSide(tmp_path, HandClock())
    assert sorted(_told(at_last)) == sorted([*first, *second])  # once, and no gap
    at_last.stop()


def test_a_second_downgrade_does_not_write_over_what_waits(tmp_path: Path) -> None:
    _a_node_that_wrote(tmp_path)
    for expected in (1, 2):
        _mark(tmp_path / FILE, FORM + 1)
        NodeSide(tmp_path, HandClock()).stop()
        assert len([p for p in tmp_path.glob(f"{FILE}.form-*") if p.name[-4:] not in ("-wal", "-shm")]) == expected


def test_an_outbox_of_a_newer_version_that_allows_it_is_used_as_it_is(tmp_path: Path) -> None:
    first = _a_node_that_wrote(tmp_path)
    _mark(tmp_path / FILE, FORM + 1, readable_by=FORM)
    older = NodeSide(tmp_path, HandClock())
    older.outbox.append_event("stop", {})
    assert _told(older)[: len(first)] == first and len(_told(older)) == len(first) + 1
    older.stop()
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("PRAGMA user_version").fetchone() == (FORM + 1,)
    assert db.execute("SELECT DISTINCT shade FROM records").fetchall() == [(3,)]
    db.close()


def test_an_outbox_from_before_there_were_versions_gets_one(tmp_path: Path) -> None:
    first = _a_node_that_wrote(tmp_path)
    _mark(tmp_path / FILE, 0)
    node = NodeSide(tmp_path, HandClock())
    assert _told(node) == first
    node.stop()
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("PRAGMA user_version").fetchone() == (FORM,)
    db.close()


# --- what engines keep ------------------------------------------------------------------------------------------------


def test_what_an_engine_of_a_newer_version_kept_is_made_anew(tmp_path: Path) -> None:
    files = StateFiles(tmp_path, ["model"])
    files.write_steps(StepTable([(1, 0.01)], [(1, 0.01)], 0.0, [], 0.0), Threads(1, 1))
    files.write_cells([1, 2], np.zeros(8, np.uint8))
    assert files.read_steps() is not None and files.read_cells([1, 2]) is not None
    (steps,), (cells,) = tmp_path.glob("*/steps.json"), tmp_path.glob("*/*.cells")
    kept = msgspec.json.decode(steps.read_bytes(), type=KeptSteps)
    steps.write_bytes(msgspec.json.encode(msgspec.structs.replace(kept, version=kept.version + 1).sealed()))
    cells.write_bytes(cells.read_bytes().replace(b"edge-cells-2", b"edge-cells-3"))
    assert files.read_steps() is None
    assert files.read_cells([1, 2]) is None
