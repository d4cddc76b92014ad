"""A card that goes away and comes back, through the real binding in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.nvml import PROFILES, build_library

ASK = """
import logging, sys
from pathlib import Path
from edge.probes.gpu import GpuProbe
logging.basicConfig(level=logging.INFO, format="%(event)s", stream=sys.stdout)
profile = Path(sys.argv[1])
whole = profile.read_text()
probe = GpuProbe()
def count(): print(len(probe.read()), flush=True)
count()
profile.write_text(whole.replace("0.power 42500", "0.power error 999"))
print(probe.read()[0].power_watts, "power" in probe.read()[0].supported)
profile.write_text(whole.replace("0.power 42500", "0.power error 15")); count(); count()
profile.write_text("cards error 9"); count()
profile.write_text(whole); count(); count()
probe.close()
"""


def test_a_lost_card_is_absent_said_once_and_found_again(tmp_path: Path) -> None:
    library = build_library(tmp_path)
    profile = tmp_path / "profile.txt"
    profile.write_text((PROFILES / "full.txt").read_text().replace("0.xid 31 79\n", ""))
    env = {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STUB_PROFILE": str(profile)}
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(profile)], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [
        "1",
        "None False",  # one figure cannot be read now: absent, and nothing is said of whether it is supported
        "gpu_lost",
        "0",
        "0",
        "0",
        "gpu_back",
        "1",
        "1",
        "",
    ]
