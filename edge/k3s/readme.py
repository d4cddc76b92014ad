"""What a stick says to who installs from it."""

from __future__ import annotations

from dataclasses import dataclass

from edge.k3s.chart import NAME
from edge.k3s.manifest import KEYS_SECRET, MODELS_PATH

K3S = "/var/lib/rancher/k3s"
COPY = "cp -r --no-preserve=mode --remove-destination --no-target-directory"
"""Modes are the machine's, not the stick's; what is there is replaced, not written into: a running node may have it mapped."""


@dataclass(frozen=True, slots=True)
class Stick:
    """What is on it. `archive`: the image's file name."""

    image: str
    architecture: str
    archive: str
    models: tuple[str, ...]
    namespace: str
    has_keys: bool
    has_site_values: bool
    has_cache_file: bool


def readme(stick: Stick) -> str:
    """README.md of the stick."""
    kubectl = f"sudo k3s kubectl --namespace {stick.namespace}"
    served = "".join(f"- {name}\n" for name in stick.models) or "- the built-in one\n"
    return f"""# edge on K3s, without a network

For machines of the kind {stick.architecture} with K3s 1.28 or newer, which have K3s's own images already. The commands are for
a shell in this directory. A new version goes the same way as the first one: steps 1 and 3, then 4.

## 1. On every machine: image and models

    sudo sha256sum --check --quiet SHA256SUMS
    sudo sh -c 'umask 022 && {COPY} rootfs /'
    sudo systemctl restart k3s

On a machine that is only an agent the last command is `sudo systemctl restart k3s-agent`. The agents come first, the server
last: what is to run is said there (step 3), and by then each machine must have the image.

## 2. Once: the API keys

{_keys(stick)}
The node's pods wait for this Secret. From then on it is yours to change: K3s does not apply it again, so a key that you revoke
stays revoked. Do not put it into `{K3S}/server/manifests`: what lies there is applied again at each start. If an earlier
stick left `edge-node-keys.yaml` there, remove that file.

If the site's values have the nodes enroll at a fleet (`enrollment` in `helm/site-values.yaml`), the token is not on the stick
either. Nodes serve without it and enroll once the Secret is there: write it into a file `token` and say
`{kubectl} create secret generic SECRET --from-file=token`.

## 3. On one server, last: what is to run

    sudo sh -c 'umask 022 && {COPY} rootfs-server /'
    {kubectl} rollout status daemonset/{NAME} --timeout 15m

K3s notices within a minute; if the daemonset is not found, ask again. Another image or other models under the same names are
noticed too: the pods carry their sums.

## 4. After an upgrade: what is not needed any more

On every machine, when the new version runs. Archives that stay are imported at each start, and take the disk's space:

    sudo find {K3S}/agent/images -name '{NAME}-*.tar.zst' ! -name '{stick.archive}' -print -delete
{_old_models(stick)}
To go back to an older version, use its stick, in the same order.

## What is here

Image: {stick.image}

Models:
{served}
| directory | |
|---|---|
| `rootfs` | image and models, for every machine |
| `rootfs-server` | HelmChart with the chart in it, for one server |
{_keys_row(stick)}| `helm` | chart and values, for other clusters |

{_values(stick)}
{_cache(stick)}
For other clusters, MicroK8s among them, `helm/` has the chart and the same values; the image is imported with
`zstd --decompress --stdout IMAGE.tar.zst | microk8s ctr images import -`.
"""


def _keys(stick: Stick) -> str:
    if stick.has_keys:
        return """Their hashes are on the stick. On a server:

    sudo k3s kubectl apply -f keys/edge-node-keys.yaml

Doing it again puts the stick's keys in the place of all others.
"""
    return f"""None are on the stick. Make one where `edge` is installed (it is printed once), then on a server:

    edge --home ./keys keys create robot-7
    sudo k3s kubectl create namespace {stick.namespace} --dry-run=client -o yaml | sudo k3s kubectl apply -f -
    sudo k3s kubectl --namespace {stick.namespace} create secret generic {KEYS_SECRET} --from-file=./keys/keys.json
"""


def _keys_row(stick: Stick) -> str:
    return "| `keys` | hashes of API keys, to be applied once |\n" if stick.has_keys else ""


def _old_models(stick: Stick) -> str:
    others = " ".join(f"! -name '{name}'" for name in stick.models)
    return f"""
Models that this stick does not bring are only shown. Remove those that nobody uses:

    find {MODELS_PATH} -name '*.gguf' {others}
""".replace(" \n", "\n")


def _values(stick: Stick) -> str:
    if stick.has_site_values:
        return f"""Values of this site came along in `edge-node-values.yaml` (a HelmChartConfig) and win over those of the bundle.
They lie on the server in `{K3S}/server/manifests`; step 3 of a stick that brings values replaces them.
"""
    return f"""Values of your own belong into a file `edge-node-values.yaml` in `{K3S}/server/manifests`, with a
HelmChartConfig named {NAME} in kube-system. Give it `failurePolicy: abort` too: without, its default wins, and a failed upgrade
uninstalls the node.
"""


def _cache(stick: Stick) -> str:
    file = f"{K3S}/agent/images/.cache.json"
    if stick.has_cache_file:
        return f"""`.cache.json` beside the image has K3s import it once and not at each start. With releases of K3s from before
July 2026 the image then loses its protection at the second start: when the disk gets full it is deleted, and does not come back.
On such a machine, `sudo rm {file}`. If the image was removed by hand,
`sudo truncate --size 0 {file}` and a restart of K3s bring it back.
"""
    return f"""K3s imports the image at each start, which also keeps it from being deleted when the disk gets full. An earlier
stick may have left `{file}`, which prevents that: remove the file if you do not want it there.
"""
