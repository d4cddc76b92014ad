"""Write an image's bill of materials (CycloneDX JSON): the Python packages that are installed, the native code that came with
them, and the base image's packages. Runs in the build, with cyclonedx-py beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

_REPRODUCIBLE_JSON = ("--output-reproducible", "--output-format", "JSON", "--output-file", "-")
_VERSION_OF = {"libllama.so": ("llama.cpp", "llama_version"), "libggml-base.so": ("ggml", "ggml_version")}
"""Libraries that say themselves of which project and version they are."""


def main(arguments: Sequence[str]) -> int:
    """Write it. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True, help="interpreter of the environment to describe")
    parser.add_argument("--facts", type=Path, required=True, help="directory with packages.tsv and os-release")
    parser.add_argument("--native", type=Path, required=True, help="directory of the native libraries")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    bill = of_environment(chosen.python)
    bill["components"] += native(chosen.native)
    bill["components"] += base_packages(chosen.facts)
    text = json.dumps(bill, indent=1, sort_keys=True) + "\n"
    if (wrong := JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(text)) is not None:
        print(f"edge: the bill of materials is not valid: {wrong}", file=sys.stderr)
        return 1
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(text, "utf-8")
    print(f"bill of materials: {len(bill['components'])} components")
    return 0


def of_environment(python: str) -> dict[str, Any]:
    """The bill of what is installed there, without time and serial number. Not validated: `main` does that with the whole."""
    tool = Path(sys.executable).with_name("cyclonedx-py")
    done = subprocess.run(
        [tool, "environment", "--no-validate", *_REPRODUCIBLE_JSON, python],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def native(directory: Path) -> Iterator[dict[str, Any]]:
    """The native libraries that the bindings' package brings and does not name."""
    for library in sorted(directory.glob("*.so*")):
        component: dict[str, Any] = {
            "type": "library",
            "bom-ref": f"native:{library.name}",
            "name": library.name,
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(library.read_bytes()).hexdigest()}],
        }
        if library.name in _VERSION_OF:
            name, function = _VERSION_OF[library.name]
            component["version"] = _asked(library, function)
            component["purl"] = f"pkg:github/ggml-org/{name}@{component['version']}"
        yield component


def _asked(library: Path, function: str) -> str:
    ask = ctypes.CDLL(str(library))[function]
    ask.restype = ctypes.c_char_p
    answer = ask()
    assert isinstance(answer, bytes)
    return answer.decode()


def base_packages(facts: Path) -> Iterator[dict[str, Any]]:
    """What the base image's package manager lists."""
    system = dict(line.split("=", 1) for line in (facts / "os-release").read_text("utf-8").splitlines() if "=" in line)
    vendor, release = system["ID"].strip('"'), system.get("VERSION_ID", "").strip('"')
    for line in sorted((facts / "packages.tsv").read_text("utf-8").splitlines()):
        name, version, architecture, source = line.split("\t")
        about = f"arch={architecture}&distro={vendor}-{release}" + (
            f"&upstream={quote(source)}" if source != name else ""
        )
        purl = f"pkg:deb/{vendor}/{quote(name)}@{quote(version, safe='')}?{about}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
