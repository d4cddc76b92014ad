"""Write the checksum of the built-in model's file into its manifest: `python -m models.recipe.manifest`."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

MODELS = Path(__file__).parent.parent
MANIFEST = MODELS / "builtin.toml"
_CHECKSUM = re.compile(r'(?<=^sha256 = ")[0-9a-f]{64}(?="$)', re.MULTILINE)
_FILE = re.compile(r'^file = "(.+)"$', re.MULTILINE)


def seal(manifest: Path) -> str:
    """Replace the manifest's checksum by that of the file it names; returns it. Raises ValueError without such keys."""
    text = manifest.read_text("utf-8")
    named = _FILE.search(text)
    if named is None or not _CHECKSUM.search(text):
        raise ValueError(f"{manifest} has no `file` or no `sha256`")
    checksum = hashlib.sha256((manifest.parent / named.group(1)).read_bytes()).hexdigest()
    manifest.write_text(_CHECKSUM.sub(checksum, text), "utf-8")
    return checksum


if __name__ == "__main__":
    print(seal(MANIFEST))
