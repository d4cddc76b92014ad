"""What is kept for the next start: it comes back as it was, or not at all."""

import os
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.engine.calibrate import Threads
from edge.engine.statefiles import StateFiles
from edge.engine.steps import StepTable

TABLE = StepTable([(1, 0.002), (8, 0.009)], [(1, 0.0021), (64, 0.0153)], 1.5e-6, [(1, 3e-7), (64, 1e-7)], 2.25e-10)
THREADS = Threads(1, 2)
TOKENS = [5, 6, 7, 8]
STATE = np.arange(300, dtype=np.uint8)


def files(directory: Path, model: str = "model") -> StateFiles:
    return StateFiles(directory, [model, "library", "machine"])


def only_file(directory: Path, pattern: str) -> Path:
    (path,) = directory.rglob(pattern)
    return path


@contextmanager
def room_for(count_bytes: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file: the kernel refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    files(tmp_path).write_steps(TABLE, THREADS)
    files(tmp_path).write_cells(TOKENS, STATE)
    again = files(tmp_path)
    assert again.read_steps() == (TABLE, THREADS)
    state = again.read_cells(TOKENS)
    assert state is not None and state.tobytes() == STATE.tobytes()


def test_nothing_is_there_at_first_and_without_a_directory(tmp_path: Path) -> None:
    nowhere = StateFiles(None, ["model"])
    nowhere.write_steps(TABLE, THREADS)
    nowhere.write_cells(TOKENS, STATE)
    nowhere.keep_only([])
    for kept in (nowhere, files(tmp_path)):
        assert kept.read_steps() is None
        assert kept.read_cells(TOKENS) is None
        assert kept.complaint == ""


def test_another_model_or_machine_finds_nothing(tmp_path: Path) -> None:
    files(tmp_path).write_steps(TABLE, THREADS)
    files(tmp_path).write_cells(TOKENS, STATE)
    other = files(tmp_path, "another model")
    assert other.read_steps() is None
    assert other.read_cells(TOKENS) is None


def test_files_of_another_model_in_the_wrong_place_are_not_used(tmp_path: Path) -> None:
    files(tmp_path / "theirs", "another model").write_cells(TOKENS, STATE)
    files(tmp_path / "theirs", "another model").write_steps(TABLE, THREADS)
    files(tmp_path / "ours").write_cells(TOKENS, STATE)
    ours = only_file(tmp_path / "ours", "*.cells")
    shutil.copy(only_file(tmp_path / "theirs", "*.cells"), ours)
    shutil.copy(only_file(tmp_path / "theirs", "steps.json"), ours.parent)
    assert files(tmp_path / "ours").read_cells(TOKENS) is None
    assert not ours.exists()
    assert files(tmp_path / "ours").read_steps() is None


def test_cells_of_other_tokens_under_these_tokens_name_are_dropped(tmp_path: Path) -> None:
    files(tmp_path).write_cells([1, 2], STATE)
    theirs = only_file(tmp_path, "*.cells")
    content = theirs.read_bytes()
    files(tmp_path).write_cells(TOKENS, STATE)
    ours = next(path for path in tmp_path.rglob("*.cells") if path != theirs)
    ours.write_bytes(content)
    assert files(tmp_path).read_cells(TOKENS) is None
    assert not ours.exists() and theirs.exists()


@pytest.mark.parametrize("content", [b"", b"edge-cells-2\n", b"edge-cells-2\n" + b"\xff" * 20, b"<html>" * 99])
def test_a_foreign_file_is_dropped(tmp_path: Path, content: bytes) -> None:
    files(tmp_path).write_cells(TOKENS, STATE)
    path = only_file(tmp_path, "*.cells")
    path.write_bytes(content)
    assert files(tmp_path).read_cells(TOKENS) is None
    assert not path.exists()
    path.with_name("steps.json").write_bytes(content)
    assert files(tmp_path).read_steps() is None


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("state")
    files(directory).write_prefix(TOKENS, "one", STATE)
    files(directory).write_cells(TOKENS, STATE)
    files(directory).write_steps(TABLE, THREADS)
    return directory


@given(share=st.floats(0, 1, exclude_max=True), bit=st.none() | st.integers(0, 7))
def test_a_cut_or_bit_flipped_file_is_never_believed(written: Path, share: float, bit: int | None) -> None:
    for pattern in ("*.cells", "*.prefix", "steps.json"):
        path = only_file(written, pattern)
        whole = path.read_bytes()
        at = int(len(whole) * share)
        damaged = whole[:at] if bit is None else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        path.write_bytes(damaged)
        try:
            if pattern == "*.cells":
                assert files(written).read_cells(TOKENS) is None
                assert not path.exists()
            elif pattern == "*.prefix":
                assert list(files(written).read_prefixes(1 << 20)) == []
                assert not path.exists()
            else:
                # JSON can be written in more than one way (1e-6, 1E-6): what is read must be what was meant.
                assert files(written).read_steps() in (None, (TABLE, THREADS))
        finally:
            path.write_bytes(whole)


def test_cells_that_are_not_pinned_any_more_are_deleted(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.write_cells(TOKENS, STATE)
    kept.write_cells([1, 2], STATE)
    kept.write_steps(TABLE, THREADS)
    kept.keep_only([TOKENS])
    assert kept.read_cells(TOKENS) is not None
    assert kept.read_cells([1, 2]) is None
    assert kept.read_steps() is not None


def kept_prefixes(directory: Path, room: int = 1 << 20) -> set[tuple[str, tuple[int, ...], bytes]]:
    return {(p.owner, tuple(p.tokens), p.state.tobytes()) for p in files(directory).read_prefixes(room)}


def test_prefixes_of_several_owners_come_back_as_far_as_there_is_room(tmp_path: Path) -> None:
    files(tmp_path).write_prefix(TOKENS, "one", STATE)
    files(tmp_path).write_prefix(TOKENS, "", STATE[:40])
    files(tmp_path).write_cells([1, 2], STATE)
    one, everyone = ("one", tuple(TOKENS), STATE.tobytes()), ("", tuple(TOKENS), STATE[:40].tobytes())
    assert kept_prefixes(tmp_path) == {one, everyone}
    assert kept_prefixes(tmp_path, 300) == {everyone}
    files(tmp_path).keep_only_prefixes([(TOKENS, "one")])
    assert kept_prefixes(tmp_path) == {one}
    assert files(tmp_path).read_cells([1, 2]) is not None
    path = only_file(tmp_path, "*.prefix")
    path.write_bytes(path.read_bytes()[:-1])
    assert kept_prefixes(tmp_path) == set() and not path.exists()


def test_what_other_models_kept_and_what_a_power_cut_left_is_deleted(tmp_path: Path) -> None:
    files(tmp_path, "another model").write_prefix(TOKENS, "", STATE)
    files(tmp_path, "another model").write_cells(TOKENS, STATE)
    files(tmp_path).write_prefix(TOKENS, "", STATE)
    draft = only_file(tmp_path, "*.cells").with_name(".x.cells.0123456789abcdef.draft")
    draft.write_bytes(b"half")
    files(tmp_path).tidy()
    assert not draft.exists() and len(list(tmp_path.rglob("*.prefix"))) == 1
    assert only_file(tmp_path, "*.cells").exists() and kept_prefixes(tmp_path)


def test_what_no_start_has_used_for_a_month_is_deleted_and_what_one_uses_stays(tmp_path: Path) -> None:
    places = {}
    for model in ("model", "old", "recent"):
        before = set(tmp_path.iterdir())
        files(tmp_path, model).write_cells(TOKENS, STATE)
        files(tmp_path, model).write_steps(TABLE, THREADS)
        (places[model],) = set(tmp_path.iterdir()) - before
    (tmp_path / "further").mkdir()
    (tmp_path / "further" / "theirs").mkdir()
    month_ago = time.time() - 31 * 86_400
    for model in ("model", "old"):
        os.utime(places[model], (month_ago,) * 2)
    os.utime(tmp_path / "further", (month_ago,) * 2)
    files(tmp_path).tidy()
    assert (tmp_path / "further" / "theirs").exists()
    assert files(tmp_path, "old").read_steps() is None and len(list(tmp_path.iterdir())) == 3
    for model in ("model", "recent"):
        assert files(tmp_path, model).read_steps() is not None
        assert files(tmp_path, model).read_cells(TOKENS) is not None


def test_a_directory_that_cannot_be_written_gives_a_complaint_and_no_exception(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = files(tmp_path / "file" / "engine")
    for write in (lambda: kept.write_steps(TABLE, THREADS), lambda: kept.write_cells(TOKENS, STATE)):
        kept.complaint = ""
        write()
        assert "cannot be written: Not a directory" in kept.complaint
    assert kept.read_steps() is None and kept.read_cells(TOKENS) is None
    kept.keep_only([])


def test_a_full_disk_gives_a_complaint_and_leaves_what_was_there(tmp_path: Path) -> None:
    kept = files(tmp_path)
    kept.write_cells(TOKENS, STATE)
    with room_for(100):
        kept.write_cells(TOKENS, np.zeros(100_000, np.uint8))
    assert "cannot be written: File too large" in kept.complaint
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [only_file(tmp_path, "*.cells").name]
    state = kept.read_cells(TOKENS)
    assert state is not None and len(state) == len(STATE)
    kept.write_cells(TOKENS, STATE)
    assert kept.complaint == ""
