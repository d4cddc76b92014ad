"""Build hook: puts manifests and the built-in model into the wheel, so that a node installed with pip has a model; and the Helm
chart, so that `edge k3s bundle` has one.

A checkout needs no copy: `edge.registry` reads the same files from models/, `edge.k3s` from k3s/chart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SHIPPED = ("*.toml", "builtin/edge-builtin-q4_0.gguf", "builtin/tools.json", "builtin/cases.json")


class ModelsInWheel(BuildHookInterface[Any]):
    """Adds models/ to a wheel as edge/_models/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build. Raises FileNotFoundError when the model is not there."""
        if version == "editable":
            return
        models = Path(self.root) / "models"
        for pattern in _SHIPPED:
            paths = sorted(models.glob(pattern))
            if not paths:
                raise FileNotFoundError(f"models/{pattern} is missing; see models/README.md")
            for path in paths:
                build_data["force_include"][str(path)] = f"edge/_models/{path.relative_to(models)}"
        chart = Path(self.root) / "k3s" / "chart"  # container images are built without it: nobody makes sticks in a pod
        for path in sorted(chart.rglob("*")):
            if path.is_file():
                build_data["force_include"][str(path)] = f"edge/_chart/{path.relative_to(chart)}"
