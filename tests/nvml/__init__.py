"""A stand-in for NVIDIA's management library, and the profiles that it replays."""

from __future__ import annotations

import subprocess
from pathlib import Path

_HERE = Path(__file__).parent
PROFILES = _HERE / "profiles"


def build_library(place: Path) -> Path:
    """Compile the stand-in into a directory for LD_LIBRARY_PATH."""
    out = place / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(out), str(_HERE / "nvml_stub.c")], check=True)
    return place
