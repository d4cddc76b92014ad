"""Files are replaced whole, and what a killed process left of it is tidied up: that, and nothing else."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.durable import is_locked, lock, locked, open_lock, tidy_drafts, write_atomically
from edge.errors import StoreBusy

WRITER = """
import os, sys
from pathlib import Path
from edge.durable import write_atomically
def stop(effect):
    if effect.startswith("place"):
        print("ready", flush=True)
        sys.stdin.read()
write_atomically(Path(sys.argv[1]), b"new", 0o600, before=stop)
"""


def drafts(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name.endswith(".draft"))


def writer(path: Path, **environment: str) -> subprocess.Popen[str]:
    """A process that has a whole draft, and waits before giving it its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_draft_of_a_living_writer_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with writer(tmp_path / "file") as process:
        (held,) = drafts(tmp_path)
        write_atomically(tmp_path / "other", b"x")
        assert drafts(tmp_path) == [held] and (tmp_path / "file").read_bytes() == b"old"
        process.send_signal(signal.SIGKILL)
    assert drafts(tmp_path) == [held]
    write_atomically(tmp_path / "other", b"x")
    assert drafts(tmp_path) == [] and (tmp_path / "file").read_bytes() == b"old"


def test_a_writer_that_goes_on_is_not_hurt_by_who_tidies_up(tmp_path: Path) -> None:
    with writer(tmp_path / "file") as process:
        tidy_drafts(tmp_path)
        process.communicate()
    assert process.returncode == 0 and (tmp_path / "file").read_bytes() == b"new" and drafts(tmp_path) == []


def test_only_drafts_are_tidied_up(tmp_path: Path) -> None:
    name = ".file.0123456789abcdef.draft"
    stay = tmp_path / "stay"
    (stay / name).mkdir(parents=True)
    (stay / ".file.0123456789abcdee.draft").symlink_to(tmp_path / "target")
    os.mkfifo(stay / ".file.0123456789abcded.draft")
    for other in (
        "file.0123456789abcdef.draft",
        ".file.draft",
        ".file.0123.draft",
        f"{name}.txt",
        ".0123456789abcdef.draft",
    ):
        (stay / other).write_text("mine")
    before = sorted(os.listdir(stay))
    write_atomically(stay / "file", b"x")
    assert sorted(os.listdir(stay)) == sorted([*before, "file"])
    (tmp_path / name).write_text("a killed process's")
    write_atomically(tmp_path / "file", b"x")
    assert not (tmp_path / name).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave a file of another user's")
def test_drafts_of_somebody_else_stay(tmp_path: Path) -> None:
    left = tmp_path / ".file.0123456789abcdef.draft"
    left.write_text("")
    left.chmod(0o666)
    tmp_path.chmod(0o777)
    for user in (12345, 0):
        child = os.fork()
        if child == 0:
            os.chdir(tmp_path)  # what is above may be closed to that user
            os.setuid(user)
            tidy_drafts(Path("."))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert left.exists() is (user != 0)


def test_writers_and_who_tidies_up_at_once(tmp_path: Path) -> None:
    """A draft is seen for a moment before it is locked: its writer begins anew."""
    over = threading.Event()

    def tidy() -> None:
        while not over.is_set():
            tidy_drafts(tmp_path)

    threads = [threading.Thread(target=tidy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            write_atomically(tmp_path / "file", b"%d" % number)
            assert (tmp_path / "file").read_bytes() == b"%d" % number
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_never_has_more_rights_than_it_is_to_have(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []

    def look(effect: str) -> None:
        seen.extend([effect, *(oct(stat.S_IMODE((tmp_path / name).stat().st_mode)) for name in drafts(tmp_path))])

    old = os.umask(0)
    try:
        write_atomically(path, b"secret", 0o600, before=look)
        write_atomically(tmp_path / "public", [b"a", memoryview(b"bc")], 0o644)
    finally:
        os.umask(old)
    assert seen == ["draft file", "sync file", "0o600", "place file", "0o600"]
    assert oct(stat.S_IMODE((tmp_path / "public").stat().st_mode)) == "0o644"
    assert (tmp_path / "public").read_bytes() == b"abc"
    os.umask(0o027)
    try:
        write_atomically(tmp_path / "plain", b"")
    finally:
        os.umask(old)
    assert oct(stat.S_IMODE((tmp_path / "plain").stat().st_mode)) == "0o640"


def test_nothing_is_left_of_a_write_that_failed(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "file", b"x")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "other", ["text"])  # type: ignore[list-item]
    assert os.listdir(tmp_path) == ["file"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "ä" * 127
    write_atomically(tmp_path / name, b"x")
    assert os.listdir(tmp_path) == [name]


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    """Root may work in a directory of somebody else's."""
    (tmp_path / "other").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="symbolic links"):
        open_lock(tmp_path / "lock")


def test_where_there_are_no_locks_drafts_stay_and_files_are_written(
    without_locks: dict[str, str], tmp_path: Path
) -> None:
    """Nobody can tell there whether a draft's writer lives."""
    place = tmp_path / "place"
    place.mkdir()
    (place / ".file.0123456789abcdef.draft").write_text("")
    with writer(place / "file", **without_locks) as process:
        process.communicate()
    assert process.returncode == 0
    assert sorted(os.listdir(place)) == [".file.0123456789abcdef.draft", "file"]
    with locked(place / "lock", "it"):
        pass


def test_who_only_looks_at_a_lock_keeps_nobody_from_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    looks = open_lock(path)
    lock(looks, wait=False, shared=True)
    assert not is_locked(path), "another one looks at it at the same moment"
    with pytest.raises(StoreBusy), locked(path, "it"):
        pass
    away = threading.Timer(0.1, os.close, [looks])
    away.start()
    with locked(path, "it", patience_s=60):
        assert is_locked(path)
    away.join()
