"""Manifests: one TOML file for each model that this node knows by name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edge.errors import ConfigurationError
from edge.registry.source import Builtin, Hub, Source, file_name, parse_source
from edge.versions import Fit, fit_of, without_unknown

Task = Literal["chat", "completion", "embedding", "rerank", "classification", "detection"]
LANGUAGE: frozenset[str] = frozenset({"chat", "completion"})
"""Tasks of models that write text: the node's own model is one of them."""
READING: frozenset[str] = frozenset({"embedding", "rerank", "classification"})
"""Tasks of models that read text, and answer with numbers."""
_AS_GGUF: frozenset[str] = frozenset({"embedding", "rerank"})
"""Those of them that a GGUF file is served for."""

TOKENIZER = "tokenizer.json"
"""The file that an ONNX model for text is read by."""
MANIFEST_VERSION = 1
"""Of the form of manifests: `schema_version` in the file, 1 where it is left out."""
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
WRITTEN_MARK = "# Written by `edge models`"
"""First words of manifests that `edge models` made itself, and may remove."""

ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(gt=0)]
Colour = Annotated[list[float], Field(min_length=3, max_length=3)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _readable(text: str) -> str:
    parse_source(text)
    return text


class Part(_Strict):
    """A further file that a model needs, such as the tokenizer.json of an ONNX model."""

    file: Annotated[str, Field(min_length=1, pattern=r"^[^/\\\x00]*[^/\\\x00.][^/\\\x00]*$")]
    """Its name among the model's files."""
    source: Text
    sha256: Sha256 | None = None
    size_bytes: Count | None = None

    _source_is_readable = field_validator("source")(_readable)

    @property
    def where(self) -> Source:
        """`source`, taken apart."""
        return parse_source(self.source)


class Encoder(_Strict):
    """How a model for embedding, rerank or classification is used."""

    pooling: Literal["mean", "cls", "last", "none"] | None = None
    """From a vector for each token to one for the text: their mean, the first, the last; `none`: the model does it itself. A GGUF
    file says so itself, as a rule: then this may be left out."""
    normalise: bool = True
    """Vectors are brought to length 1."""
    output: Annotated[str, Field(max_length=200)] = ""
    """Name of the output that counts; empty: the first."""
    query_prompt: Annotated[str, Field(max_length=2000)] = ""
    """Put before a text whose `input_type` is query."""
    document_prompt: Annotated[str, Field(max_length=2000)] = ""
    """Put before a text whose `input_type` is document."""
    dimensions: Annotated[list[Count], Field(max_length=64)] = []
    """Lengths to which vectors may be cut, where the model was trained so (Matryoshka); empty: they may not."""
    labels: Annotated[list[Text], Field(max_length=10_000)] = []
    """Names of what a classifier tells apart, in the order of its outputs."""
    multi_label: bool = False
    """Each label counts for itself; else a text is one of them."""


class Detector(_Strict):
    """How a model for detection is used: what it is given, and how its outputs are read."""

    labels: Annotated[list[Text], Field(min_length=1, max_length=10_000)]
    """Names of the things, in the order of the model's classes."""
    layout: Literal["detr", "yolo"]
    """`detr`: scores [1, things, classes] and boxes [1, things, 4] from 0 to 1. `yolo`: one output [1, 4 + classes, things],
    boxes in the input's pixels."""
    size: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]
    """Height and width of the model's input."""
    fit: Literal["stretch", "letterbox"] = "stretch"
    """How a picture is brought to that size: each side by itself, or both alike with grey beside it."""
    mean: Colour = [0.0, 0.0, 0.0]
    """Of red, green and blue from 0 to 1, taken off."""
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)] = [1.0, 1.0, 1.0]
    """By which they are divided then."""
    scores: Literal["sigmoid", "softmax", "probabilities"] | None = None
    """What the classes' numbers are; `softmax`: with a last class for nothing. None: sigmoid for detr, probabilities for yolo."""
    boxes: Literal["cxcywh", "xyxy"] = "cxcywh"
    """Centre and sides, or corners."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least score of a thing, where a request names none."""
    overlap: Annotated[float, Field(gt=0, le=1)] | None = None
    """Boxes of one label that cover so much of each other are one thing; 1: never. None: 1 for detr, 0.45 for yolo."""
    scores_output: Annotated[str, Field(max_length=200)] = ""
    """Name of the output with the scores; empty: `logits` for detr, the first for yolo."""
    boxes_output: Annotated[str, Field(max_length=200)] = ""
    """Name of the output with the boxes; empty: `pred_boxes` for detr."""


class Manifest(_Strict):
    """What is known of a model before its file is opened. Unknown keys are refused."""

    schema_version: Annotated[int, Field(ge=1)] = MANIFEST_VERSION
    readable_by: Annotated[int, Field(ge=1)] | None = None
    name: ModelName
    task: Task
    source: Text
    """Where the file comes from: `builtin`, `file:/path`, `https://...`, `http://...`, or `hf:owner/repo:FILE_OR_QUANT`."""
    file: Annotated[str, Field(pattern=r"^[^\x00]*$")] = ""
    """Path of the main file, relative to the manifest; empty: it lies in the store once it was fetched."""
    sha256: Sha256 | None = None
    """May be left out: then the sum that the server states counts, else the one of the first fetch."""
    size_bytes: Count | None = None
    files: list[Part] = []
    licence: Text
    """SPDX identifier."""
    parameters: Count | None = None
    context_tokens: Annotated[int, Field(ge=0)] = 0
    """Context that the model was trained to; 0 where there is none, as with detectors."""
    tools_format: Literal["hermes", "llama3", "mistral", "mistral-args", "none"] = "none"
    """How the model writes tool calls."""
    description: Text
    encoder: Encoder | None = None
    detector: Detector | None = None
    evaluation: Text | None = None
    """JSON file with cases of the model's task, relative to the manifest; `edge quantize` counts the right answers."""

    _source_is_readable = field_validator("source")(_readable)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.where == Builtin() and not (self.file and self.sha256):
            raise ValueError("a builtin model needs `file` and `sha256`")
        if self.task in LANGUAGE | READING and not self.context_tokens:
            raise ValueError(f"a model for {self.task} needs `context_tokens`")
        self._require_encoder()
        if self.detector is not None and self.task != "detection":
            raise ValueError(f"[detector] is for detection, not for {self.task}")
        names = [self.main_file, *(part.file for part in self.files)]
        if len(set(names)) != len(names):
            raise ValueError("two files have the same name")
        return self

    def _require_encoder(self) -> None:
        """A model that reads text says how."""
        encoder = self.encoder
        if self.task not in READING:
            if encoder is not None:
                raise ValueError(f"[encoder] is for embedding, rerank and classification, not for {self.task}")
            return
        if self.holds_gguf:
            self._require_gguf_encoder()
        elif self.task == "embedding" and (encoder is None or encoder.pooling is None):
            raise ValueError("a model for embedding needs [encoder] with `pooling`: mean, cls, last or none")
        labels = encoder.labels if encoder is not None else []
        if self.task == "classification" and not labels:
            raise ValueError("a model for classification needs [encoder] with `labels`")
        if len(set(labels)) != len(labels):
            raise ValueError("two labels are the same")
        if not self.holds_gguf and TOKENIZER not in [part.file for part in self.files]:
            raise ValueError(f"an ONNX model for {self.task} needs {TOKENIZER} among its [[files]]")

    def _require_gguf_encoder(self) -> None:
        if self.encoder is not None and self.encoder.pooling == "none":
            raise ValueError(
                "`pooling` none is for ONNX models: a GGUF file's is mean, cls or last, or left to the file"
            )
        if self.encoder is not None and self.encoder.output:
            raise ValueError("`output` is for ONNX models: a GGUF file has one")

    @property
    def where(self) -> Source:
        """`source`, taken apart."""
        return parse_source(self.source)

    @property
    def served(self) -> bool:
        """Whether this version answers requests for such a model."""
        if self.task in LANGUAGE:
            return True
        if self.task == "detection":
            return self.detector is not None and not self.holds_gguf
        return self.task in _AS_GGUF if self.holds_gguf else self.task in READING

    @property
    def main_file(self) -> str:
        """Name of the main file; empty where only the hub can tell."""
        return PurePosixPath(self.file).name if self.file else file_name(self.where)

    @property
    def holds_gguf(self) -> bool:
        """Whether the main file must be a GGUF file."""
        by_quant = isinstance(self.where, Hub) and not self.where.names_file
        return self.task in LANGUAGE or by_quant or self.main_file.lower().endswith(".gguf")

    def total_bytes(self) -> int | None:
        """Size of all files, None unless every one is known."""
        sizes = [self.size_bytes, *(part.size_bytes for part in self.files)]
        return None if None in sizes else sum(size for size in sizes if size)


class NewerManifest(ConfigurationError):
    """A manifest that only a newer version can read. It is no mistake, so the other models are served without it."""


_TABLES: Mapping[str, type[_Strict]] = {"encoder": Encoder, "detector": Detector, "files": Part}
"""Keys of a manifest that hold tables, or lists of them."""


def known_part(found: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of a newer manifest that it may read."""
    known = without_unknown(found, frozenset(Manifest.model_fields))
    for key, table in _TABLES.items():
        if key in known:
            known[key] = _known_of(known[key], frozenset(table.model_fields))
    return known


def _known_of(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, list):
        return [_known_of(one, keys) for one in value]
    return without_unknown(value, keys) if isinstance(value, dict) else value


def read_manifest(path: Path) -> Manifest:
    """Parse one manifest strictly. Raises ConfigurationError that names file, key and problem, NewerManifest."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
        match fit_of(found, MANIFEST_VERSION, "schema_version"):
            case Fit.FOREIGN:
                raise NewerManifest(
                    f"{path} was written for a newer version of edge (form {found.get('schema_version', 1)}, this one reads "
                    f"{MANIFEST_VERSION}): upgrade this one, or pull or add the model anew under another name"
                )
            case Fit.NEWER:
                found = known_part(found)
        return Manifest.model_validate(found)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror or error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        problem = problem[:1].lower() + problem[1:]
        raise ConfigurationError(f"{path}: `{key}`: {problem}" if key else f"{path}: {problem}") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and lists in lists in lists
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from None


def manifest_text(manifest: Manifest, command: str) -> str:
    """A manifest as TOML, with the mark that `edge models` made it."""
    fields = manifest.model_dump(exclude_none=True, exclude_defaults=True)
    parts = fields.pop("files", [])
    tables = {name: fields.pop(name, None) for name in ("encoder", "detector")}
    lines = [
        f"{WRITTEN_MARK}: {_line(command)}. Edit what you know better; `edge models remove {manifest.name}` takes it away."
    ]
    lines += [f"{key} = {_toml(value)}" for key, value in fields.items()]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    for part in parts:
        lines += ["", "[[files]]", *(f"{key} = {_toml(value)}" for key, value in part.items())]
    return "\n".join(lines) + "\n"


def _line(text: str) -> str:
    """As a comment may hold it: a path may have line ends."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _toml(value: object) -> str:
    """JSON's strings and numbers are TOML's too, but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
