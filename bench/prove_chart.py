"""Proof of the Helm chart: `make prove-chart`.

1. Every choice of each side of the chart with every choice of each other, and every example, for every Kubernetes from 1.28 to
   1.36: rendered by helm, valid strictly, and read by the node itself.
2. What cannot work is refused, with its sentence.
3. Pods as rendered run under podman, init containers too, and the probes' requests are made (bench/chart_pods.py).
4. A stick is made from what podman saves in either form: its image imports into containerd under the name that the pods ask for,
   its HelmChart renders to the same objects, its checksums hold, twice the same bytes.

3 and 4 need root, podman, containerd, zstd and the node's image (--image; `make image` builds it). There is no API server:
admission, scheduling and the kubelet itself are not tried. Exit status 1 if anything fails.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.chart import CHART, KEYS, VERSIONS, Refused, examples, faults, pod_of, render
from bench.chart_cases import REFUSED, REFUSED_BELOW, merged, whole_matrix
from edge.effective import load
from edge.errors import EdgeError
from edge.k3s.bundle import Carried, Wish, make_bundle

_Task = tuple[str, dict[str, Any] | None, list[Path], str]
_MODEL = CHART.parent.parent / "models" / "builtin" / "edge-builtin-q4_0.gguf"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="localhost/edge-node:dev", help="the node's image in podman's storage")
    parser.add_argument(
        "--part", choices=("all", "matrix", "pods", "stick"), default="all", help="only this part [default: all]"
    )
    a = parser.parse_args()
    parts: dict[str, Callable[[], list[str]]] = {
        "matrix": lambda: matrix() + refusals(),
        "pods": lambda: pods(a.image),
        "stick": lambda: stick(a.image),
    }
    failed = []
    for name, prove in parts.items():
        if a.part in ("all", name):
            begun = time.monotonic()
            found = prove()
            print(f"{name}: {len(found)} faults, {time.monotonic() - begun:.0f} s", flush=True)
            failed += [f"{name}: {fault}" for fault in found]
    for fault in failed[:50]:
        print(f"FAULT {fault}")
    return 1 if failed else 0


# --- 1 and 2 ----------------------------------------------------------------------------------------------------------


def matrix() -> list[str]:
    """Everything for every version."""
    tasks: list[_Task] = [(name, values, [], version) for name, values in whole_matrix() for version in VERSIONS]
    for example in examples():
        tasks += [(example.name, None, [example.path], version) for version in VERSIONS if example.fits(version)]
    below = [(example, version) for example in examples() for version in VERSIONS if not example.fits(version)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [fault for one in pool.map(lambda task: _held(*task), tasks) for fault in one]
    for example, version in below:
        try:
            render(version, files=[example.path])
            found.append(f"{example.name} was not refused by Kubernetes {version}")
        except Refused as refused:
            if "made for Kubernetes" not in refused.reason:
                found.append(f"{example.name} on {version}: {refused.reason}")
    print(f"  {len(tasks)} renderings are valid and read by the node; {len(below)} refused for their version")
    return found


def _held(name: str, values: dict[str, Any] | None, files: list[Path], version: str) -> list[str]:
    try:
        objects = render(version, values, files)
    except Refused as refused:
        return [f"{name} on {version}: refused: {refused.reason}"]
    found = [f"{name} on {version}: {fault}" for one in objects for fault in faults(one, version)]
    return found + [f"{name} on {version}: the node says: {said}" for said in _unread(objects)]


def _unread(objects: list[dict[str, Any]]) -> list[str]:
    """What the node has against its settings."""
    text = next(one for one in objects if one["kind"] == "ConfigMap")["data"]["edge.toml"]
    env = {one["name"]: one.get("value", "from-a-field") for one in pod_of(objects)["containers"][0]["env"]}
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "edge.toml"
        file.write_text(text)
        try:
            load(Path(home), {**env, "EDGE_SETTINGS": str(file)}, {})
        except EdgeError as error:
            return [error.message]
    return []


def refusals() -> list[str]:
    """Each bad combination by every version that has what it is about."""
    found, tried = [], 0
    for values, sentence in REFUSED:
        for version in (VERSIONS[6], VERSIONS[-1]):
            tried += 1
            found += _refused(merged(KEYS, values), version, sentence)
    for values, old, _, sentence in REFUSED_BELOW:
        tried += 1
        found += _refused(merged(KEYS, values), old, sentence)
    print(f"  {tried} bad combinations refused, each with its sentence")
    return found


def _refused(values: dict[str, Any], version: str, sentence: str) -> list[str]:
    try:
        render(version, values)
    except Refused as refused:
        said = re.search(sentence, refused.reason)
        return [] if said else [f"{sentence}: said was {refused.reason}"]
    return [f"{sentence}: not refused on {version}"]


# --- 3 ----------------------------------------------------------------------------------------------------------------


def pods(image: str) -> list[str]:
    """In a process of its own, since its network is another."""
    command = f"ip link set lo up && exec {sys.executable} -m bench.chart_pods --image {image}"
    done = subprocess.run(["unshare", "--net", "sh", "-c", command], capture_output=True, text=True, check=False)
    print("  " + done.stdout.replace("\n", "\n  ").rstrip())
    if not done.returncode:
        return []
    found = [line.split("FAULT", 1)[1].strip() for line in done.stdout.splitlines() if "  FAULT" in line]
    return found or [done.stderr.strip()[-3000:]]


# --- 4 ----------------------------------------------------------------------------------------------------------------


def stick(image: str) -> list[str]:
    """Sticks from both forms of archives, and what K3s would do with them."""
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="edge-stick-") as directory, containerd(Path(directory)) as socket:
        place = Path(directory)
        for form in ("oci-archive", "docker-archive"):
            archive = place / f"{form}.tar"
            subprocess.run(
                ["podman", "save", "--quiet", "--format", form, "--output", archive, image],
                check=True,
                capture_output=True,
            )
            made = place / form
            _made(archive, made)
            found += [
                f"{form}: {fault}" for fault in (*_imports(made, socket, image), *_same_chart(made), *_sums(made))
            ]
            archive.unlink()
            subprocess.run(
                ["podman", "save", "--quiet", "--format", form, "--output", archive, image],
                check=True,
                capture_output=True,
            )
            _made(archive, place / "again")
            if (made / "SHA256SUMS").read_text() != (place / "again" / "SHA256SUMS").read_text():
                found.append(f"{form}: saved again, it gives another stick")
            archive.unlink()
            shutil.rmtree(place / "again")
    return found


def _made(archive: Path, target: Path) -> None:
    class Quiet:
        def goes_on(self, what: str, done_bytes: int) -> None:
            """Nobody looks."""

    wish = Wish(archive, None, (Carried(_MODEL, _MODEL.name),), None, None, "edge")
    bundle = make_bundle(wish, target, Quiet())
    print(f"  {target.name}: {bundle.files} files, {bundle.size_bytes / 1e6:.0f} MB, {bundle.image.name}")


@contextmanager
def containerd(place: Path) -> Iterator[str]:
    """A containerd of its own. Gives its socket."""
    socket = str(place / "containerd.sock")
    lines = ("version = 2", f'root = "{place}/root"', f'state = "{place}/state"')
    plugins = 'disabled_plugins = ["io.containerd.grpc.v1.cri"]'
    (place / "config.toml").write_text("\n".join((*lines, plugins, "[grpc]", f'address = "{socket}"', "")))
    with (place / "containerd.log").open("wb") as log:
        process = subprocess.Popen(["containerd", "--config", str(place / "config.toml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not Path(socket).exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((place / "containerd.log").read_text()[-2000:])
            time.sleep(0.1)
        yield socket
    finally:
        process.terminate()
        process.wait(timeout=30)


def _imports(made: Path, socket: str, image: str) -> list[str]:
    (packed,) = (made / "rootfs/var/lib/rancher/k3s/agent/images").glob("*.tar.zst")
    ctr = ["ctr", "--address", socket, "--namespace", "k8s.io", "images"]
    with subprocess.Popen(["zstd", "--decompress", "--stdout", str(packed)], stdout=subprocess.PIPE) as unpacked:
        done = subprocess.run([*ctr, "import", "-"], stdin=unpacked.stdout, capture_output=True, text=True, check=False)
    names = subprocess.run([*ctr, "list", "--quiet"], capture_output=True, text=True, check=True).stdout.split()
    state = subprocess.run([*ctr, "check"], capture_output=True, text=True, check=True).stdout
    subprocess.run([*ctr, "remove", *names], capture_output=True, check=True)
    found = []
    if done.returncode:
        found.append(f"containerd does not import it: {done.stderr.strip()[-500:]}")
    values = yaml.safe_load((made / "helm" / "values.yaml").read_text())
    wanted = pod_of(render(VERSIONS[-1], values))["containers"][0]["image"]
    if names != [wanted] or wanted != image:
        found.append(f"the pods ask for {wanted}, containerd has {names}, saved was {image}")
    if "complete" not in state or "true" not in state:
        found.append(f"the image is not whole or not unpacked: {state}")
    return found


def _same_chart(made: Path) -> list[str]:
    spec = yaml.safe_load((made / "rootfs-server/var/lib/rancher/k3s/server/manifests/edge-node.yaml").read_text())[
        "spec"
    ]
    archive = made.with_suffix(".tgz")
    archive.write_bytes(base64.b64decode(spec["chartContent"], validate=True))
    values = yaml.safe_load(spec["valuesContent"])
    for version in VERSIONS:
        objects = render(version, values, chart=archive)
        if objects != render(version, values) or [fault for one in objects for fault in faults(one, version)]:
            return [f"the HelmChart renders to something else for Kubernetes {version}"]
    return []


def _sums(made: Path) -> list[str]:
    done = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=made, capture_output=True, check=False)
    return ["SHA256SUMS does not hold"] if done.returncode else []


if __name__ == "__main__":
    sys.exit(main())
