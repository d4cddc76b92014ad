"""The chart with a real helm: what it makes is valid for every version, and is what was asked for."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from bench.chart import (
    CHART,
    EXAMPLES,
    KEYS,
    VERSIONS,
    Example,
    Refused,
    examples,
    faults,
    pod_of,
    render,
    rendered,
    workload,
)
from bench.chart_cases import REFUSED, REFUSED_BELOW, merged, small_matrix
from edge import __version__
from edge.effective import Effective, load

NEWEST = VERSIONS[-1]
SOME_VERSIONS = ("1.28.0", "1.30.0", "1.34.0", NEWEST)


def valid(objects: list[dict[str, Any]], version: str) -> None:
    found = [fault for one in objects for fault in faults(one, version)]
    assert not found, f"Kubernetes {version}: {found}"


def node_settings(objects: list[dict[str, Any]], home: Path) -> Effective:
    """What the node itself makes of the pod's environment and of the rendered file."""
    text = next(one for one in objects if one["kind"] == "ConfigMap")["data"]["edge.toml"]
    home.mkdir(parents=True, exist_ok=True)
    file = home / "rendered.toml"
    file.write_text(text)
    env = {one["name"]: one.get("value", "from-a-field") for one in pod_of(objects)["containers"][0]["env"]}
    return load(home, {**env, "EDGE_SETTINGS": str(file)}, {})


# --- every version ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_examples_are_valid_from_their_version_on_and_refused_before(example: Example, tmp_path: Path) -> None:
    for version in VERSIONS:
        if example.fits(version):
            objects = render(version, files=[example.path])
            valid(objects, version)
        else:
            with pytest.raises(
                Refused, match=f"made for Kubernetes {example.minimum} or newer and this is v?{version}"
            ):
                render(version, files=[example.path])
    assert node_settings(objects, tmp_path).settings.auth.keys_file == Path("/etc/edge-secrets/api-keys/keys.json")


@pytest.mark.parametrize(
    ("name", "values"), list(small_matrix()), ids=lambda part: part if isinstance(part, str) else ""
)
def test_every_choice_is_valid_and_the_node_reads_it(name: str, values: dict[str, Any], tmp_path: Path) -> None:
    for version in SOME_VERSIONS:
        objects = render(version, values)
        valid(objects, version)
    node_settings(objects, tmp_path)


def test_the_schemas_notice_what_is_wrong() -> None:
    objects = render(NEWEST, KEYS)
    assert "('sleep' was unexpected)" in str(faults(workload(objects), "1.28.0"))
    probe = next(one for one in objects if one["kind"] == "DaemonSet")["spec"]["template"]["spec"]["containers"][0]
    probe["livenessProbe"]["every"] = 1
    assert "('every' was unexpected)" in str(faults(workload(objects), NEWEST))
    scaled = next(one for one in render(NEWEST, files=[EXAMPLES / "keda.yaml"]) if one["kind"] == "ScaledObject")
    scaled["spec"]["triggers"][0]["metadata"]["ulr"] = ""
    assert "('ulr' was unexpected)" in str(faults(scaled, NEWEST))


@pytest.mark.parametrize("path", sorted((EXAMPLES / "kserve").glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_for_kserve_is_valid(path: Path) -> None:
    for found in yaml.safe_load_all(path.read_text()):
        minimum = found["metadata"]["annotations"]["edge.example/minimum-kubernetes"]
        for version in (f"{minimum}.0", NEWEST):
            assert not faults(found, version)


def test_drop_ins_are_valid() -> None:
    for found in yaml.safe_load_all((CHART.parent / "drop-in" / "edge-node-values.yaml").read_text()):
        assert not faults(found, NEWEST)
        values = yaml.safe_load(found["spec"]["valuesContent"])
        valid(render(NEWEST, merged(KEYS, values)), NEWEST)


# --- refusals ---------------------------------------------------------------------------------------------------------


@lru_cache
def said(case: int) -> str:
    """What the chart says to a combination that cannot work."""
    with pytest.raises(Refused) as refused:
        render(NEWEST, merged(KEYS, REFUSED[case][0]))
    return refused.value.reason


@pytest.mark.parametrize("case", range(len(REFUSED)), ids=lambda case: REFUSED[case][1])
def test_combinations_that_cannot_work_are_refused_with_a_sentence(case: int) -> None:
    assert re.search(REFUSED[case][1], said(case)), said(case)
    assert "\n" not in said(case)


@pytest.mark.parametrize(("values", "old", "new", "sentence"), REFUSED_BELOW, ids=lambda part: str(part)[:20])
def test_what_a_version_does_not_have_is_refused_there(
    values: dict[str, Any], old: str, new: str, sentence: str
) -> None:
    with pytest.raises(Refused, match=sentence):
        render(old, merged(KEYS, values))
    valid(render(new, merged(KEYS, values)), new)


def test_every_refusal_in_the_chart_is_among_those_tried() -> None:
    text = (CHART / "templates" / "validate.yaml").read_text()
    sentences = re.findall(r'fail (?:\(printf )?"([^"]+)"', text)
    assert len(sentences) == text.count("- fail ") > 35
    of_versions = {"1.33", "1.34", "these values are made for"}  # tried below a version, not here
    for sentence in sentences:
        pattern = re.sub(r"%[sd]", ".*", re.escape(sentence))
        tried = any(re.fullmatch(pattern, said(case)) for case in range(len(REFUSED)))
        assert tried or any(word in sentence for word in of_versions), sentence


def test_unknown_keys_are_refused_at_every_place() -> None:
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    validator = jsonschema.Draft7Validator(schema)
    validator.check_schema(schema)
    assert not list(validator.iter_errors(values))
    places = list(_closed(schema, ()))
    assert len(places) > 50
    for place in places:
        wrong: dict[str, Any] = {"surprise": 1}
        for part in reversed(place):
            wrong = {part: wrong}
        assert any("surprise" in error.message for error in validator.iter_errors(wrong)), place
    with pytest.raises(Refused, match="Additional property surprise is not allowed"):
        render(NEWEST, merged(KEYS, {"gpu": {"mig": {"surprise": 1}}}))
    with pytest.raises(Refused, match=r"config\.engine\.slots: Must be less than or equal to 128"):
        render(NEWEST, merged(KEYS, {"config": {"engine": {"slots": 1000}}}))


def _closed(node: dict[str, Any], path: tuple[str, ...]) -> Any:
    if node.get("additionalProperties") is False:
        yield path
    for name, inner in node.get("properties", {}).items():
        yield from _closed(inner, (*path, name))


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_node_per_machine_with_one_identity() -> None:
    broker = merged(KEYS, {"config": {"mqtt": {"url": "mqtt://broker"}}})
    found = workload(render(NEWEST, broker))
    assert found["kind"] == "DaemonSet"
    assert found["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    env = {one["name"]: one for one in found["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["EDGE_MQTT__NODE"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    named = render(NEWEST, merged(broker, {"config": {"mqtt": {"node": "press-3"}}}))
    assert "EDGE_MQTT__NODE" not in str(pod_of(named))


def test_a_node_whose_state_outlives_its_pod_keeps_its_name() -> None:
    broker = merged(KEYS, {"config": {"mqtt": {"url": "mqtt://broker"}}, "workload": {"kind": "Deployment"}})
    found = {}
    for kind in ("pvc", "hostPath", "emptyDir"):
        objects = render(NEWEST, merged(broker, {"state": {"kind": kind}}))
        env = {one["name"]: one for one in pod_of(objects)["containers"][0]["env"]}
        found[kind] = (workload(objects)["metadata"]["name"], env["EDGE_MQTT__NODE"])
    fullname, node = found["pvc"]
    assert node == {"name": "EDGE_MQTT__NODE", "value": fullname}
    assert found["hostPath"][1]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert found["emptyDir"][1]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_a_node_that_may_enroll_takes_the_name_that_the_fleet_gives() -> None:
    assert "EDGE_MQTT__NODE" not in str(pod_of(render(NEWEST, KEYS)))


def test_a_node_enrolls_beside_serving_and_nobody_else_sees_the_token() -> None:
    enrolled = merged(KEYS, {"enrollment": {"url": "https://fleet.example:8443", "existingSecret": "t", "key": "k"}})
    objects = render(NEWEST, enrolled)
    pod = pod_of(objects)
    node, enroller = pod["containers"]
    assert node["name"] == "edge", "probes, logs and exec mean the first one"
    notes = workload(objects)["spec"]["template"]["metadata"]["annotations"]
    assert notes["kubectl.kubernetes.io/default-container"] == "edge"
    assert [one["name"] for one in pod["initContainers"]] == ["own-state"], "no start waits for the fleet"
    volume = next(one for one in pod["volumes"] if one["name"] == "enrollment")["secret"]
    assert (volume["secretName"], volume["items"]) == ("t", [{"key": "k", "path": "token"}])
    assert volume["optional"] is True and volume["defaultMode"] == 0o440
    mounted = {
        one["name"]: [m["name"] for m in one["volumeMounts"]] for one in (*pod["initContainers"], node, enroller)
    }
    assert [name for name, volumes in mounted.items() if "enrollment" in volumes] == ["enroll"]
    assert enroller["args"] == [
        "--fleet",
        "https://fleet.example:8443",
        "--token-file",
        "/etc/edge-secrets/enrollment/token",
    ]
    assert "EDGE_MQTT__NODE" not in str(node["env"]), "the fleet says what a node is called"
    security = enroller["securityContext"]
    assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert "enroll" not in str([one["name"] for one in pod_of(render(NEWEST, KEYS))["containers"]])


def test_a_node_tells_the_fleet_the_name_that_its_state_has() -> None:
    found = {}
    deployment = {"workload": {"kind": "Deployment"}, "state": {"kind": "pvc"}}
    for kind, more in (("machine", {}), ("claim", deployment)):
        values = merged(KEYS, {"enrollment": {"url": "https://fleet.example", "existingSecret": "t"}}, more)
        enroller = pod_of(render(NEWEST, values))["containers"][1]
        found[kind] = next(one for one in enroller["env"] if one["name"] == "NODE_NAME")
        assert '--name "$NODE_NAME"' in enroller["command"][2]
    assert found["machine"]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert found["claim"]["value"] == "edge-edge-node"


def test_a_deployment_stops_before_it_starts() -> None:
    found = workload(render(NEWEST, merged(KEYS, {"workload": {"kind": "Deployment"}})))
    assert found["spec"]["strategy"] == {"type": "Recreate"} and found["spec"]["replicas"] == 1


def test_the_grace_period_covers_the_drain() -> None:
    drain = {"drain": {"preStopSeconds": 7, "gracefulSeconds": 90}}
    for version, action in (
        ("1.29.0", {"exec": {"command": ["/bin/sleep", "7"]}}),
        ("1.30.0", {"sleep": {"seconds": 7}}),
    ):
        pod = pod_of(render(version, merged(KEYS, drain)))
        assert pod["terminationGracePeriodSeconds"] == 107
        assert pod["containers"][0]["lifecycle"]["preStop"] == action
        assert {"name": "EDGE_SERVER__DRAIN_TIMEOUT_S", "value": "90"} in pod["containers"][0]["env"]


def test_probes_ask_what_they_should() -> None:
    container = pod_of(render(NEWEST, KEYS))["containers"][0]
    asked = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert asked == {"startup": "/health/ready", "liveness": "/health/live", "readiness": "/health/ready"}
    startup = container["startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] == 600
    tls = pod_of(render(NEWEST, merged(KEYS, {"tls": {"existingSecret": "cert"}})))["containers"][0]
    assert tls["livenessProbe"]["httpGet"]["scheme"] == "HTTPS"


def test_nothing_runs_with_more_rights_than_it_needs() -> None:
    values = merged(
        KEYS, {"model": {"source": "http", "alias": "m", "http": {"url": "https://m/m.gguf", "sha256": "0" * 64}}}
    )
    pod = pod_of(render(NEWEST, values))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod["initContainers"], *pod["containers"]):
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
        assert security["capabilities"]["drop"] == ["ALL"]
    own, fetch = pod["initContainers"]
    assert own["securityContext"]["capabilities"].get("add") == ["CHOWN"] and own["securityContext"]["runAsUser"] == 0
    assert "add" not in fetch["securityContext"]["capabilities"] and "runAsUser" not in fetch["securityContext"]


def test_gpus_are_asked_for_as_each_mode_has_it() -> None:
    def pod(gpu: dict[str, Any]) -> Any:
        return pod_of(render(NEWEST, merged(KEYS, {"gpu": gpu})))

    none = pod({})
    assert "runtimeClassName" not in none and none["containers"][0]["resources"]["limits"] == {"memory": "2Gi"}
    plugin = pod({"mode": "devicePlugin"})
    assert plugin["runtimeClassName"] == "nvidia"
    assert plugin["containers"][0]["resources"]["limits"] == {"memory": "2Gi", "nvidia.com/gpu": 1}
    mig = pod({"mode": "mig", "mig": {"profile": "1g.10gb"}})
    assert mig["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    jetson = pod({"mode": "runtimeOnly"})
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"} in jetson["containers"][0]["env"]
    shared = pod({"mode": "devicePlugin", "timeSlicing": {"memoryBudgetMiB": 4096}})
    assert {"name": "EDGE_MEMORY__BUDGET_MIB", "value": "4096"} in shared["containers"][0]["env"]
    claimed = pod({"mode": "dra"})
    assert claimed["containers"][0]["resources"]["claims"] == [{"name": "gpu"}]
    assert claimed["resourceClaims"][0]["name"] == "gpu"


def test_an_update_may_stop_so_many_nodes_as_the_values_say() -> None:
    """Machines that are off count, so that one of 5,000 must be able to be off."""
    loose = {"workload": {"kind": "Deployment"}, "state": {"kind": "emptyDir"}}
    for values, wanted in (
        ({}, 1),
        ({"workload": {"maxUnavailable": 3}}, 3),
        ({"workload": {"maxUnavailable": "10%"}}, "10%"),
    ):
        (daemons,) = [o for o in render(NEWEST, merged(KEYS, values)) if o["kind"] == "DaemonSet"]
        assert daemons["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": wanted}
        (several,) = [o for o in render(NEWEST, merged(KEYS, loose, values)) if o["kind"] == "Deployment"]
        assert several["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": wanted}
    (lasting,) = [
        o for o in render(NEWEST, merged(KEYS, {"workload": {"kind": "Deployment"}})) if o["kind"] == "Deployment"
    ]
    assert lasting["spec"]["strategy"] == {"type": "Recreate"}


def test_names_that_look_like_numbers_stay_names() -> None:
    odd = {
        "nameOverride": "42",
        "fullnameOverride": "true",
        "priorityClassName": "7",
        "apiKeys": {"existingSecret": "123"},
        "tls": {"existingSecret": "0x1f"},
        "image": {"pullSecrets": ["7"]},
        "serviceAccount": {"create": False, "name": "true"},
    }
    objects = render(NEWEST, odd)
    assert {one["metadata"]["name"] for one in objects} >= {"true"}
    pod = pod_of(objects)
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("7", "true")
    assert pod["imagePullSecrets"] == [{"name": "7"}]
    secrets = {one["name"]: one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one}
    assert secrets == {"api-keys": "123", "tls": "0x1f"}
    assert workload(objects)["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "42"


def test_the_charts_own_test_gets_where_the_nodes_are() -> None:
    values = {
        "image": {"pullSecrets": ["hub"]},
        "nodeSelector": {"edge": "yes"},
        "tolerations": [{"key": "edge", "operator": "Exists"}],
        "networkPolicy": {"enabled": True, "ingressFrom": [{"namespaceSelector": {"matchLabels": {"name": "plant"}}}]},
    }
    objects = render(NEWEST, merged(KEYS, values))
    (pod,) = [one for one in objects if one["kind"] == "Pod"]
    assert pod["spec"]["imagePullSecrets"] == [{"name": "hub"}]
    assert (pod["spec"]["nodeSelector"], pod["spec"]["tolerations"]) == (values["nodeSelector"], values["tolerations"])
    (policy,) = [one for one in objects if one["kind"] == "NetworkPolicy"]
    allowed = [
        one["podSelector"]["matchLabels"] for one in policy["spec"]["ingress"][0]["from"] if "podSelector" in one
    ]
    assert allowed and allowed[0].items() <= pod["metadata"]["labels"].items()


def test_services_prefer_the_same_machine_where_that_exists() -> None:
    for version, preferred in (("1.33.0", None), ("1.34.0", "PreferSameNode"), ("v1.34.1+k3s1", "PreferSameNode")):
        services = {one["metadata"]["name"]: one["spec"] for one in render(version, KEYS) if one["kind"] == "Service"}
        assert services["edge-edge-node"].get("trafficDistribution") == preferred
        assert services["edge-edge-node-local"]["internalTrafficPolicy"] == "Local"


def test_settings_arrive_in_the_node_as_they_were_given(tmp_path: Path) -> None:
    config = {
        "engine": {"slots": 3, "kv_type": "q8_0", "threads": None},
        "slo": {"ttft_ms": 0.5},
        "server": {"max_body_bytes": 20_000_000},
        "cache": {"isolate_keys": True},
        "model": {"aliases": ["gpt-4o-mini", "house"]},
        "fleet": {"url": 'https://fleet.example/"v1"\\<&>\u00e4'},
        "models": {"a.b/c": {"source": "/models/x.gguf", "aliases": ["p", "q"], "preload": True}},
    }
    settings = node_settings(render(NEWEST, merged(KEYS, {"config": config})), tmp_path).settings
    assert (settings.engine.slots, settings.engine.kv_type, settings.engine.threads) == (3, "q8_0", 0)
    assert settings.slo.ttft_ms == 0.5 and settings.server.max_body_bytes == 20_000_000
    assert settings.cache.isolate_keys and settings.model.aliases == ("gpt-4o-mini", "house")
    assert settings.fleet.url == config["fleet"]["url"]  # type: ignore[index]
    assert settings.models["a.b/c"].source == "/models/x.gguf" and settings.models["a.b/c"].preload
    assert settings.server.host == "0.0.0.0" and str(settings.auth.keys_file).startswith("/etc/edge-secrets/")


def test_a_change_of_settings_is_a_new_pod_and_nothing_else_is() -> None:
    def checksum(values: dict[str, Any]) -> str:
        found = workload(render(NEWEST, merged(KEYS, values)))
        return str(found["spec"]["template"]["metadata"]["annotations"]["checksum/settings"])

    assert checksum({}) != checksum({"config": {"engine": {"slots": 2}}})
    assert checksum({}) == checksum({"service": {"port": 80}})


def test_another_file_from_the_network_is_another_model_in_the_store() -> None:
    def name(url: str, sha256: str) -> str:
        values = {"model": {"source": "http", "alias": "m", "http": {"url": url, "sha256": sha256}}}
        pod = pod_of(render(NEWEST, merged(KEYS, values)))
        fetch, env = pod["initContainers"][-1]["args"], pod["containers"][0]["env"]
        assert fetch[:2] == ["models", "pull"] and fetch[fetch.index("--sha256") + 1] == sha256
        assert {"name": "EDGE_MODEL__NAME", "value": fetch[fetch.index("--name") + 1]} in env
        return str(fetch[fetch.index("--name") + 1])

    one, zero = "1" * 64, "0" * 64
    assert len({name("https://a/m.gguf", zero), name("https://a/m.gguf", one), name("https://b/m.gguf", zero)}) == 3
    assert name("https://a/m.gguf", zero) == name("https://a/m.gguf", zero)


def test_secrets_are_named_and_never_written() -> None:
    fleet = examples_by_name()["prometheus"]
    text = rendered(NEWEST, files=[fleet.path])
    objects = [one for one in yaml.safe_load_all(text) if one]
    assert not [one for one in objects if one["kind"] == "Secret"]
    volumes = {one["name"]: one["secret"] for one in pod_of(objects)["volumes"] if "secret" in one}
    assert set(volumes) == {"api-keys", "mqtt-tls", "fleet-api-key"}
    assert all(one["defaultMode"] == 0o440 for one in volumes.values())
    monitor = next(one for one in objects if one["kind"] == "PodMonitor")["spec"]["podMetricsEndpoints"][0]
    assert monitor["authorization"]["credentials"] == {"name": "edge-node-metrics-key", "key": "token"}


def examples_by_name() -> dict[str, Example]:
    return {example.name: example for example in examples()}


def test_schema_and_reference_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, CHART.parent / "reference.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_chart_is_of_the_nodes_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_notes_say_where_the_node_is_and_what_to_mind(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "chart")
    shown = """apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data: {text: {{ include (print $.Template.BasePath "/NOTES.txt") . | quote }}}
"""
    (chart / "templates" / "notes.yaml").write_text(shown)

    def notes(version: str, values: dict[str, Any]) -> str:
        objects = render(version, merged(KEYS, values), chart=chart)
        return str(next(one for one in objects if one["metadata"]["name"] == "notes")["data"]["text"])

    plain = notes(NEWEST, {})
    assert (
        "http://edge-edge-node-local.edge.svc:8080/v1" in plain and "rollout status daemonset/edge-edge-node" in plain
    )
    assert "ImageVolume" not in plain and "emptyDir" not in plain
    image = {"model": {"source": "image", "file": "m.gguf", "image": {"reference": "r/m:1"}}}
    assert "feature gate ImageVolume" in notes("1.33.0", image) and "feature gate" not in notes("1.35.0", image)
    loose = notes(
        NEWEST, {"workload": {"kind": "Deployment"}, "state": {"kind": "emptyDir"}, "tls": {"existingSecret": "c"}}
    )
    assert "lost with the pod" in loose and "https://" in loose
    assert "server/manifests" in plain, "where the Secret must not lie"
    assert "From outside" not in plain
    fixed = notes(NEWEST, {"service": {"type": "NodePort", "nodePort": 30880}})
    assert "http://MACHINE:30880/v1" in fixed
    chosen = notes(NEWEST, {"service": {"type": "NodePort"}, "hostPort": 8080})
    assert "{.spec.ports[0].nodePort}" in chosen and "http://MACHINE:8080/v1" in chosen
    balanced = notes(NEWEST, {"service": {"type": "LoadBalancer", "port": 80}})
    assert "http://ADDRESS:80/v1" in balanced and "NodePort" not in balanced
