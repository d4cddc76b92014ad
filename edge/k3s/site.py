"""Values that a site gives for the chart: read, and held against the chart's schema and the image before they go onto a stick.

A machine without a network is no place to find out that a value is misspelt: Helm would refuse the upgrade there, and nobody
would see it. What Helm's templates refuse beyond the schema (validate.yaml) is not seen here: that takes helm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConfigurationError
from edge.k3s.archive import Image


@dataclass(frozen=True, slots=True)
class Site:
    """Values as they were written, and as they are read."""

    path: Path
    text: str
    values: Mapping[str, Any]

    @property
    def gpu_mode(self) -> Any:
        """gpu.mode; None if they do not say it."""
        gpu = self.values.get("gpu")
        return gpu.get("mode") if isinstance(gpu, Mapping) else None


def read_site(path: Path) -> Site:
    """The values in a file. Raises ConfigurationError."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigurationError(f"cannot read {path}: {reason}") from None
    return Site(path, text, _parsed(text, path))


def _parsed(text: str, path: Path) -> dict[str, Any]:
    yaml, _ = _libraries()
    try:
        found = yaml.load(text, Loader=_loader(yaml))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}," if mark is not None else ""
        raise ConfigurationError(
            f"{path}{where} is not YAML: {error.problem or error.context}; mend the file"
        ) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}; mend the file") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigurationError(f"{path} is no map of values: it must look like k3s/chart/values.yaml")
    return found


def require_valid(chart: Path, layers: list[Mapping[str, Any]], path: Path) -> None:
    """Refuse what Helm would: the chart's own values, with `layers` over them, against its schema. Raises ConfigurationError.

    `path`: the file to name, which brought the last layer.
    """
    yaml, jsonschema = _libraries()
    values: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text("utf-8"))
    for layer in layers:
        values = _over(values, layer)
    schema = json.loads((chart / "values.schema.json").read_text("utf-8"))
    worst = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(schema).iter_errors(values))
    if worst is not None:
        where = ".".join(str(part) for part in worst.absolute_path) or "the values"
        raise ConfigurationError(
            f"{path} will not do for the chart: {where}: {worst.message}; docs/reference/helm-values.md has every value"
        )


def require_one_gpu_mode(gpu: str | None, site: Site | None) -> None:
    """`gpu` is what --gpu says. Raises ConfigurationError."""
    if gpu is None or site is None:
        return
    if site.gpu_mode not in (None, gpu):
        raise ConfigurationError(
            f"--gpu says {gpu}, and gpu.mode in {site.path} says {site.gpu_mode}, which would win: leave one of them out"
        )


def require_gpu_said(gpu: str | None, image: Image, site: Site | None) -> None:
    """The chart's default is no GPU, and a node with an image for GPUs would run on the processor without a word.

    Raises ConfigurationError.
    """
    if image.for_gpus and gpu is None and (site is None or site.gpu_mode is None):
        raise ConfigurationError(
            f"{image.name} is made for GPUs, and nothing says how its pods get one: give --gpu runtimeOnly (Jetson), --gpu "
            "devicePlugin (NVIDIA's device plugin), --gpu none (processor only), or gpu.mode in --values"
        )


def require_this_image(image: Image, site: Site) -> None:
    """Pods of another image would never start where nobody may be asked for it. Raises ConfigurationError."""
    given = site.values.get("image")
    if not isinstance(given, Mapping) or given.get("pullPolicy", "Never") != "Never":
        return
    here = {"repository": image.name.repository, "tag": image.name.tag}
    for name in ("repository", "tag", "digest"):
        if given.get(name) and given[name] != here.get(name):
            raise ConfigurationError(
                f"image.{name} in {site.path} says {given[name]}, and the stick brings {image.name}: leave it out, or say "
                "image.pullPolicy: IfNotPresent too, if the machines have a registry"
            )


def _over(values: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """As Helm lays values over each other: maps are merged, null takes a value away, the rest is replaced."""
    merged = dict(values)
    for key, value in layer.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _over(merged[key], value)
        else:
            merged[key] = value
    return merged


def _libraries() -> tuple[Any, Any]:
    try:
        import jsonschema
        import yaml
    except ImportError as error:
        raise ConfigurationError(
            f"reading values needs the package {error.name}: pip install 'edge-node[bundle]', or in a checkout make install "
            "EXTRA=bundle"
        ) from None
    return yaml, jsonschema


def _loader(yaml: Any) -> Any:
    """YAML as Helm reads it: a date is text, and a name that stands twice is a mistake."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers = {  # noqa: RUF012 (it is PyYAML's own, without dates)
            first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
            for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise yaml.constructor.ConstructorError(None, None, f"{twice} stands there twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader
