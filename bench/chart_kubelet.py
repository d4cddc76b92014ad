"""What the kubelet would do for a pod and podman 4 does not: secrets with the group and mode that fsGroup and defaultMode
give, the node's name, the probes' requests. Part of `make prove-chart`."""

from __future__ import annotations

import copy
import http.client
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.chart import pod_of
from bench.chart_cases import merged

PORT = 8080
GROUP = 65532
"""Of the node's process, and of its volumes."""

KUBELETS = ("startupProbe", "livenessProbe", "readinessProbe", "lifecycle", "ports")
"""Parts of a container that podman is not given: this module does it, or there is nothing to do on the host's network."""


@dataclass(frozen=True)
class Site:
    """Where a proof keeps its things, and the keys."""

    place: Path
    image: str
    key: str
    metrics_key: str

    def values(self, *more: Mapping[str, Any]) -> dict[str, Any]:
        """Values of the chart for this machine."""
        repository, _, tag = self.image.rpartition(":")
        own = {
            "apiKeys": {"existingSecret": "api-keys"},
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "state": {"hostPath": {"path": str(self.place / "state")}},
        }
        return merged(own, *more)

    def secret(self, name: str, files: Mapping[str, bytes]) -> None:
        """Lay a Secret down."""
        directory = self.place / "secrets" / name
        directory.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (directory / file).write_bytes(data)


def podman(*arguments: str, check: bool = True) -> str:
    """Run podman; the answer without its complaints about a missing systemd."""
    done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, timeout=300)
    if check and done.returncode:
        raise RuntimeError(f"podman {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def logs(container: str) -> str:
    """What it has said, to people and as errors."""
    done = subprocess.run(["podman", "logs", container], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def as_podman_takes_it(objects: list[dict[str, Any]], name: str, site: Site) -> tuple[str, Mapping[str, Any]]:
    """The pod with its settings, as YAML for `podman kube play`; and the node's container as it was rendered."""
    spec = copy.deepcopy(dict(pod_of(objects)))
    rendered = copy.deepcopy(spec["containers"][0])
    spec["hostNetwork"] = True
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        for part in KUBELETS:
            container.pop(part, None)
        for variable in container.get("env", ()):
            if "valueFrom" in variable:
                variable["value"] = {"spec.nodeName": "machine-1", "metadata.name": name}[
                    variable.pop("valueFrom")["fieldRef"]["fieldPath"]
                ]
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["hostPath"] = {"path": str(laid_down(site, name, volume.pop("secret"))), "type": "Directory"}
    notes = {"io.podman.annotations.init.container.type": "always"}  # podman 4 may fail to remove the short ones
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": notes}, "spec": spec}
    settings = [one for one in objects if one["kind"] == "ConfigMap"]
    return yaml.safe_dump_all([*settings, pod]), rendered


def laid_down(site: Site, pod: str, secret: Mapping[str, Any]) -> Path:
    """A volume of a Secret, as the kubelet makes it."""
    target: Path = site.place / "volumes" / pod / str(secret["secretName"])
    target.mkdir(parents=True)
    for item in secret["items"]:
        path = target / item["path"]
        if secret.get("optional") and not (site.place / "secrets" / secret["secretName"] / item["key"]).exists():
            continue
        shutil.copyfile(site.place / "secrets" / secret["secretName"] / item["key"], path)
        os.chown(path, 0, GROUP)
        path.chmod(secret["defaultMode"])
    return target


@contextmanager
def playing(text: str, name: str, directory: Path) -> Iterator[None]:
    """The pod runs meanwhile."""
    file = directory / f"{name}.yaml"
    file.write_text(text)
    try:
        podman("kube", "play", str(file))
        yield
    finally:
        podman("kube", "down", str(file), check=False)
        for found in yaml.safe_load_all(text):
            if found["kind"] == "ConfigMap":
                podman("volume", "rm", "--force", found["metadata"]["name"], check=False)


def asked(
    path: str, *, scheme: str = "HTTP", key: str = "", body: Any = None, timeout_s: float = 5.0
) -> tuple[int, bytes]:
    """One request to the node; (0, reason) when nothing answers."""
    headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
    connection: http.client.HTTPConnection
    if scheme == "HTTPS":
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=timeout_s, context=trusting)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=timeout_s)
    try:
        connection.request(
            "GET" if body is None else "POST", path, json.dumps(body) if body is not None else None, headers
        )
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def probe(container: Mapping[str, Any], kind: str) -> bool:
    """One request as the kubelet makes it: 200 to 399 is a success."""
    wanted = container[kind]["httpGet"]
    assert wanted["port"] == "http" and container["ports"][0]["name"] == "http"
    status, _ = asked(wanted["path"], scheme=wanted["scheme"], timeout_s=container[kind]["timeoutSeconds"])
    return 200 <= status < 400


def started(container: Mapping[str, Any]) -> float | None:
    """Seconds until the startup probe succeeded; None when its budget was used up."""
    startup, begun = container["startupProbe"], time.monotonic()
    for _ in range(startup["failureThreshold"]):
        if probe(container, "startupProbe"):
            return time.monotonic() - begun
        time.sleep(min(startup["periodSeconds"], 1))
    return None
