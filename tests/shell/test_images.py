"""What images are made of: the wheelhouse, the script that builds, and weights packed apart."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from edge.errors import ConfigurationError, EdgeError
from edge.registry.manifest import manifest_text
from edge.registry.resolve import Registry

ROOT = Path(__file__).resolve().parent.parent.parent
BUILTIN = ROOT / "models" / "builtin" / "edge-builtin-q4_0.gguf"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "provisioning" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wheelhouse, pack_model = script("wheelhouse"), script("pack_model")


# --- the wheelhouse ---------------------------------------------------------------------------------------------------


def test_wheels_are_wanted_for_the_images_glibc_and_machine_the_newest_first() -> None:
    assert wheelhouse.platforms("aarch64", "2.19") == [
        "manylinux_2_19_aarch64",
        "manylinux_2_18_aarch64",
        "manylinux_2_17_aarch64",
        "manylinux2014_aarch64",
    ]


@pytest.mark.parametrize(("machine", "glibc"), [("riscv64", "2.41"), ("x86_64", "1.2"), ("x86_64", "2.x")])
def test_a_machine_without_wheels_is_refused(machine: str, glibc: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wheelhouse.main(["--machine", machine, "--glibc", glibc, "--out", "/nonexistent/x"]) == 1
    assert f"no wheels for {machine} with glibc {glibc}" in capsys.readouterr().err


def test_each_wheel_is_named_with_its_sum(tmp_path: Path) -> None:
    for name in ("b_c-2.0-py3-none-any.whl", "a-1.0-cp313-cp313-manylinux_2_28_x86_64.whl"):
        (tmp_path / name).write_bytes(name.encode())
    sums = [hashlib.sha256(path.name.encode()).hexdigest() for path in sorted(tmp_path.iterdir())]
    lines = list(wheelhouse.locked(tmp_path.glob("*.whl")))
    assert lines == [f"a==1.0 --hash=sha256:{sums[0]}\n", f"b-c==2.0 --hash=sha256:{sums[1]}\n"]


def test_what_the_bindings_need_is_read_from_their_source(tmp_path: Path) -> None:
    (tmp_path / "x-1").mkdir()
    (tmp_path / "x-1" / "pyproject.toml").write_text('[project]\ndependencies = ["diskcache>=5"]\n')
    with tarfile.open(tmp_path / "x-1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "x-1", "x-1")
    assert wheelhouse.declared_by(tmp_path / "x-1.tar.gz") == ["diskcache>=5"]


def test_a_directory_with_somebodys_files_is_not_made_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    letter = tmp_path / "letter.txt"
    letter.write_text("mine")
    for _ in ("beside a part", "alone"):
        assert wheelhouse.main(["--machine", "x86_64", "--out", str(tmp_path)]) == 1
        assert f"{tmp_path} is no wheelhouse, and what lies in it would be removed" in capsys.readouterr().err
        assert letter.read_text() == "mine"
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert wheelhouse.main(["--machine", "x86_64", "--out", str(letter)]) == 1
    assert "is not a directory" in capsys.readouterr().err


def test_an_empty_directory_and_an_older_wheelhouse_are_made_anew(tmp_path: Path) -> None:
    wheelhouse.require_ours(tmp_path / "new")
    wheelhouse.require_ours(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "requirements.txt").touch()
    wheelhouse.require_ours(tmp_path)


def test_a_python_without_pip_fetches_with_one_made_for_the_moment(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], timeout=120, check=True)
    found = wheelhouse.python_with_pip(tmp_path / "pip", tmp_path / "none", str(bare / "bin" / "python"))
    assert found == str(tmp_path / "pip" / "bin" / "python")
    subprocess.run([found, "-m", "pip", "--version"], timeout=120, check=True, capture_output=True)
    assert wheelhouse.python_with_pip(tmp_path / "unused", Path(found), str(bare / "bin" / "python")) == found


def test_a_python_that_cannot_make_an_environment_says_what_to_install(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(wheelhouse.FetchFailed, match=r"has no pip .*`apt install python3-venv`"):
        wheelhouse.python_with_pip(tmp_path / "pip", tmp_path / "none", str(python))


def test_without_a_wheelhouse_the_build_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "provisioning" / "image").mkdir(parents=True)
    shutil.copy(ROOT / "provisioning" / "image" / "build.sh", tmp_path / "provisioning" / "image")
    done = subprocess.run(
        [tmp_path / "provisioning" / "image" / "build.sh", "cpu", "localhost/x"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "edge: dist/wheelhouse has no native: run `make wheelhouse` first, where there is a network\n"


# --- weights apart ----------------------------------------------------------------------------------------------------


def _served_from(directory: Path, wish: str, name: str | None) -> Path:
    """Lay a model out as its image does, mounted as EDGE_HOME/models, and have a node find it."""
    manifest, files = pack_model.gathered(wish, name, "Apache-2.0")
    models = directory / "models"
    models.mkdir()
    (models / f"{manifest.name}.toml").write_text(manifest_text(manifest, "a test"))
    for file, path in files.items():
        pack_model.placed(path, models / file)
    return Registry([models], directory / "verified.json").resolve(manifest.name).path


def test_a_model_that_is_known_is_found_in_its_own_image(tmp_path: Path) -> None:
    assert _served_from(tmp_path, "edge-builtin", "apart").parent == tmp_path / "models"


def test_a_file_without_a_manifest_gets_one(tmp_path: Path) -> None:
    file = tmp_path / "Plant Q4_0.gguf"
    shutil.copy(BUILTIN, file)
    assert _served_from(tmp_path, str(file), None).name == "Plant Q4_0.gguf"


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EdgeError):
        pack_model.gathered("nothing-like-it", None, "Apache-2.0")
    with pytest.raises(ConfigurationError, match="cannot be copied"):
        pack_model.placed(tmp_path / "gone", tmp_path / "to")
    assert pack_model.main([str(tmp_path / "gone.gguf"), "--builder", "buildah"]) == 1
    assert "gone.gguf" in capsys.readouterr().err


@pytest.mark.parametrize("wish", ["edge-builtin", str(BUILTIN)])
@pytest.mark.parametrize("name", ["Plant", "", "a/b", "plant\n", "x" * 64])
def test_a_name_that_no_node_takes_is_refused_before_it_is_packed(
    wish: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack_model.main([wish, "--name", name, "--builder", "buildah"]) == 1
    said = capsys.readouterr()
    assert f"--name {name!r} is no name that a node takes" in said.err and said.out == ""
