"""Manifests: one TOML file for each model that this node knows by name."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import ConfigurationError


class Manifest(BaseModel):
    """What is known of a model before its file is opened. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    task: Literal["chat", "completion"]
    source: Annotated[str, Field(min_length=1)]
    """Where the file comes from: `builtin`, or the address that people download it from."""
    file: Annotated[str, Field(min_length=1)]
    """Path of the GGUF file, relative to the manifest."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    licence: Annotated[str, Field(min_length=1)]
    """SPDX identifier."""
    context_tokens: Annotated[int, Field(gt=0)]
    """Context that the model was trained to."""
    tools_format: Literal["hermes", "llama3", "mistral", "mistral-args", "none"]
    """How the model writes tool calls."""
    description: Annotated[str, Field(min_length=1)]
    evaluation: Annotated[str, Field(min_length=1)] | None = None
    """JSON file with cases of the model's task, relative to the manifest; `edge quantize` counts the right answers."""


def read_manifest(path: Path) -> Manifest:
    """Parse one manifest strictly. Raises ConfigurationError that names file, key and problem."""
    try:
        return Manifest.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: `{key}`: {first['msg'].lower()}") from None
