"""Values for the chart: those that must render, and those that must be refused, with what is said then."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from bench.chart import KEYS

Values = Mapping[str, Any]
_SUM = "ab" * 32
_URL = "https://models.example/m.gguf"
_FILE = {"model": {"source": "hostPath", "file": "m.gguf"}}
_DEPLOYMENT = {"workload": {"kind": "Deployment"}}
_LOOSE = {"workload": {"kind": "Deployment"}, "state": {"kind": "emptyDir"}}
_KEY = {"metricsKey": {"existingSecret": "metrics"}}
_ENROLLED = {"enrollment": {"url": "https://fleet.example:8443", "existingSecret": "token"}}
_MQTTS = {"config": {"mqtt": {"url": "mqtts://broker.example"}}}


def merged(*parts: Values) -> dict[str, Any]:
    """Maps laid over each other, as Helm does it."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            inner = result.get(key)
            both = isinstance(inner, dict) and isinstance(value, Mapping)
            result[key] = merged(inner, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return result


PARTS: dict[str, dict[str, Values]] = {
    "workload": {
        "daemonset": {},
        "daemonset-own-false": {"state": {"hostPath": {"own": False, "path": "/data/edge"}}},
        "deployment": _DEPLOYMENT,
        "deployment-pvc": merged(_DEPLOYMENT, {"state": {"kind": "pvc"}}),
        "deployment-claim": merged(_DEPLOYMENT, {"state": {"kind": "pvc", "pvc": {"existingClaim": "mine"}}}),
        "deployment-three": merged(
            _LOOSE, {"workload": {"replicas": 3, "maxUnavailable": "34%"}, "podDisruptionBudget": {"enabled": True}}
        ),
        "deployment-scaled": merged(_LOOSE, {"scaledObject": {"enabled": True, **_KEY}}),
    },
    "gpu": {
        "none": {},
        "plugin": {"gpu": {"mode": "devicePlugin"}},
        "shared": {
            "gpu": {
                "mode": "devicePlugin",
                "resourceName": "nvidia.com/gpu.shared",
                "timeSlicing": {"memoryBudgetMiB": 4096},
            }
        },
        "mig": {"gpu": {"mode": "mig", "mig": {"profile": "1g.5gb"}}},
        "runtime": {"gpu": {"mode": "runtimeOnly", "createRuntimeClass": True}},
        "plugin-default-runtime": {"gpu": {"mode": "devicePlugin", "runtimeClassName": ""}},
    },
    "model": {
        "known": {},
        "known-other": {"model": {"name": "qwen2.5-0.5b", "alias": "assistant"}},
        "hostPath": _FILE,
        "pvc": {"model": {"source": "pvc", "file": "a/m.gguf", "pvc": {"existingClaim": "models"}}},
        "http": {"model": {"source": "http", "alias": "m", "http": {"url": _URL, "sha256": _SUM}}},
    },
    "outside": {
        "alone": {},
        "tls": {"tls": {"existingSecret": "cert"}, "hostPort": 8443, "listen": "::"},
        "fleet": merged(
            _MQTTS,
            {"config": {"fleet": {"url": "https://fleet.example/v1"}, "mqtt": {"group": "plant-7"}}},
            {"mqtt": {"tls": {"existingSecret": "mqtt"}, "password": {"existingSecret": "pw", "key": "x.y"}}},
            {"mqtt": {"commandKeys": {"existingSecret": "ck"}}, "fleet": {"apiKey": {"existingSecret": "fk"}}},
        ),
        "enrolled": merged(
            _ENROLLED, {"enrollment": {"key": "other.txt"}, "config": {"fleet": {"url": "https://fleet.example/v1"}}}
        ),
        "watched": {
            "podMonitor": {"enabled": True, **_KEY},
            "networkPolicy": {"enabled": True, "ingressFrom": [{"podSelector": {}}]},
        },
        "node-port": {
            "service": {"type": "NodePort", "nodePort": 30080, "local": {"enabled": False}, "annotations": {"a": "b"}}
        },
        "no-service": {"service": {"enabled": False}},
    },
    "settings": {
        "default": {},
        "many": {
            "config": {
                "engine": {"slots": 3, "threads": None, "kv_type": "q8_0"},
                "slo": {"ttft_ms": 0.5, "itl_ms": 40},
                "server": {"max_body_bytes": 20_000_000},
                "admission": {"mode": "strict"},
                "cache": {"isolate_keys": True},
                "models": {"a.b/c": {"source": "/models/x.gguf", "aliases": ["p", "q"], "preload": True}},
            },
        },
        "placed": {
            "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "priorityClassName": "important",
            "podAnnotations": {"x": "y"},
            "podLabels": {"l": "m"},
            "image": {"digest": f"sha256:{_SUM}", "pullSecrets": ["regcred"]},
            "securityContext": {"supplementalGroups": [44], "runAsUser": 1000, "runAsGroup": 1000},
            "serviceAccount": {"create": False},
            "drain": {"preStopSeconds": 0, "gracefulSeconds": 7},
            "probes": {"startup": {"budgetSeconds": 61, "periodSeconds": 10}},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
            "extraVolumes": [{"name": "more", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
            "resources": {"limits": {"memory": "4Gi", "cpu": 3}},
            "nameOverride": "node",
            "fullnameOverride": "my-node",
        },
    },
}
"""For each side of the chart, by name, what may be chosen there."""


def whole_matrix() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every choice of one side with every choice of each other side; the remaining sides at their defaults."""
    sides = list(PARTS)
    seen = set()
    for first_at, first in enumerate(sides):
        for second in sides[first_at + 1 :]:
            for one, one_values in PARTS[first].items():
                for other, other_values in PARTS[second].items():
                    name = f"{one}+{other}"
                    values = merged(KEYS, one_values, other_values)
                    if name not in seen and not _excluded(values):
                        seen.add(name)
                        yield name, values


def _excluded(values: Mapping[str, Any]) -> bool:
    """What the chart refuses, rightly: it is among the refusals below."""
    scaled = values.get("scaledObject", {}).get("enabled")
    closed = values.get("networkPolicy", {}).get("enabled") and values.get("model", {}).get("source") == "http"
    forgetful = values.get("enrollment") and values.get("state", {}).get("kind") == "emptyDir"
    return bool(closed or forgetful or (scaled and values.get("service", {}).get("enabled") is False))


def small_matrix() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every choice at least once, with as few sets of values as there are choices on the longest side."""
    longest = max(len(choices) for choices in PARTS.values())
    for at in range(longest):
        chosen = {side: list(choices.items())[at % len(choices)] for side, choices in PARTS.items()}
        values = merged(KEYS, *(part for _, part in chosen.values()))
        if _excluded(values):
            values = merged(values, {"networkPolicy": {"enabled": False}, "service": {"enabled": True}})
            values.pop("enrollment", None)
        yield "+".join(name for name, _ in chosen.values()), values


_SCALED = merged(_LOOSE, {"scaledObject": {"enabled": True, **_KEY}})
REFUSED: list[tuple[Values, str]] = [
    (
        {"apiKeys": {"existingSecret": ""}},
        r"apiKeys\.existingSecret is empty, and a node that others can reach needs API keys",
    ),
    ({"workload": {"replicas": 2}}, r"workload\.replicas is for a Deployment"),
    ({"state": {"kind": "pvc"}}, r"state\.kind pvc needs workload\.kind Deployment"),
    ({"scaledObject": {"enabled": True, **_KEY}}, r"scaledObject needs workload\.kind Deployment"),
    ({"podDisruptionBudget": {"enabled": True}}, r"podDisruptionBudget needs workload\.kind Deployment"),
    (
        merged(_DEPLOYMENT, {"workload": {"replicas": 2}}),
        r"workload\.replicas 2 with state\.kind hostPath would give several",
    ),
    (merged(_DEPLOYMENT, {"scaledObject": {"enabled": True, **_KEY}}), r"scaledObject with state\.kind hostPath"),
    (merged(_LOOSE, {"scaledObject": {"enabled": True}}), r"scaledObject\.metricsKey\.existingSecret is empty"),
    (merged(_SCALED, {"scaledObject": {"minReplicas": 5}}), r"scaledObject\.minReplicas is above"),
    (merged(_SCALED, {"service": {"enabled": False}}), r"scaledObject finds the nodes through the Service"),
    ({"gpu": {"mode": "mig"}}, r"gpu\.mode mig needs gpu\.mig\.profile"),
    (
        {"gpu": {"mode": "devicePlugin", "mig": {"profile": "1g.5gb"}}},
        r"gpu\.mig\.profile is for gpu\.mode mig, and .* devicePlugin",
    ),
    ({"podLabels": {"app.kubernetes.io/name": "x"}}, r"podLabels has app\.kubernetes\.io/name"),
    ({"workload": {"kind": "Deployment", "maxUnavailable": "10%"}}, r"workload\.maxUnavailable is for several nodes"),
    ({"gpu": {"mode": "runtimeOnly", "runtimeClassName": ""}}, r"gpu\.mode runtimeOnly needs gpu\.runtimeClassName"),
    ({"gpu": {"createRuntimeClass": True}}, r"gpu\.createRuntimeClass needs a gpu\.mode other than none"),
    (
        {"gpu": {"mode": "mig", "mig": {"profile": "1g.5gb"}, "timeSlicing": {"memoryBudgetMiB": 512}}},
        r"memoryBudgetMiB is for gpu\.mode devicePlugin, and gpu\.mode is mig",
    ),
    (
        {
            "gpu": {"mode": "devicePlugin", "timeSlicing": {"memoryBudgetMiB": 512}},
            "config": {"memory": {"budget_mib": 9}},
        },
        r"say the same",
    ),
    ({"gpu": {"mode": "devicePlugin", "resourceName": "nvidia.com/gpu.shared"}}, r"a shared GPU isolates no memory"),
    (
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        r"resources\.limits has nvidia\.com/gpu: GPUs are asked for with gpu\.mode",
    ),
    ({"model": {"source": "hostPath"}}, r"model\.source hostPath needs model\.file"),
    (
        {"model": {"file": "m.gguf"}},
        r"model\.file is for model\.source hostPath, pvc or image, and model\.source is known",
    ),
    (merged(_FILE, {"model": {"name": "x"}}), r"model\.name is for model\.source known, and model\.source is hostPath"),
    ({"model": {"source": "pvc", "file": "m.gguf"}}, r"model\.source pvc needs model\.pvc\.existingClaim"),
    ({"model": {"source": "image", "file": "m.gguf"}}, r"model\.source image needs model\.image\.reference"),
    (
        {"model": {"source": "http", "http": {"url": _URL}}},
        r"model\.source http needs model\.http\.url, model\.http\.sha256 and",
    ),
    ({"model": {"http": {"url": _URL}}}, r"values of model\.http are given, and model\.source is known"),
    ({"config": {"server": {"host": "::"}}}, r"config\.server\.host is the chart's: set the value listen"),
    (
        {"config": {"mqtt": {"key_file": "k"}}},
        r"config\.mqtt\.key_file is the chart's: set the value mqtt\.tls\.existingSecret",
    ),
    ({"config": {"server": {"tls_client_ca": "/ca"}}}, r"tls_client_ca cannot be used in a pod: the kubelet's probes"),
    (
        {"extraEnv": [{"name": "EDGE_SERVER__PORT", "value": "1"}]},
        r"extraEnv has EDGE_SERVER__PORT, which is the chart's",
    ),
    ({"extraEnv": [{"name": "EDGE_HOME", "value": "/x"}]}, r"extraEnv has EDGE_HOME, which is the chart's"),
    ({"mqtt": {"password": {"existingSecret": "p"}}}, r"a Secret for the broker is named, and no broker"),
    (
        {"mqtt": {"tls": {"existingSecret": "p"}}, "config": {"mqtt": {"url": "mqtt://b"}}},
        r"mqtt\.tls\.existingSecret is for mqtts://",
    ),
    ({"fleet": {"apiKey": {"existingSecret": "p"}}}, r"fleet\.apiKey\.existingSecret is named, and no fleet"),
    (merged(_MQTTS, {"networkPolicy": {"enabled": True}}), r"networkPolicy\.egress is empty, and the node must reach"),
    ({"enrollment": {"url": "https://fleet.example"}}, r"enrollment\.url is given, and no token: put one from"),
    ({"enrollment": {"existingSecret": "token"}}, r"enrollment\.existingSecret is named, and no fleet"),
    (merged(_LOOSE, _ENROLLED), r"enrollment with state\.kind emptyDir would make each restart another node"),
    (merged(_MQTTS, _ENROLLED), r"config\.mqtt\.url is given, and with enrollment the fleet says it"),
    (
        merged(_ENROLLED, {"config": {"mqtt": {"group": "hall-b"}}}),
        r"config\.mqtt\.group is given, and with enrollment the fleet says it",
    ),
    (
        merged(_ENROLLED, {"networkPolicy": {"enabled": True}}),
        r"networkPolicy\.egress is empty, and the node must reach",
    ),
    ({"service": {"nodePort": 30080}}, r"service\.nodePort needs service\.type NodePort"),
    ({"podMonitor": {"enabled": True}}, r"podMonitor\.metricsKey\.existingSecret is empty"),
    (
        {"tls": {"existingSecret": "c"}, "podMonitor": {"enabled": True, **_KEY}},
        r"podMonitor with TLS needs podMonitor\.tlsConfig",
    ),
]
"""Combinations that cannot work, and the sentence of each. Laid over the API keys' Secret, unless they name it."""

REFUSED_BELOW: list[tuple[Values, str, str, str]] = [
    (
        {"model": {"source": "image", "file": "m.gguf", "image": {"reference": "r/m:1"}}},
        "1.32.0",
        "1.33.0",
        r"model\.source image needs Kubernetes 1\.33",
    ),
    ({"gpu": {"mode": "dra"}}, "1.33.0", "1.34.0", r"gpu\.mode dra needs Kubernetes 1\.34"),
    (
        {"requires": {"kubernetes": "1.31"}},
        "1.30.9",
        "1.31.0",
        r"made for Kubernetes 1\.31 or newer and this is v?1\.30\.9",
    ),
    ({}, "1.27.9", "1.28.0", r"chart requires kubeVersion: >=1\.28\.0-0"),
]
"""Values, a version that is too old, one that is not, and what is said of the first."""
