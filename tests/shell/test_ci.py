"""The script that runs everything, where it cannot begin."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = 65534


def test_without_root_it_says_which_packages_are_missing_and_how_to_get_them() -> None:
    found = shutil.which("dirname", path="/usr/bin:/bin")
    assert found is not None
    with tempfile.TemporaryDirectory() as programs:  # all that is installed; any user may look in, unlike tmp_path
        Path(programs).chmod(0o755)
        (Path(programs) / "dirname").symlink_to(found)
        # By standard input, since another user may not read the checkout; then $0 is `bash`, and `..` is /.
        done = subprocess.run(
            ["/bin/bash"],
            input=(ROOT / ".ci" / "run").read_text(),
            env={"PATH": programs},
            cwd="/usr",
            user=NOBODY if os.geteuid() == 0 else None,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    first, line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert first.startswith("edge: packages are missing, and only root can install them.")
    assert line.startswith("  apt-get update && apt-get install -y --no-install-recommends make build-essential ")
