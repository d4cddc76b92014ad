"""Texts of a drop-in directory: what K3s applies by itself, and what people read."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from edge.k3s.chart import NAME

KEYS_SECRET = f"{NAME}-api-keys"
MODELS_PATH = "/var/lib/edge-models"
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
    """What is merged over the HelmChart's values: the place for those of a site."""
    return (
        "apiVersion: helm.cattle.io/v1\n"
        "kind: HelmChartConfig\n"
        f"metadata:\n  name: {NAME}\n  namespace: kube-system\n"
        f"spec:\n  valuesContent: |-\n{_indented(values, 4)}"
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
    return "".join(" " * by + line + "\n" if line.strip() else "\n" for line in text.splitlines())


def readme(image: str, architecture: str, models: list[str], namespace: str, *, has_keys: bool) -> str:
    """What to do with the stick."""
    keys = (
        "The API keys' hashes are on the stick, in `server/manifests/edge-node-keys.yaml`."
        if has_keys
        else f"""Before the node can start it needs API keys, which are not on the stick:

    edge --home ./keys keys create robot-7
    sudo k3s kubectl create namespace {namespace} --dry-run=client -o yaml | sudo k3s kubectl apply -f -
    sudo k3s kubectl --namespace {namespace} create secret generic {KEYS_SECRET} --from-file=./keys/keys.json

Until then its pod waits."""
    )
    served = "".join(f"- {name}\n" for name in models) or "- the built-in one\n"
    return f"""# edge on K3s, without a network

For machines of the kind {architecture} with K3s 1.28 or newer. On the machine, in this directory:

    sha256sum --check --quiet SHA256SUMS
    sudo cp -r --no-target-directory rootfs /
    sudo systemctl restart k3s

On a machine that is only an agent, copy `rootfs/var/lib/rancher/k3s/agent` and, if there is one, `rootfs{MODELS_PATH}` instead
of all, and restart `k3s-agent`: what to run comes from its server.

{keys}

If the site's values have the nodes enroll at a fleet (`enrollment` in `helm/site-values.yaml`), the token is not on the stick
either. Nodes serve without it and enroll once the Secret is there:

    sudo k3s kubectl --namespace {namespace} create secret generic SECRET --from-file=token

Then:

    sudo k3s kubectl --namespace {namespace} rollout status daemonset/{NAME}

## What is here

Image: {image}

Models:
{served}
`rootfs/var/lib/rancher/k3s/server/manifests` is applied by K3s whenever it changes. Values of your own belong into a file
beside it, `edge-node-values.yaml`, with a HelmChartConfig named {NAME} in kube-system: a new bundle leaves it alone unless it
brings one.

`.cache.json` beside the image has K3s import it once and not at each start. If the image was removed from the machine by hand,
`sudo truncate --size 0 /var/lib/rancher/k3s/agent/images/.cache.json` and a restart bring it back.

For other clusters, MicroK8s among them, `helm/` has the chart and the same values; the image is imported with
`zstd --decompress --stdout IMAGE.tar.zst | microk8s ctr images import -`.
"""
