"""`sudo edge enroll` for a node that runs as somebody else: root must not follow that user's links."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge.cli.enroll import _Given
from edge.identity.owner import other_owner, roots_own

_NOBODY = 65_534
_WORK = """
import os, sys
from pathlib import Path
import edge.errors, edge.identity.store as store, edge.identity.owner as owner
home = Path(sys.argv[1])
found = owner.other_owner(home)
if found is not None:
    try:
        owner.become(found, home)
    except edge.errors.ConfigurationError as error:  # a Python in root's own home is of no use to him, and that is said
        assert "cannot read the Python" in error.message, error.message
    assert os.getresuid() == (65534,) * 3 and 0 not in os.getgroups() and os.environ["EDGE_HOME"] == str(home)
try:
    with store.Store(home).locked():
        pass
except edge.errors.EdgeError as error:
    print(error.message)
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's."""
    found = Path(tempfile.mkdtemp())
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can do harm here")
def test_root_follows_no_link_of_the_homes_owner(place: Path) -> None:
    precious, shadow, home = place / "precious", place / "shadow", place / "home"
    (precious / "sub").mkdir(parents=True)
    (precious / "file").write_text("precious")
    shadow.write_text("s")
    shadow.chmod(0o644)
    (home / "identity").mkdir(parents=True)
    (home / "identity" / "generations").symlink_to(precious)
    (home / "identity" / "lock").symlink_to(shadow)
    for path in (home, home / "identity"):
        os.chown(path, _NOBODY, _NOBODY)
    done = subprocess.run([sys.executable, "-c", _WORK, home], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stdout
    assert (precious / "file").read_text() == "precious" and (precious / "sub").is_dir()
    assert (stat.S_IMODE(shadow.stat().st_mode), shadow.stat().st_uid) == (0o644, 0)


def test_who_is_the_owner_stays_so(tmp_path: Path) -> None:
    assert other_owner(tmp_path / "not" / "there" / "yet") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_only_a_file_that_nobody_can_exchange_is_roots_own(place: Path) -> None:
    mine, theirs = place / "mine", place / "theirs"
    theirs.mkdir()
    for path in (mine, theirs / "seed"):
        path.write_text("x")
    (theirs / "link").symlink_to(mine)
    os.chown(theirs, _NOBODY, _NOBODY)
    assert other_owner(theirs / "home") is not None
    assert roots_own(mine) == mine and roots_own(theirs / "link") == mine
    assert roots_own(theirs / "seed") is None and roots_own(place / "nowhere") is None


def test_a_token_is_in_no_repr() -> None:
    assert "secret" not in repr(_Given("https://fleet", "secret", "name", None))
