"""Manifests of a drop-in directory: what K3s applies by itself, and the Secret that is applied once."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from edge.k3s.chart import NAME

KEYS_SECRET = f"{NAME}-api-keys"
MODELS_PATH = "/var/lib/edge-models"
_BREAKS = {0x85: "\\N", 0x2028: "\\L", 0x2029: "\\P"}
"""What ends a line in YAML 1.1, besides the usual ends, and how it is written in quotes."""
_PLAIN_KEY = re.compile(r"(?!(true|false|null|yes|no|on|off|y|n)$)[a-z][A-Za-z_]*", re.IGNORECASE)


def helm_chart(chart: bytes, values: Mapping[str, Any], namespace: str) -> str:
    """A HelmChart with the chart in it: K3s's controller installs it without a repository.

    On a failed upgrade the controller's default is to uninstall and begin anew; a node keeps what runs instead.
    """
    return (
        "apiVersion: helm.cattle.io/v1\n"
        "kind: HelmChart\n"
        f"metadata:\n  name: {NAME}\n  namespace: kube-system\n"
        "spec:\n"
        f"  targetNamespace: {namespace}\n"
        "  createNamespace: true\n"
        "  failurePolicy: abort\n"
        f"  valuesContent: |-\n{_indented(yaml_map(values), 4)}"
        f"  chartContent: {base64.b64encode(chart).decode()}\n"
    )


def helm_chart_config(values: str) -> str:
    """What is merged over the HelmChart's values: the place for those of a site. `values` is YAML, and is left as it is.

    The failure policy is said here again: the resource's default (reinstall) would win over the HelmChart's. The indentation is
    said too: a first line with blanks before it, a comment perhaps, would be taken for the measure of all others.
    """
    if set(values) & {chr(code) for code in _BREAKS}:
        content = json.dumps(values, ensure_ascii=False).translate(_BREAKS)
    else:
        content = "|2-\n" + _indented(values, 4).rstrip("\n")
    return (
        "apiVersion: helm.cattle.io/v1\n"
        "kind: HelmChartConfig\n"
        f"metadata:\n  name: {NAME}\n  namespace: kube-system\n"
        f"spec:\n  failurePolicy: abort\n  valuesContent: {content}\n"
    )


def keys_secret(keys: bytes, namespace: str) -> str:
    """The namespace, and in it the API keys' hashes."""
    return (
        f"apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n"
        "---\n"
        f"apiVersion: v1\nkind: Secret\nmetadata:\n  name: {KEYS_SECRET}\n  namespace: {namespace}\n"
        f"type: Opaque\ndata:\n  keys.json: {base64.b64encode(keys).decode()}\n"
    )


def yaml_map(values: Mapping[str, Any]) -> str:
    """A map of maps in YAML. Scalars, and keys that are no plain words, are written as in JSON, which is YAML too."""
    return "\n".join(_lines(values, "")) + "\n"


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for key, value in values.items():
        name = key if _PLAIN_KEY.fullmatch(key) else json.dumps(key)
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{name}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {json.dumps(value)}")
    return lines


def _indented(text: str, by: int) -> str:
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return "".join(" " * by + line + "\n" if line.strip() else "\n" for line in lines)
