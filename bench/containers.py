"""Images and containers for proofs: podman as root, with runc and without systemd."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_CONFIGURATION = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")
_PORT = 8080


class ToolFailed(Exception):
    """A program ended with an error; the message has its last words."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Podman and buildah with a configuration of their own."""

    configuration: Path

    def run(self, *command: str, check: bool = True, timeout_s: float = 600, **env: str) -> str:
        """Standard output of a command. Raises ToolFailed."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env={**os.environ, "CONTAINERS_CONF": str(self.configuration), **env},
        )
        if check and done.returncode != 0:
            words = "\n".join(f"    {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-12:])
            raise ToolFailed(f"`{' '.join(command)}` ended with {done.returncode}:\n{words}")
        return done.stdout.strip()

    def has(self, image: str) -> bool:
        """Whether an image is here."""
        done = subprocess.run(["podman", "image", "exists", image], check=False, capture_output=True)
        return done.returncode == 0

    def inspect(self, image: str) -> dict[str, Any]:
        """What is known of an image."""
        found: list[dict[str, Any]] = json.loads(self.run("podman", "image", "inspect", image))
        return found[0]


@contextlib.contextmanager
def tools() -> Iterator[Tools]:
    """They leave the machine's own configuration alone."""
    with tempfile.TemporaryDirectory(prefix="edge-containers-") as draft:
        path = Path(draft) / "containers.conf"
        path.write_text(_CONFIGURATION, "utf-8")
        yield Tools(path)


@dataclass(frozen=True, slots=True)
class Container:
    """A node in a container."""

    tools: Tools
    name: str
    key: str
    url: str

    def execute(self, *command: str, check: bool = True) -> str:
        """Run a command in it."""
        return self.tools.run("podman", "exec", self.name, *command, check=check)

    @property
    def headers(self) -> dict[str, str]:
        """With the node's key."""
        return {"authorization": f"Bearer {self.key}"}

    def stopped(self) -> int:
        """Wait until it has ended. Returns its exit status."""
        return int(self.tools.run("podman", "wait", self.name, timeout_s=120))


@contextlib.contextmanager
def node(tools: Tools, image: str, name: str, *options: str, ready_s: float = 180) -> Iterator[Container]:
    """A node of this image with a volume and a key of its own, confined, and ready."""
    volume = f"{name}-state:/var/lib/edge"
    gone(tools, name)
    try:
        key = tools.run("podman", "run", "--rm", *CONFINED, "--volume", volume, image, "keys", "create", "proof")
        health = ("--health-cmd", "edge health", "--health-interval", "disable")  # podman's timer needs systemd
        tools.run("podman", "run", "--detach", "--name", name, *CONFINED, *health, "--volume", volume, *options, image)
        address = tools.run("podman", "inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
        container = Container(tools, name, key, f"http://{address}:{_PORT}")
        wait_ready(container, ready_s)
        yield container
    finally:
        gone(tools, name)


def wait_ready(container: Container, ready_s: float) -> None:
    """Raises ToolFailed with the node's log if it does not become ready."""
    give_up_s = time.monotonic() + ready_s
    while time.monotonic() < give_up_s:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{container.url}/health/ready", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise ToolFailed(f"{container.name} is not ready after {ready_s:.0f} s:\n{logs(container)}")


def logs(container: Container) -> str:
    """The last lines of the node's log."""
    done = subprocess.run(
        ["podman", "logs", "--tail", "15", container.name], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def gone(tools: Tools, name: str) -> None:
    """Container and volume, if they are there."""
    tools.run("podman", "rm", "--force", "--time", "2", name, check=False)
    tools.run("podman", "volume", "rm", "--force", f"{name}-state", check=False)


def debian(tools: Tools, image: str, packages: Sequence[str], architecture: str, suite: str, mirror: str) -> None:
    """A minimal Debian as a base image, made without a registry; `mirror` empty: mmdebstrap's own. Does nothing if it is here."""
    if tools.has(image):
        return
    with tempfile.TemporaryDirectory(prefix="edge-base-") as draft:
        archive = str(Path(draft) / "root.tar")
        tools.run(
            *("mmdebstrap", "--quiet", "--variant=minbase", f"--architectures={architecture}"),
            *(f"--include={','.join(packages)}", suite, archive, *([mirror] if mirror else [])),
            timeout_s=3600,
            SOURCE_DATE_EPOCH="1",
        )
        tools.run("podman", "import", "--quiet", "--arch", architecture, archive, image)
