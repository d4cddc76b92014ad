"""A pod that enrolls by itself at a real fleet, as the chart renders it: part of `python -m bench.chart_pods`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bench.chart import render
from bench.chart_kubelet import Site, as_podman_takes_it, asked, logs, playing, podman, started
from bench.chart_watch import VERSION, Proof, chat, ends, serves
from bench.fleet_side import FleetSide
from bench.held import until


def enrolled_pod(site: Site) -> Proof:
    """First with the fleet away, then with it; another machine with the same token; at last without fleet and token."""
    proof = Proof("enrollment: the fleet away, there, and away again")
    fleet = FleetSide(site.place / "fleet")
    token = str(fleet.token(uses=2))
    site.secret("enrollment", {"token": token.encode()})
    try:
        first_start(proof, site, fleet, token)
        another_machine(proof, site, fleet)
    finally:
        fleet.end()
    (site.place / "secrets" / "enrollment" / "token").unlink()
    name = "chart-proof-enrolled-again"
    text, rendered = as_podman_takes_it(rendered_for(site, fleet), name, site)
    with playing(text, name, site.place):
        proof.holds("it starts again with fleet and token gone", started(rendered) is not None)
        proof.holds("and answers", chat(site.key, "hello")[0] == 200)
        proof.holds("and is who it was", identity(site).get("node") == "machine-1")
        proof.holds("the container says so and stays", "enrolled  already" in said(name) and runs(name))
    return proof


def rendered_for(site: Site, fleet: FleetSide, *more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chart with enrollment."""
    enrollment = {"enrollment": {"url": fleet.url, "existingSecret": "enrollment"}}
    return render(VERSION, site.values(enrollment, *more), release="proof")


def first_start(proof: Proof, site: Site, fleet: FleetSide, token: str) -> None:
    """It serves before there is a fleet, and is a node of it once there is one."""
    name, objects = "chart-proof-enrolled", rendered_for(site, fleet)
    text, rendered = as_podman_takes_it(objects, name, site)
    with playing(text, name, site.place):
        scheme = serves(proof, site, name, objects, rendered)
        proof.holds("served with the fleet away", not identity(site) and "cannot be reached" in said(name))
        fleet.start_broker()
        fleet.start()
        known_as = until(lambda: identity(site).get("node"), 120, "the pod is not enrolled")
        proof.holds("the fleet came, and the node was enrolled without a new pod", runs(name))
        proof.holds("under the machine's name", known_as == "machine-1")
        until(lambda: fleet.node("machine-1")["last_seen_s"], 60, "the fleet hears nothing of it")
        proof.holds("it began anew and reports over the fleet's broker", started(rendered) is not None)
        facts = json.loads(podman("container", "inspect", f"{name}-edge"))[0]
        seen = podman("exec", f"{name}-edge", "/bin/sh", "-c", "ls /etc/edge-secrets")
        proof.holds(
            "the node's own container has no token", "enrollment" not in seen and token not in json.dumps(facts)
        )
        enroller = json.loads(podman("container", "inspect", f"{name}-enroll"))[0]
        proof.holds("it is neither in environment nor in arguments", token not in json.dumps(enroller))
        proof.holds("nor in what was said", token.rpartition(":")[2] not in said(name))
        ends(proof, site, name, objects, scheme)
        code = podman("container", "inspect", f"{name}-enroll", "--format", "{{.State.ExitCode}}")
        proof.holds("what enrolls left with 0 when told to end", code == "0")


def another_machine(proof: Proof, site: Site, fleet: FleetSide) -> None:
    """The same Secret on a machine with a state of its own."""
    name = "chart-proof-enrolled-other"
    objects = rendered_for(site, fleet, {"state": {"hostPath": {"path": str(site.place / "other-state")}}})
    text, rendered = as_podman_takes_it(objects, name, site)
    with playing(text, name, site.place):
        proof.holds("another machine starts with the same token", started(rendered) is not None)
        known_as = until(lambda: identity(site).get("node"), 120, "the other pod is not enrolled")
        proof.holds(f"and is another node, {known_as}", known_as.startswith("machine-1-"))


def identity(site: Site) -> dict[str, Any]:
    """Who the node says it is; empty: not enrolled, or it does not answer just now."""
    status, body = asked("/edge/v1/load", key=site.metrics_key)
    found: dict[str, Any] = json.loads(body).get("identity", {}) if status == 200 else {}
    return found


def said(name: str) -> str:
    """What the container that enrolls has said."""
    return logs(f"{name}-enroll")


def runs(name: str) -> bool:
    """Whether it runs, and never began anew."""
    facts = json.loads(podman("container", "inspect", f"{name}-enroll"))[0]
    return bool(facts["State"]["Running"] and not facts["RestartCount"])
