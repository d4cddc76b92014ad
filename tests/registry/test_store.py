"""What is in the store, what leaves it, and what a node serves from it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bench.file_server import Cut, FileServer, Served, Status
from edge.durable import locked
from edge.errors import DownloadFailed, ModelUnusable, StoreBusy
from edge.registry.fetch import Patience
from edge.registry.inventory import Removed
from edge.registry.manifest import Manifest, read_manifest
from edge.registry.resolve import Registry
from edge.registry.source import LocalFile
from tests.registry.conftest import Node, gguf_bytes, sha

SHORT = Patience(tries=2, pause_s=0.001)


@pytest.fixture
def file(tmp_path: Path, model_bytes: bytes) -> Path:
    path = tmp_path / "stick" / "Model-Q4_K_M.gguf"
    path.parent.mkdir()
    path.write_bytes(model_bytes)
    return path


def add(node: Node, path: Path, name: str | None = None, *, link: bool = False) -> None:
    node.inventory.add(path, node.watcher, name=name, link=link, licence="MIT")


def test_a_file_becomes_a_known_model(node: Node, file: Path, model_bytes: bytes) -> None:
    add(node, file)
    manifest = read_manifest(node.home / "models" / "model-q4_k_m.toml")
    assert (manifest.task, manifest.licence, manifest.sha256) == ("chat", "MIT", sha(model_bytes))
    assert (manifest.context_tokens, manifest.tools_format) == (128, "none")
    file.unlink()
    found = Registry.at(node.home).resolve("model-q4_k_m")
    assert found.path == node.store / "blobs" / sha(model_bytes)
    assert found.header.parameters == 1_500_000
    assert dict(found.files) == {"Model-Q4_K_M.gguf": found.path}


def test_a_linked_file_stays_and_is_held_to_its_sum(node: Node, file: Path) -> None:
    add(node, file, "mine", link=True)
    assert Registry.at(node.home).resolve("mine").path == file
    assert node.state("mine") == "here"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(0, 1))
    with pytest.raises(ModelUnusable, match="is not the file that its manifest names"):
        Registry.at(node.home).resolve("mine")
    assert [check.verdict for check in node.inventory.verify(["mine"], lambda name, path: None)] == ["damaged"]
    assert file.exists(), "it is not ours to move"


def test_the_first_serve_does_not_read_a_fetched_file_again(node: Node, file: Path) -> None:
    add(node, file, "mine")
    read: list[Path] = []
    Registry.at(node.home).resolve("mine", lambda path, _: read.append(path))
    assert read == []


def test_a_linked_file_that_nobody_can_look_at_is_said_to_be_unreadable(node: Node, file: Path) -> None:
    add(node, file, "mine", link=True)
    file.unlink()
    file.symlink_to(file)
    assert node.state("mine") == "unreadable"
    assert [check.verdict for check in node.inventory.verify(["mine"], lambda name, path: None)] == ["unreadable"]
    with pytest.raises(ModelUnusable, match=f"cannot read {file}: Too many levels"):
        Registry.at(node.home).resolve("mine")


@pytest.mark.parametrize("name", ["a\nb.gguf", "a%20b.gguf", "\x1b[2Jc.gguf"])
@pytest.mark.parametrize("link", [True, False])
def test_any_name_of_a_file_may_be_added(node: Node, file: Path, name: str, link: bool) -> None:
    """The manifest that is written for it is read by every command from then on."""
    odd = file.rename(file.with_name(name))
    add(node, odd, "mine", link=link)
    assert node.state("mine") == "here"
    assert Registry.at(node.home).manifests()["mine"][0].where == LocalFile(odd)


def test_a_name_that_is_no_text_is_refused_with_words(node: Node, file: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(file.parent) + b"/a\xff.gguf"))
    file.rename(odd)
    with pytest.raises(ModelUnusable, match=r"is no UTF-8, .* rename the file"):
        add(node, odd)
    with pytest.raises(ModelUnusable, match=r"is no UTF-8, .* rename the file"):
        node.pull(f"file:{odd}")
    with pytest.raises(ModelUnusable, match=r"is no UTF-8, .* rename the file"):
        Registry.at(node.home).find(str(odd))


def test_a_file_that_is_no_model_is_not_added(node: Node, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("hello")
    with pytest.raises(ModelUnusable, match="is not a GGUF file"):
        add(node, tmp_path / "x.gguf")
    assert not (node.home / "models").exists()


def test_a_name_is_given_once(node: Node, file: Path, tmp_path: Path) -> None:
    add(node, file, "mine")
    add(node, file, "mine")
    gguf_bytes(tmp_path / "other.gguf", seed=3)
    with pytest.raises(ModelUnusable, match=r"a model mine is known already, from file:.*choose a name with --name"):
        add(node, tmp_path / "other.gguf", "mine")
    with pytest.raises(ModelUnusable, match="a model edge-builtin is known already"):
        add(node, file, "edge-builtin")


def test_two_models_share_one_file_until_both_are_removed(node: Node, file: Path, model_bytes: bytes) -> None:
    add(node, file, "one")
    add(node, file, "two")
    assert node.blobs() == [sha(model_bytes)]
    assert node.inventory.remove("one") == Removed(0, manifest=True)
    assert node.blobs() == [sha(model_bytes)]
    assert node.inventory.remove("two") == Removed(len(model_bytes), manifest=True)
    assert node.blobs() == []
    assert not list((node.home / "models").glob("*.toml"))


def test_remove_keeps_manifests_that_people_wrote(node: Node, server: FileServer, served: Served) -> None:
    node.know("m", f"{server.url}/m.gguf")
    node.pull("m")
    node.inventory.remove("m")
    assert node.state("m") == "not here"
    with pytest.raises(ModelUnusable, match="is part of the installation and stays"):
        node.inventory.remove("edge-builtin")
    with pytest.raises(ModelUnusable, match="unknown model"):
        node.inventory.remove("nothing")


def test_verify_sets_damaged_files_aside(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    blob = node.store / "blobs" / sha(model_bytes)
    status = blob.stat()
    blob.chmod(0o644)
    data = bytearray(model_bytes)
    data[2_000_000] ^= 4
    blob.write_bytes(data)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))  # a bad disk does not touch the time
    checks = {check.name: check for check in node.inventory.verify([], lambda name, path: None)}
    assert checks["edge-builtin"].verdict == "good"
    assert checks["m"].verdict == "damaged"
    assert checks["m"].aside is not None and checks["m"].aside.read_bytes() == bytes(data)
    with pytest.raises(ModelUnusable, match=r"is not in the store any more: `edge models pull m` fetches it"):
        Registry.at(node.home).resolve("m")
    node.pull("m")
    assert Registry.at(node.home).resolve("m").path.read_bytes() == model_bytes
    assert [leftover.why for leftover in node.inventory.prune(every_partial=False, dry_run=False)] == ["damaged"]


def test_a_damaged_file_of_a_long_name_is_set_aside_too(node: Node, server: FileServer, model_bytes: bytes) -> None:
    name = "m" * 250 + ".gguf"
    server.routes[f"/{name}"] = Served(model_bytes)
    node.pull(f"{server.url}/{name}", name="m")
    blob = node.store / "blobs" / sha(model_bytes)
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(model_bytes)))
    [check] = node.inventory.verify(["m"], lambda name, path: None)
    assert check.verdict == "damaged" and check.aside is not None and check.aside.name.endswith("mm.gguf")


def test_a_changed_blob_is_not_served(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    blob = node.store / "blobs" / sha(model_bytes)
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    os.utime(blob, ns=(0, 1))  # the clock of a file system may not have moved since it was fetched
    with pytest.raises(ModelUnusable, match=r"`edge models verify m` sets it aside, then `edge models pull m`"):
        Registry.at(node.home).resolve("m")


def test_prune_takes_only_what_nobody_needs(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, file: Path
) -> None:
    add(node, file, "mine")
    (node.store / "blobs" / ("0" * 64)).write_bytes(b"left over")
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 2])
    served.data, served.etag = model_bytes + bytes(100), '"2"'
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m", SHORT)
    would = node.inventory.prune(every_partial=False, dry_run=True)
    assert [(leftover.path.name, leftover.why) for leftover in would] == [("0" * 64, "no model has it")]
    assert len(node.blobs()) == 2
    assert node.inventory.prune(every_partial=False, dry_run=False) == would
    assert node.blobs() == [sha(model_bytes)]
    assert node.state("m") == "partial"
    old = time.time() - 8 * 86400
    for path in (node.store / "partial").iterdir():
        os.utime(path, (old, old))
    assert [leftover.why for leftover in node.inventory.prune(every_partial=False, dry_run=False)] == [
        "unfinished download"
    ]
    assert (node.state("m"), node.partials()) == ("not here", [])


def test_prune_leaves_a_download_that_runs(node: Node, server: FileServer, served: Served) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 2])
    node.know("m", f"{server.url}/m.gguf")
    with pytest.raises(DownloadFailed):
        node.pull("m", SHORT)
    [(_, partial)] = node.inventory._store.unfinished()
    with partial.held("it"):
        assert node.inventory.prune(every_partial=True, dry_run=False) == []
        assert partial.discard_idle() == 0 and partial.have_bytes == 1_000_000
    assert len(node.inventory.prune(every_partial=True, dry_run=False)) == 1


def test_a_model_outlives_its_manifest(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    """As when a later version no longer ships it."""
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    (node.home / "models" / "m.toml").unlink()
    assert Registry.at(node.home).resolve("m").path.name == sha(model_bytes)
    assert [(row.state, row.origin) for row in node.inventory.rows() if row.name == "m"] == [("here", "kept")]


def test_a_manifest_with_another_sum_asks_for_the_new_file(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, tmp_path: Path
) -> None:
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    other = gguf_bytes(tmp_path / "other.gguf", seed=9)
    served.data, served.etag = other, '"2"'
    node.know("m", f"{server.url}/m.gguf", sha256=sha(other))
    with pytest.raises(ModelUnusable, match=r"names another file than the one that is here: `edge models pull m`"):
        Registry.at(node.home).resolve("m")
    node.pull("m")
    assert node.blobs() == [sha(other)], "the old file had no other model"


def test_a_task_that_is_not_served_is_said_when_it_is_asked_for(node: Node) -> None:
    node.know("embed", "hf:a/b:model.onnx", task="detection")
    node.know("odd", "hf:a/b:Q8_0", task="detection")
    with pytest.raises(ModelUnusable, match=r"the manifest of model embed has no \[detector\]"):
        Registry.at(node.home).resolve("embed")
    with pytest.raises(
        ModelUnusable, match="model odd is for detection as GGUF, which this version does not serve yet"
    ):
        Registry.at(node.home).resolve("odd")


def test_an_absent_model_says_how_it_comes(node: Node) -> None:
    node.know("m", "hf:a/b:Q4_K_M")
    with pytest.raises(ModelUnusable, match=r"`edge models pull m` fetches it from hf:a/b:Q4_K_M$"):
        Registry.at(node.home).resolve("m")
    with pytest.raises(ModelUnusable, match=r"hf:a/b:Q8_0 is not on this machine: `edge models pull hf:a/b:Q8_0`"):
        Registry.at(node.home).resolve("hf:a/b:Q8_0")


def test_a_file_beside_its_manifest_needs_no_store(node: Node, model_bytes: bytes) -> None:
    node.know("m", "https://example.com/m.gguf", file="m.gguf", sha256=sha(model_bytes))
    (node.home / "models" / "m.gguf").write_bytes(model_bytes)
    assert Registry.at(node.home).resolve("m").path == node.home / "models" / "m.gguf"


def test_a_record_is_written_only_behind_its_files(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment the power goes at: what has a record is whole."""
    steps: list[str] = []
    real_replace, real_fsync = Path.replace, os.fsync

    def replace(self: Path, target: Path) -> Path:
        steps.append(f"{self.suffix or self.name} -> {Path(target).parent.name}")
        return real_replace(self, target)

    def fsync(descriptor: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        real_fsync(descriptor)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "fsync", fsync)
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    node.pull("m")
    published = next(i for i, step in enumerate(steps) if step == ".part -> blobs")
    assert steps[published - 1].endswith(".part"), "the bytes are on the disk before they get their name"
    assert steps[published + 1] == "sync blobs"
    recorded = next(i for i, step in enumerate(steps) if step.endswith("-> names"))
    assert recorded > published + 1
    assert steps[recorded + 1] == "sync names"


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "lock", "it"):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with locked(tmp_path / "lock", "it"), pytest.raises(StoreBusy), locked(tmp_path / "lock", "it"):
        pass


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"source": "ftp://x/y"}, "a source is file:/PATH"),
        ({"source": "hf:x"}, "write hf:OWNER/REPO:FILE_OR_QUANT"),
        ({"source": "builtin"}, "needs `file` and `sha256`"),
        ({"task": "singing"}, "task"),
        ({"context_tokens": 0}, "needs `context_tokens`"),
        ({"file": "a\0"}, "file"),
        ({"files": [{"file": "a\0", "source": "hf:a/b:x.json"}]}, "files"),
        ({"files": [{"file": "..", "source": "hf:a/b:x.json"}]}, "files"),
        ({"files": [{"file": "../x", "source": "hf:a/b:x.json"}]}, "files"),
        ({"files": [{"file": "m.gguf", "source": "hf:a/b:x.json"}]}, "same name"),
    ],
)
def test_a_manifest_is_strict(change: dict[str, object], complaint: str) -> None:
    keys = {
        "name": "m",
        "task": "chat",
        "source": "https://example.com/m.gguf",
        "licence": "MIT",
        "context_tokens": 128,
        "description": "x",
    }
    assert Manifest.model_validate(keys).main_file == "m.gguf"
    with pytest.raises(ValueError, match=complaint):
        Manifest.model_validate({**keys, **change})


def test_remove_takes_an_unfinished_download(node: Node, server: FileServer, served: Served) -> None:
    server.faults.extend([Cut(1_000_000), *[Status(503)] * 2])
    with pytest.raises(DownloadFailed):
        node.pull(f"{server.url}/m.gguf", SHORT)
    [row] = [row for row in node.inventory.rows() if row.manifest is None]
    assert (row.name, row.have_bytes, row.source) == ("m", 1_000_000, f"{server.url}/m.gguf")
    assert node.inventory.remove("m").freed_bytes > 0
    assert not list((node.store / "partial").iterdir())


def test_a_disk_that_cannot_be_read_is_not_taken_for_one_that_cannot_be_written(node: Node, file: Path) -> None:
    """/proc/self/mem is a file whose beginning cannot be read, as of a stick with a bad block."""
    node.know("m", f"file:{file.rename(file.with_name('model.onnx'))}", task="classification")
    with (node.home / "models" / "m.toml").open("a") as manifest:
        manifest.write(
            '[encoder]\nlabels = ["a"]\n[[files]]\nfile = "tokenizer.json"\nsource = "file:/proc/self/mem"\n'
        )
    with pytest.raises(ModelUnusable, match="cannot read /proc/self/mem: Input/output error"):
        node.pull("m")


def test_what_no_manifest_can_be_made_for_is_not_kept(node: Node, server: FileServer, model_bytes: bytes) -> None:
    data = model_bytes.replace(b"llama.context_length", b"llama.context_lengtX")
    server.routes["/m.gguf"] = Served(data)
    with pytest.raises(ModelUnusable, match="does not say how long its context is"):
        node.pull(f"{server.url}/m.gguf")
    assert node.partials() == [] and all(row.name != "m" for row in node.inventory.rows())


def test_one_file_may_have_two_names(node: Node, server: FileServer, served: Served, model_bytes: bytes) -> None:
    node.know("m", f"{server.url}/m.gguf", sha256=sha(model_bytes))
    with (node.home / "models" / "m.toml").open("a") as file:
        file.write(f'\n[[files]]\nfile = "twin"\nsource = "{server.url}/m.gguf"\nsha256 = "{sha(model_bytes)}"\n')
    assert [stored.file for stored in node.pull("m").record.files] == ["m.gguf", "twin"]
    assert len(server.gets("/m.gguf")) == 1
    assert set(Registry.at(node.home).resolve("m").files) == {"m.gguf", "twin"}


def test_what_a_killed_process_had_begun_to_note_is_pruned(node: Node, server: FileServer, served: Served) -> None:
    node.pull(f"{server.url}/m.gguf")
    draft = node.store / "names" / ".m.json.123"
    draft.write_text("{")
    assert node.inventory.prune(every_partial=False, dry_run=False) == []
    os.utime(draft, (0, 0))
    assert [leftover.why for leftover in node.inventory.prune(every_partial=False, dry_run=False)] == [
        "half-written note"
    ]
    assert node.state("m") == "here"


def test_a_manifest_with_another_source_is_fetched_anew(
    node: Node, server: FileServer, served: Served, model_bytes: bytes, tmp_path: Path
) -> None:
    node.know("m", f"{server.url}/m.gguf")
    node.pull("m")
    other = gguf_bytes(tmp_path / "other.gguf", seed=5)
    server.routes["/other.gguf"] = Served(other)
    node.know("m", f"{server.url}/other.gguf")
    assert Registry.at(node.home).resolve("m").path.name == sha(model_bytes), "until then the old one is served"
    node.pull("m")
    assert node.blobs() == [sha(other)]


def test_a_further_file_with_another_source_or_sum_is_fetched_anew(
    node: Node, server: FileServer, served: Served
) -> None:
    """As when a wrong tokenizer is put right in the manifest."""

    def know(file: str, sha256: str | None = None) -> None:
        node.know("m", f"{server.url}/m.gguf")
        with (node.home / "models" / "m.toml").open("a") as manifest:
            manifest.write(f'[[files]]\nfile = "extra.json"\nsource = "{server.url}/{file}"\n')
            manifest.write(f'sha256 = "{sha256}"\n' if sha256 else "")

    def extra() -> bytes:
        return Registry.at(node.home).resolve("m").files["extra.json"].read_bytes()

    for name, data in (("one.json", b"1"), ("two.json", b"2")):
        server.routes[f"/{name}"] = Served(data)
        know(name)
        assert not node.pull("m").already and extra() == data
        assert node.pull("m").already
    server.routes["/two.json"] = Served(b"3")
    know("two.json", sha(b"3"))
    with pytest.raises(ModelUnusable, match="names another file than the one that is here"):
        extra()
    assert not node.pull("m").already and extra() == b"3"
    assert len(server.gets("/m.gguf")) == 1, "the large one is here"


def test_a_file_that_changed_is_added_anew(node: Node, file: Path, tmp_path: Path) -> None:
    add(node, file, "mine")
    file.write_bytes(gguf_bytes(tmp_path / "other.gguf", seed=6))
    add(node, file, "mine")
    assert node.blobs() == [sha(file.read_bytes())]
    assert read_manifest(node.home / "models" / "mine.toml").sha256 == sha(file.read_bytes())


def test_a_sum_on_the_command_line_counts_for_what_is_here_too(
    node: Node, server: FileServer, served: Served, model_bytes: bytes
) -> None:
    node.pull(f"{server.url}/m.gguf", sha256=sha(model_bytes))
    assert node.pull(f"{server.url}/m.gguf", sha256=sha(model_bytes)).already
    with pytest.raises(DownloadFailed, match="is refused"):
        node.pull(f"{server.url}/m.gguf", sha256="0" * 64)
    assert node.blobs() == [sha(model_bytes)]
