"""What is looked at in a pod that runs as the chart renders it: part of `python -m bench.chart_pods`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.chart import pod_of
from bench.chart_kubelet import PORT, Site, asked, podman, probe, started

VERSION = "1.36.0"
"""Of Kubernetes, for which pods are rendered."""


@dataclass
class Proof:
    """One pod, and what was seen."""

    name: str
    seen: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def holds(self, what: str, true: object) -> None:
        """Note whether something is as it must be."""
        (self.seen if true else self.faults).append(what)


def running(site: Site, scheme: str) -> bool:
    """Whether an answer is being made."""
    status, body = asked("/edge/v1/load", scheme=scheme, key=site.metrics_key)
    return status == 200 and json.loads(body)["running"] > 0


def chat(
    key: str, text: str, *, tokens: int = 24, scheme: str = "HTTP", timeout_s: float = 60.0, **more: Any
) -> tuple[int, bytes]:
    """A chat request."""
    served = json.loads(asked("/v1/models", scheme=scheme, key=key)[1] or b"{}")
    model = served["data"][0]["id"] if "data" in served else ""
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens, **more}
    return asked("/v1/chat/completions", scheme=scheme, key=key, body=body, timeout_s=timeout_s)


def tested(objects: list[dict[str, Any]], site: Site) -> str:
    """What the pod of `helm test` says, with this machine in the Service's place."""
    test = next(one for one in objects if one["metadata"].get("annotations", {}).get("helm.sh/hook") == "test")
    command, option, url = test["spec"]["containers"][0]["args"]
    here = f"{url.partition(':')[0]}://127.0.0.1:{PORT}"
    return podman("run", "--rm", "--network", "host", "--read-only", site.image, command, option, here)


def serves(proof: Proof, site: Site, name: str, objects: list[dict[str, Any]], rendered: Mapping[str, Any]) -> str:
    """What every pod must do. Returns the scheme."""
    scheme = str(rendered["startupProbe"]["httpGet"]["scheme"])
    took_s = started(rendered)
    proof.holds(f"startup probe succeeded after {took_s or 0:.1f} s", took_s is not None)
    proof.holds("readiness probe succeeded", probe(rendered, "readinessProbe"))
    proof.holds("liveness probe succeeded", probe(rendered, "livenessProbe"))
    proof.holds("without a key: 401", chat("", "hello", scheme=scheme)[0] == 401)
    status, answer = chat(site.key, "What can you do?", scheme=scheme)
    proof.holds("with a key: an answer", status == 200 and json.loads(answer)["choices"][0]["message"]["content"])
    proof.holds("metrics with the metrics key", asked("/metrics", scheme=scheme, key=site.metrics_key)[0] == 200)
    facts = json.loads(podman("container", "inspect", f"{name}-edge"))[0]
    proof.holds("user 65532", facts["Config"]["User"] == "65532:65532")
    proof.holds("read-only root", facts["HostConfig"]["ReadonlyRootfs"])
    proof.holds("no capabilities", not facts["EffectiveCaps"] and not facts["BoundingCaps"])
    proof.holds("memory limit", facts["HostConfig"]["Memory"] == 2 << 30)
    written = podman("exec", f"{name}-edge", "/bin/sh", "-c", "touch /x /opt/x 2>/dev/null; echo $?")
    proof.holds("nothing can be written outside of its volumes", written != "0")
    proof.holds("helm's test pod says ready", tested(objects, site) == "ready")
    return scheme


def ends(proof: Proof, site: Site, name: str, objects: list[dict[str, Any]], scheme: str) -> None:
    """Told to end while an answer is streamed: it is finished, and the process leaves with 0 within the grace period."""
    grace_s = int(pod_of(objects)["terminationGracePeriodSeconds"])
    answers: list[tuple[int, bytes, float]] = []

    def ask() -> None:
        answer = chat(site.key, "Tell me all.", tokens=1500, scheme=scheme, ignore_eos=True)
        answers.append((*answer, time.monotonic()))

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive() and not running(site, scheme):
        time.sleep(0.02)
    begun = time.monotonic()
    podman("pod", "stop", "--time", str(grace_s), name, check=False)
    asking.join()
    status, body, ended = answers[0]
    whole = status == 200 and json.loads(body)["usage"]["completion_tokens"] == 1500
    proof.holds(
        f"the answer under way was finished, {ended - begun:.1f} s after the word to end", whole and ended > begun
    )
    code = podman("container", "inspect", f"{name}-edge", "--format", "{{.State.ExitCode}}")
    took_s = time.monotonic() - begun
    proof.holds(f"it left with 0 after {took_s:.1f} s of {grace_s}", code == "0" and took_s < grace_s)


def overload_leaves_it_ready(proof: Proof, site: Site, rendered: Mapping[str, Any]) -> None:
    """More requests than it takes: some are refused, and no probe fails."""
    statuses: list[int] = []
    askers = [
        threading.Thread(target=lambda: statuses.append(chat(site.key, "Tell me a long story.", tokens=200)[0]))
        for _ in range(160)
    ]
    for asker in askers:
        asker.start()
    failed = 0
    while any(asker.is_alive() for asker in askers):
        failed += not probe(rendered, "readinessProbe") or not probe(rendered, "livenessProbe")
        time.sleep(0.05)
    refused = statuses.count(429)
    proof.holds(f"160 requests at once: {statuses.count(200)} answered, {refused} refused with 429", refused > 0)
    proof.holds(f"{failed} probes failed meanwhile", failed == 0)
    proof.holds("every request was answered", len(statuses) == 160 and set(statuses) <= {200, 429})
