"""Pods as the chart renders them, run by podman: `python -m bench.chart_pods --image IMAGE`, in a network of their own without
any way out. Part of `make prove-chart`.

What the kubelet would do and podman 4 does not is done here: secrets are laid down with the group and mode that fsGroup and
defaultMode give, the node's name is filled in, and the probes' requests are made as they are rendered: startup until it
succeeds, within its budget, then readiness and liveness. Pods share the host's network, since there is none between pods here.
Everything else is the rendered pod: init containers, user, read-only root, capabilities, memory limit, arguments,
environment, volumes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import trustme
import yaml

from bench.chart import EXAMPLES, ROOT, render
from bench.chart_fleet import enrolled_pod
from bench.chart_kubelet import (
    GROUP,
    KUBELETS,
    Site,
    as_podman_takes_it,
    asked,
    laid_down,
    playing,
    started,
)
from bench.chart_watch import VERSION, Proof, chat, ends, overload_leaves_it_ready, serves
from bench.file_server import FileServer, Served
from bench.make_onnx import SHAPES, write_encoder
from edge.api.auth import KeyStore
from edge.registry.digest import sha256_of

_MODEL = ROOT / "models" / "builtin" / "edge-builtin-q4_0.gguf"


def default_pod(site: Site) -> Proof:
    """The chart with nothing but keys."""
    proof, name = Proof("defaults: DaemonSet, built-in model"), "chart-proof-default"
    objects = render(VERSION, site.values({"config": {"engine": {"slots": 2, "max_waiting": 4}}}), release="proof")
    text, rendered = as_podman_takes_it(objects, name, site)
    with playing(text, name, site.place):
        scheme = serves(proof, site, name, objects, rendered)
        load = json.loads(asked("/edge/v1/load", key=site.metrics_key)[1])
        proof.holds("edge.toml of the ConfigMap is in force", load["slots"] == 2)
        owner = (site.place / "state").stat()
        proof.holds(
            "the init container gave the state to the node's user", (owner.st_uid, owner.st_gid) == (GROUP, GROUP)
        )
        overload_leaves_it_ready(proof, site, rendered)
        ends(proof, site, name, objects, scheme)
    return proof


def host_model_pod(site: Site) -> Proof:
    """A model from a directory of the machine, TLS, and another model beside it."""
    proof, name = Proof("hostPath model, TLS, a further model"), "chart-proof-host"
    models = site.place / "models"
    models.mkdir()
    shutil.copyfile(_MODEL, models / "own.gguf")
    shutil.copyfile(_MODEL, models / "second.gguf")
    certificate = trustme.CA().issue_cert("edge.example")
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    site.secret("cert", {"tls.crt": chain, "tls.key": certificate.private_key_pem.bytes()})
    values = site.values(
        {"model": {"source": "hostPath", "file": "own.gguf", "alias": "assistant", "hostPath": {"path": str(models)}}},
        {"tls": {"existingSecret": "cert"}, "config": {"models": {"second": {"source": "/models/second.gguf"}}}},
        {"workload": {"kind": "Deployment"}},
    )
    objects = render(VERSION, values, release="proof")
    text, rendered = as_podman_takes_it(objects, name, site)
    with playing(text, name, site.place):
        scheme = serves(proof, site, name, objects, rendered)
        proof.holds("probes speak TLS", scheme == "HTTPS")
        found = json.loads(asked("/v1/models", scheme=scheme, key=site.key)[1])
        proof.holds("both models are served", {"assistant", "second"} <= {one["id"] for one in found["data"]})
        ends(proof, site, name, objects, scheme)
    return proof


def fetched_model_pod(site: Site) -> Proof:
    """A model from a server: fetched by the init container, through a broken connection; then without the server."""
    proof, name = Proof("http model, fetched by an init container"), "chart-proof-fetched"
    sha256 = sha256_of(_MODEL)
    with FileServer() as server:
        server.routes["/m.gguf"] = Served(_MODEL.read_bytes())
        url = f"{server.url}/m.gguf"
        values = site.values(
            {"model": {"source": "http", "alias": "assistant", "http": {"url": url, "sha256": sha256}}}
        )
        objects = render(VERSION, values, release="proof")
        text, rendered = as_podman_takes_it(objects, name, site)
        with playing(text, name, site.place):
            scheme = serves(proof, site, name, objects, rendered)
            ends(proof, site, name, objects, scheme)
        proof.holds("the file was fetched once", len(server.gets("/m.gguf")) == 1)
        wrong = site.values({"model": {"source": "http", "alias": "a", "http": {"url": url, "sha256": "0" * 64}}})
        refused, _ = as_podman_takes_it(render(VERSION, wrong, release="proof"), f"{name}-wrong", site)
        refused = refused.replace("\nspec:\n", "\nspec:\n  restartPolicy: Never\n")  # the kubelet tries again, for ever
        try:
            with playing(refused, f"{name}-wrong", site.place):
                proof.holds("a file with another sum must not be served", asked("/health/live")[0] == 0)
        except RuntimeError as error:
            proof.holds("a file with another sum stops the pod in its init container", "init" in str(error))
    again, rendered = as_podman_takes_it(objects, f"{name}-again", site)
    with playing(again, f"{name}-again", site.place):
        proof.holds("it starts again with the server gone", started(rendered) is not None)
        proof.holds("and answers", chat(site.key, "hello")[0] == 200)
    return proof


def kserve_pod(site: Site) -> Proof:
    """The runtime for KServe, with what its storage initializer and its placeholders would do."""
    proof, name = Proof("KServe's runtime: an ONNX model over V2"), "chart-proof-kserve"
    spec = yaml.safe_load((EXAMPLES / "kserve" / "runtime.yaml").read_text())["spec"]
    service = yaml.safe_load((EXAMPLES / "kserve" / "service.yaml").read_text())["metadata"]["name"]
    container = json.loads(json.dumps(spec["containers"][0]).replace("{{.Name}}", service))
    model = write_encoder(site.place / "onnx", SHAPES["tiny"])
    if model.name != "model.onnx":
        model.rename(model.with_name("model.onnx"))
    container["image"], rendered = site.image, copy.deepcopy(container)
    rendered["ports"][0]["name"] = "http"
    for part in KUBELETS:
        container.pop(part, None)
    container["volumeMounts"].append({"name": "given", "mountPath": "/mnt/models", "readOnly": True})
    keys = {"secretName": "api-keys", "items": [{"key": "keys.json", "path": "keys.json"}], "defaultMode": 0o440}
    volumes = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "given", "hostPath": {"path": str(site.place / "onnx")}},
        {"name": "api-keys", "hostPath": {"path": str(laid_down(site, name, keys))}},
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"hostNetwork": True, "containers": [container], "volumes": volumes},
    }
    with playing(yaml.safe_dump(pod), name, site.place):
        deadline = time.monotonic() + 120
        while asked("/v2/health/ready")[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.5)
        proof.holds("the readiness probe's request succeeded", asked("/v2/health/ready")[0] == 200)
        status, answer = asked(f"/v2/models/{service}", key=site.key)
        proof.holds(f"/v2/models/{service} tells its tensors", status == 200 and json.loads(answer)["inputs"])
        inputs = [
            {"name": one["name"], "shape": [1, 4], "datatype": one["datatype"], "data": [1, 1, 0, 1]}
            for one in (json.loads(answer)["inputs"] if status == 200 else ())
        ]
        status, answer = asked(f"/v2/models/{service}/infer", key=site.key, body={"inputs": inputs}, timeout_s=60)
        proof.holds("and infers", status == 200 and json.loads(answer)["outputs"][0]["data"])
    return proof


PODS: tuple[Callable[[Site], Proof], ...] = (default_pod, host_model_pod, fetched_model_pod, kserve_pod, enrolled_pod)


def prepared(place: Path, image: str) -> Site:
    """Make the keys, as `edge keys` does."""
    store = KeyStore(place / "keys.json")
    key = store.create("robot", scopes=("inference",), requests_per_minute=None, created="2026-01-01T00:00:00Z")
    metrics = store.create("watch", scopes=("metrics",), requests_per_minute=None, created="2026-01-01T00:00:00Z")
    site = Site(place, image, key, metrics)
    site.secret("api-keys", {"keys.json": (place / "keys.json").read_bytes()})
    return site


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", required=True, help="the node's image, in podman's storage")
    parser.add_argument("--only", default="", help="proofs whose function's name begins so")
    a = parser.parse_args()
    well = True
    for prove in PODS:
        if not prove.__name__.startswith(a.only):
            continue
        with tempfile.TemporaryDirectory(prefix="edge-chart-") as directory:
            os.chmod(directory, 0o755)
            proof = prove(prepared(Path(directory), a.image))
        print(proof.name)
        for what in proof.seen:
            print(f"  good   {what}")
        for what in proof.faults:
            print(f"  FAULT  {what}")
        well = well and not proof.faults
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
