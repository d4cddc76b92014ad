"""The Helm chart that came with this installation, and the chart packed."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
from pathlib import Path

from edge.errors import ConfigurationError

NAME = "edge-node"
_VERSION = re.compile(r"^version: (\S+)$", re.MULTILINE)


def chart_directory() -> Path:
    """Where the chart lies: in the package, or in the checkout. Raises ConfigurationError."""
    package = Path(__file__).parent.parent
    for directory in (package / "_chart", package.parent / "k3s" / "chart"):
        if (directory / "Chart.yaml").is_file():
            return directory
    raise ConfigurationError(
        "this installation has no Helm chart, as container images have none; install the Python package, or use a checkout"
    )


def chart_version(directory: Path) -> str:
    """The version that Chart.yaml states. Raises ConfigurationError."""
    found = _VERSION.search((directory / "Chart.yaml").read_text("utf-8"))
    if found is None:
        raise ConfigurationError(f"{directory}/Chart.yaml states no version; install edge again")
    return found[1]


def packed(directory: Path) -> bytes:
    """The chart as `helm package` packs it, with the same bytes each time."""
    tarred = io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(directory.rglob("*"), key=lambda path: path.relative_to(directory).as_posix()):
            if not path.is_file() or path.name == ".DS_Store":
                continue
            entry = tarfile.TarInfo(f"{NAME}/{path.relative_to(directory).as_posix()}")
            data = path.read_bytes()
            entry.size, entry.mode = len(data), 0o644
            archive.addfile(entry, io.BytesIO(data))
    zipped = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=zipped, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(tarred.getvalue())
    return zipped.getvalue()
