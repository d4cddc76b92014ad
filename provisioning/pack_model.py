"""Pack a model into an image of its own, so that code and weights are updated apart: `python -m provisioning.pack_model`.

The image holds the model's files and its manifest, and nothing that runs. Mounted at EDGE_HOME/models, read-only, the node knows
the model by its name (docs/install/container.md). The same files give the same digest.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge.effective import default_home
from edge.errors import ConfigurationError, EdgeError
from edge.registry.describe import described, name_from_file
from edge.registry.digest import sha256_of
from edge.registry.gguf import read_header
from edge.registry.manifest import NAME_PATTERN, Manifest, manifest_text
from edge.registry.resolve import Registry

_BUILDERS = {"buildah": "bud", "podman": "build", "docker": "build"}


def main(arguments: Sequence[str]) -> int:
    """Pack one model. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model of this machine, by name, or the path of a GGUF file")
    parser.add_argument("--name", help="what the node will call it [default: its name, or made from the file's]")
    parser.add_argument(
        "--licence", default="LicenseRef-unknown", help="SPDX identifier, for a file without a manifest"
    )
    parser.add_argument("--tag", help="of the image [default: localhost/edge-model-NAME:the sum's first 12 digits]")
    parser.add_argument("--builder", choices=_BUILDERS, help="[default: the first that is there]")
    chosen = parser.parse_args(arguments)
    try:
        manifest, files = gathered(chosen.model, chosen.name, chosen.licence)
        assert manifest.sha256 is not None
        tag = chosen.tag or f"localhost/edge-model-{manifest.name}:{manifest.sha256[:12]}"
        build(chosen.builder or a_builder(), tag, manifest, files)
    except EdgeError as error:
        print(f"edge: {error.message}", file=sys.stderr)
        return 1
    print(tag)
    return 0


def gathered(wish: str, name: str | None, licence: str) -> tuple[Manifest, Mapping[str, Path]]:
    """A model's manifest as it will stand beside its files, and the files by name. Raises EdgeError."""
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise ConfigurationError(
            f"--name {name!r} is no name that a node takes: give up to 63 of a-z, 0-9, dot, dash and underscore, a letter or a "
            "digit first"
        )
    path = Path(wish)
    if path.suffix == ".gguf":
        header, sha256 = read_header(path), sha256_of(path)
        known = name if name is not None else name_from_file(path.name)
        made = described(known, f"file:{path.absolute()}", path.name, licence)(sha256, header)
        return made.model_copy(update={"file": path.name, "source": f"file:/{path.name}"}), {path.name: path}
    found = Registry.at(default_home(os.environ)).find(wish)
    if found.manifest is None:
        raise ConfigurationError(
            f"{wish} has no manifest, and only GGUF files say enough of themselves: write one first"
        )
    main_file = found.manifest.main_file or found.path.name
    update = {"file": main_file, "sha256": found.manifest.sha256 or sha256_of(found.path), "evaluation": None}
    if name is not None:
        update["name"] = name
    return found.manifest.model_copy(update=update), {**found.files, main_file: found.path}


def a_builder() -> str:
    """Raises ConfigurationError if there is none."""
    for name in _BUILDERS:
        if shutil.which(name):
            return name
    raise ConfigurationError("there is no builder for images here: install one (Debian: apt install buildah)")


def build(builder: str, tag: str, manifest: Manifest, files: Mapping[str, Path]) -> None:
    """Raises ConfigurationError with the builder's last words."""
    with tempfile.TemporaryDirectory(prefix="edge-pack-") as draft:
        context = Path(draft) / "content"
        context.mkdir(mode=0o755)
        (context / f"{manifest.name}.toml").write_text(manifest_text(manifest, "pack_model"), "utf-8")
        for name, path in files.items():
            placed(path, context / name)
        for path in context.iterdir():
            path.chmod(0o444)
        recipe = Path(draft) / "Containerfile"
        recipe.write_text(
            f'FROM scratch\nCOPY . /\nLABEL org.opencontainers.image.licenses="{manifest.licence}"\n', "utf-8"
        )
        stamped = ["--build-arg", "SOURCE_DATE_EPOCH=0"] if builder == "docker" else ["--timestamp", "0"]
        options = os.environ.get("EDGE_BUILD_OPTIONS", "").split()
        command = [builder, _BUILDERS[builder], *stamped, *options, "--file", str(recipe), "--tag", tag, str(context)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConfigurationError(f"{builder} cannot build the image: {' '.join(done.stderr.split()[-40:])}")


def placed(source: Path, target: Path) -> None:
    """A copy: the file's mode is changed, and a link would change it for others too."""
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ConfigurationError(f"{source} cannot be copied ({error.strerror}): make room, or set TMPDIR") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
