"""Proof that the container image is what docs/install/container.md says: `make prove-image`, as root, on Debian.

A base image is put together from Debian's packages, and what is Python's comes from `make wheelhouse`; from there on the build
has no network at all. It is built twice and has one digest. Then it runs under podman: read-only, as 65532, without capabilities,
within a memory limit; answers; drains on SIGTERM without cutting a stream; says what it is made of; takes weights from an image
of their own; and picks its code by the processor, shown on emulated ones. With --jetson the other Dockerfile is built for arm64
under emulation, on a base without CUDA and with a compiler that is not emulated, and what it gives answers there.

Needs mmdebstrap buildah podman runc catatonit zstd qemu-user-static; for --jetson binfmt-support and arch-test too. Exit status 1
if a thing did not hold.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench.containers import CONFINED, Container, ToolFailed, Tools, debian, node, tools

ROOT = Path(__file__).resolve().parent.parent
IMAGE, AGAIN, JETSON = "localhost/edge-node:dev", "localhost/edge-node:again", "localhost/edge-jetson:dev"
BASE, BUILD_BASE = "localhost/edge-base:trixie", "localhost/edge-build-base:trixie"
ARM_BASE, ARM_BUILD_BASE = "localhost/edge-arm64-base:trixie", "localhost/edge-arm64-build-base:trixie"
_RUNS_ON = ("python3", "libstdc++6", "ca-certificates")
_BUILDS_WITH = ("python3", "python3-venv", "build-essential", "ca-certificates")
_CROSS_COMPILER = "g++-14-aarch64-linux-gnu"
_MEMORY_MIB, _EMULATED_MEMORY_MIB = 512, 1024
_STREAMS, _TOKENS = 6, 600
_GRACE_S = 45.0
_NO_CAPABILITIES = "0000000000000000"
_SEES = "from edge.engine.llama.library import Library; print(Library().system)"
_PROCESSORS = {"Nehalem": ({"SSSE3"}, {"AVX", "AVX2"}), "Haswell": ({"AVX", "AVX2", "FMA"}, {"AVX512"})}
"""Emulated processors: what has to be used there, and what must not be."""
_INSTALLED = "import importlib.metadata as m; [print(d.name.lower().replace('_', '-')) for d in m.distributions()]"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One thing that was looked at."""

    held: bool
    what: str
    found: str


class Proof:
    """Collects outcomes and says each as it comes."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def note(self, held: bool, what: str, found: object) -> None:
        """One more."""
        self.outcomes.append(Outcome(held, what, str(found)))
        print(f"{'holds' if held else 'FAILS'}  {what}: {found}", flush=True)

    def attempt(self, what: str, part: Callable[[], None]) -> None:
        """A part that may break down; the others go on."""
        try:
            part()
        except (ToolFailed, httpx.HTTPError, subprocess.SubprocessError, ValueError, KeyError) as error:
            self.note(False, what, f"{type(error).__name__}: {error}")


def main(arguments: list[str]) -> int:
    """Run it. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="do not build a second time to compare (saves ten minutes)")
    parser.add_argument("--built", action="store_true", help=f"build nothing: look at {IMAGE} as it is")
    parser.add_argument(
        "--jetson", action="store_true", help="build Dockerfile.jetson under emulation, and nothing else"
    )
    parser.add_argument("--mirror", default="", help="of Debian [default: mmdebstrap's own]")
    parser.add_argument("--out", type=Path, help="write the outcomes as JSON")
    chosen = parser.parse_args(arguments)
    proof = Proof()
    with tools() as found:
        if chosen.jetson:
            proof.attempt("the image for Jetson", lambda: prove_jetson(proof, found, chosen.mirror))
        else:
            if not chosen.built:
                prove_build(proof, found, chosen.mirror, twice=not chosen.once)
            prove_running(proof, found)
    if chosen.out is not None:
        chosen.out.write_text(
            json.dumps([{"held": o.held, "what": o.what, "found": o.found} for o in proof.outcomes], indent=1)
        )
    return 0 if all(outcome.held for outcome in proof.outcomes) else 1


# --- building ---------------------------------------------------------------------------------------------------------


def prove_build(proof: Proof, tools: Tools, mirror: str, *, twice: bool) -> None:
    """Raises ToolFailed: without an image there is nothing to look at."""
    debian(tools, BASE, _RUNS_ON, "amd64", "trixie", mirror)
    debian(tools, BUILD_BASE, _BUILDS_WITH, "amd64", "trixie", mirror)
    wheelhouse(tools, BASE, "x86_64")
    began_s = time.monotonic()
    build(tools, "cpu", IMAGE, "--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", f"BUILD_IMAGE={BUILD_BASE}")
    proof.note(True, "it builds without a network", f"{time.monotonic() - began_s:.0f} s")
    if twice:
        bases = ("--build-arg", f"BASE_IMAGE={BASE}", "--build-arg", f"BUILD_IMAGE={BUILD_BASE}")
        build(tools, "cpu", AGAIN, "--no-cache", *bases)
        one, other = tools.inspect(IMAGE)["Id"], tools.inspect(AGAIN)["Id"]
        proof.note(one == other, "built anew from nothing it has the same digest", f"{one[:19]} and {other[:19]}")


def build(tools: Tools, target: str, tag: str, *options: str) -> None:
    """In a network namespace with nothing in it. Raises ToolFailed."""
    tools.run(
        *("unshare", "--net", str(ROOT / "provisioning" / "image" / "build.sh"), target, tag, *options),
        timeout_s=3 * 3600,
        BUILDER="buildah",
        EDGE_BUILD_OPTIONS="--isolation=chroot --pull=never",
    )


def prove_jetson(proof: Proof, tools: Tools, mirror: str) -> None:
    """All stages but CUDA's code, which needs NVIDIA's compiler."""
    debian(tools, ARM_BASE, ("python3-venv", *_RUNS_ON), "arm64", "trixie", mirror)
    arm_build_base(tools, mirror)
    wheelhouse(tools, ARM_BASE, "aarch64", "--variant", "jetson")
    began_s = time.monotonic()
    bases = [f"BASE_IMAGE={ARM_BASE}", f"BUILD_IMAGE={ARM_BUILD_BASE}", "PYTHON_PACKAGE=python3", "GGML_CUDA=OFF"]
    build(tools, "jetson", JETSON, *(part for argument in bases for part in ("--build-arg", argument)))
    proof.note(
        True, "every stage of Dockerfile.jetson builds for arm64 without CUDA", f"{time.monotonic() - began_s:.0f} s"
    )
    system = tools.run("podman", "run", "--rm", *CONFINED, "--entrypoint", "python", JETSON, "-c", _SEES)
    proof.note("DOTPROD = 1" in system and "FP16_VA = 1" in system, "its code is for the boards' processors", system)
    with node(tools, JETSON, "edge-proof-jetson", f"--memory={_EMULATED_MEMORY_MIB}m", ready_s=900) as container:
        prove_answers(proof, container, "edge-builtin", "it answers a chat, emulated")
        prove_materials(proof, container)


def arm_build_base(tools: Tools, mirror: str) -> None:
    """The arm64 base with a compiler for arm64 that runs on this machine: emulated, it would take hours. Raises ToolFailed.

    Debian's packages of it cannot be installed in an arm64 system, so their files are laid in; none is there in both.
    """
    if tools.has(ARM_BUILD_BASE):
        return
    with tempfile.TemporaryDirectory(prefix="edge-compiler-") as draft:
        archive, root = Path(draft) / "compiler.tar", Path(draft) / "root"
        tools.run(
            *("mmdebstrap", "--quiet", "--variant=extract", "--architectures=amd64"),
            *(f"--include={_CROSS_COMPILER}", "trixie", str(archive), *([mirror] if mirror else [])),
            timeout_s=1800,
        )
        commands = root / "usr" / "local" / "bin"
        commands.mkdir(parents=True)
        tools.run("tar", "--extract", "--file", str(archive), "--directory", str(root), "./usr")
        (root / "lib64").symlink_to("usr/lib64")
        for name in ("ar", "as", "ld", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip"):
            (commands / name).symlink_to(f"/usr/bin/aarch64-linux-gnu-{name}")
        for names, compiler in ((("gcc", "cc"), "gcc"), (("g++", "c++"), "g++")):
            for name in (*names, f"aarch64-linux-gnu-{compiler}"):  # the last is what Debian's Python was built with
                (commands / name).symlink_to(f"/usr/bin/aarch64-linux-gnu-{compiler}-14")
        container = tools.run("buildah", "from", "--pull=never", ARM_BASE)
        try:
            tools.run("buildah", "add", "--quiet", container, str(root), "/")
            tools.run("buildah", "commit", "--quiet", container, ARM_BUILD_BASE)
        finally:
            tools.run("buildah", "rm", container)


def wheelhouse(tools: Tools, base: str, machine: str, *options: str) -> None:
    """What the image is built from, fetched unless it lies here. Raises ToolFailed if what lies here is for another machine."""
    place = ROOT / "dist" / "wheelhouse"
    if not place.exists():
        asked = ("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        python = tools.run("podman", "run", "--rm", base, *asked)
        fetch = ("provisioning/wheelhouse.py", "--python", python, "--machine", machine, *options)
        tools.run(sys.executable, *fetch, timeout_s=1800)
    elif not any((place / "run").glob(f"*_{machine}.whl")):
        raise ToolFailed(f"{place} has no wheels for {machine}: remove it, and the right ones are fetched")


# --- running ----------------------------------------------------------------------------------------------------------


def prove_running(proof: Proof, tools: Tools) -> None:
    """Each part in a container of its own, so that one that fails says nothing of the others."""

    def confined() -> None:
        with node(tools, IMAGE, "edge-proof", f"--memory={_MEMORY_MIB}m") as container:
            prove_confined(proof, container)
            prove_answers(proof, container, "edge-builtin", "it answers a chat")
            prove_materials(proof, container)
            prove_drain(proof, container)

    proof.attempt("a confined container", confined)
    proof.attempt("weights in an image of their own", lambda: prove_weights_apart(proof, tools))
    for processor in _PROCESSORS:
        proof.attempt(f"code for {processor}", lambda name=processor: prove_processor(proof, tools, name))  # type: ignore[misc]
    proof.attempt("the image's size", lambda: prove_size(proof, tools))


def prove_confined(proof: Proof, container: Container) -> None:
    """What the kernel says of the process, not what was asked for."""
    status = dict(
        line.split(":\t", 1) for line in container.execute("cat", "/proc/1/status").splitlines() if ":\t" in line
    )
    proof.note(status["Uid"].split()[1] == "65532", "it runs as 65532", f"uid {status['Uid'].split()[1]}")
    proof.note(status["CapEff"] == status["CapBnd"] == _NO_CAPABILITIES, "without capabilities", status["CapBnd"])
    proof.note(status["NoNewPrivs"] == "1", "and can get none", f"no_new_privs {status['NoNewPrivs']}")
    options = container.execute("cat", "/proc/1/mounts").splitlines()
    root = next(line.split()[3].split(",")[0] for line in options if line.split()[1] == "/")
    proof.note(root == "ro", "its root is read-only", root)
    memory = next(line for line in container.execute("edge", "doctor", check=False).splitlines() if " memory " in line)
    proof.note(
        f"limited to {_MEMORY_MIB / 1024:.1f} GiB" in memory,
        "it knows its memory limit",
        memory.split("  ")[-1].strip(),
    )
    native = next(
        line for line in container.execute("edge", "doctor", check=False).splitlines() if "native library" in line
    )
    proof.note(True, "the code that this processor gets", native.rpartition("built for ")[2])
    health = container.tools.run("podman", "healthcheck", "run", container.name, check=False)
    proof.note(container.execute("edge", "health") == "ready" and not health, "its health check passes", "ready")


def prove_answers(proof: Proof, container: Container, model: str, what: str) -> None:
    """One chat with the official form."""
    body = {"model": model, "messages": [{"role": "user", "content": "What can you do?"}]}
    answer = httpx.post(
        f"{container.url}/v1/chat/completions", json=body, headers=container.headers, timeout=60, trust_env=False
    )
    text = answer.raise_for_status().json()["choices"][0]["message"]["content"]
    proof.note(bool(text.strip()), what, text.strip()[:70])


def prove_materials(proof: Proof, container: Container) -> None:
    """The bill names every package that Python finds, and the base's."""
    bill = json.loads(container.execute("cat", "/opt/edge/share/edge/sbom.cdx.json"))
    named = {component["name"].lower().replace("_", "-") for component in bill["components"]}
    installed = set(container.execute("python", "-c", _INSTALLED).splitlines())
    missing = sorted(installed - named)
    found = f"{len(bill['components'])} components, CycloneDX {bill['specVersion']}" + (
        f", without {missing}" if missing else ""
    )
    proof.note(not missing and {"libllama.so", "libc6"} <= named, "the bill of materials is whole", found)


def prove_drain(proof: Proof, container: Container) -> None:
    """SIGTERM in the middle of streams: each comes to its end, and the container to its own within the grace time."""
    with ThreadPoolExecutor(_STREAMS) as pool:
        begun: list[float] = []
        streams = [pool.submit(stream, container, begun) for _ in range(_STREAMS)]
        while len(begun) < _STREAMS and not all(one.done() for one in streams):
            time.sleep(0.02)
        asked_s = time.monotonic()
        container.tools.run("podman", "kill", "--signal", "TERM", container.name)
        refused = httpx.get(f"{container.url}/health/ready", timeout=5, trust_env=False)
        ends = [one.result() for one in streams]
        code = container.stopped()
    took_s = time.monotonic() - asked_s
    proof.note(
        refused.status_code == httpx.codes.SERVICE_UNAVAILABLE, "while it drains it is not ready", refused.status_code
    )
    whole = sum(end == (_TOKENS, "length", True) for end in ends)
    proof.note(
        whole == _STREAMS, "no stream was cut by SIGTERM", f"{whole} of {_STREAMS} whole, {_TOKENS:,} tokens each"
    )
    proof.note(
        code == 0 and took_s < _GRACE_S, "it ended in good order within its grace", f"{took_s:.1f} s, status {code}"
    )


def stream(container: Container, begun: list[float]) -> tuple[int, str, bool]:
    """(tokens, why it ended, whether the end mark came) of one long stream; `begun` grows with its first piece."""
    body: dict[str, Any] = {"model": "edge-builtin", "prompt": "pump 3", "max_tokens": _TOKENS, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    tokens, reason, ended = 0, "", False
    url = f"{container.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=container.headers, timeout=120, trust_env=False) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                ended = True
                continue
            if not tokens and not reason and time.monotonic() not in begun:
                begun.append(time.monotonic())
                tokens = -1  # counted by the node, at the end
            piece = json.loads(line.removeprefix("data: "))
            reason = next((c["finish_reason"] for c in piece.get("choices", ()) if c.get("finish_reason")), reason)
            if usage := piece.get("usage"):
                tokens = usage["completion_tokens"]
    return tokens, reason, ended


def prove_weights_apart(proof: Proof, tools: Tools) -> None:
    """A model that lies in another image, mounted."""
    tag = "localhost/edge-model-weights-apart:proof"
    packing = (sys.executable, "-m", "provisioning.pack_model", "edge-builtin", "--name", "weights-apart", "--tag", tag)
    tools.run(*packing, "--builder", "buildah")
    first = tools.inspect(tag)["Id"]
    tools.run(*packing, "--builder", "buildah")
    proof.note(first == tools.inspect(tag)["Id"], "a model's image has the same digest twice", first[:19])
    mount = f"type=image,source={tag},destination=/var/lib/edge/models"
    with node(
        tools, IMAGE, "edge-proof-apart", "--mount", mount, "--env", "EDGE_MODEL__NAME=weights-apart"
    ) as container:
        prove_answers(proof, container, "weights-apart", "weights come from an image of their own")


def prove_processor(proof: Proof, tools: Tools, name: str) -> None:
    """Which code is taken on another processor, emulated."""
    emulator = shutil.which("qemu-x86_64-static") or "qemu-x86_64-static"
    wanted, unwanted = _PROCESSORS[name]
    command = ("/emulator", "-cpu", name, "/opt/edge/bin/python", "-c", _SEES)
    system = tools.run(
        *("podman", "run", "--rm", *CONFINED, "--volume", f"{emulator}:/emulator:ro"),
        *("--entrypoint", command[0], IMAGE, *command[1:]),
    )
    used = {
        part.split("=")[0].strip() for part in system.replace("CPU :", "").split("|") if part.strip().endswith("= 1")
    }
    proof.note(
        wanted <= used and not unwanted & used, f"on an emulated {name} it takes code for that", " ".join(sorted(used))
    )


def prove_size(proof: Proof, tools: Tools) -> None:
    """As it lies on the disk, and as it travels."""
    whole, base = tools.inspect(IMAGE)["Size"], tools.inspect(BASE)["Size"]
    with subprocess.Popen(["podman", "save", IMAGE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as saved:
        packed = subprocess.run(["zstd", "-3", "-T0", "-c"], stdin=saved.stdout, capture_output=True, check=True).stdout
    travels = f"{len(packed) / 1e6:,.0f} MB with zstd"
    proof.note(True, "its size", f"{whole / 1e6:,.0f} MB, of which the base {base / 1e6:,.0f} MB; {travels}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
