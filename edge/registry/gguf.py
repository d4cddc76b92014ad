"""What a GGUF file says of itself, read from its header alone.

Format: ggml/docs/gguf.md (versions 2 and 3). Lengths in the file are untrusted: each is checked against the bytes that
are left before anything is read or kept, so a corrupt file costs neither memory nor a crash of the native library.
"""

from __future__ import annotations

import math
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge.errors import ModelUnusable
from edge.printable import printable
from edge.registry.window import Value, Window

_MAX_KEPT_STRING_BYTES = 1 << 20
_MAX_NAME_BYTES = 1 << 12
_MAX_PAIRS = 1 << 16
_MAX_TENSORS = 1 << 18
_MAX_STRINGS = 1 << 23
"""In all arrays together: bounds the time that a corrupt file can cost. The largest vocabularies have 2^18 tokens."""
_MAX_DIMENSIONS = 4
_MOST_ALIGNMENT_BYTES = 1 << 20
_MOST_SHOWN = 200
"""Letters of a name."""
_STRING, _ARRAY = 8, 9
_BLOCK = re.compile(r"blk\.(\d{1,5})\.")
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

# ggml type: name, weights in a block, bytes of a block.
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}

_RANK = 4
_ENCODERS = frozenset(
    {
        "bert",
        "nomic-bert",
        "nomic-bert-moe",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "eurobert",
        "gemma-embedding",
    }
)
"""Architectures that write no text. Others are embedding models where the file names a pooling."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Facts of one file. Sizes in bytes; `tensor_bytes` is by number format, such as Q4_0."""

    path: Path
    version: int
    architecture: str
    name: str
    parameters: int
    context_tokens: int
    vocabulary: int
    chat_template: str
    tensor_bytes: dict[str, int]
    block_bytes: tuple[int, ...]
    """Weights of each repeating layer, first to last."""
    input_bytes: int
    """Token embeddings."""
    output_bytes: int
    """The output layer and what else belongs to no repeating layer; the embeddings again where they serve as output."""
    file_bytes: int
    needed_bytes: int
    experts: int
    """Experts in each layer; 0 for dense models."""
    pooling: int | None = None
    """How one vector is made of a text's: 0 not at all, 1 mean, 2 first, 3 last, 4 a score; None: the file does not say."""

    @property
    def reads(self) -> Literal["embedding", "rerank"] | None:
        """What a model is for that reads texts and writes none; None for those that write."""
        if self.pooling == _RANK:
            return "rerank"
        return "embedding" if self.pooling or self.architecture in _ENCODERS else None

    @property
    def quantization(self) -> str:
        """The number format that holds most of the weights."""
        return max(self.tensor_bytes, key=lambda name: self.tensor_bytes[name])


def read_header(path: Path, whole_bytes: int | None = None) -> GgufHeader:
    """Parse and check a file's header. Raises ModelUnusable with what is wrong and what to do.

    `whole_bytes`: the file's size where only its beginning is here; then HeaderCutShort asks for more of it.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # to open a pipe may take for ever
            raise ModelUnusable(f"{path} is no regular file; copy what it gives into a file first")
        with path.open("rb") as file:
            size = found.st_size if whole_bytes is None else whole_bytes
            return _Parser(path, Window(path, file, size)).parse()
    except FileNotFoundError:
        raise ModelUnusable(f"there is no file {path}; check the path") from None
    except IsADirectoryError:
        raise ModelUnusable(f"{path} is a directory; name the .gguf file in it") from None
    except OSError as error:
        raise ModelUnusable(f"cannot read {path}: {error.strerror or error}") from None


@dataclass(slots=True)
class _Tensors:
    """What the tensor table adds up to."""

    parameters: int = 0
    end: int = 0
    """Bytes from the start of the data to the end of its last tensor."""
    by_type: dict[str, int] = field(default_factory=dict)
    by_block: dict[int, int] = field(default_factory=dict)
    input_bytes: int = 0
    output_bytes: int = 0
    has_output: bool = False

    def add(self, name: str, size: int) -> None:
        """Count a tensor's bytes where it belongs."""
        if block := _BLOCK.match(name):
            self.by_block[int(block[1])] = self.by_block.get(int(block[1]), 0) + size
        elif name.startswith("token_embd."):
            self.input_bytes += size
        else:
            self.output_bytes += size
            self.has_output = self.has_output or name == "output.weight"


class _Parser:
    def __init__(self, path: Path, window: Window) -> None:
        self._path, self._window = path, window
        self._values: dict[str, Value] = {}
        self._lengths: dict[str, int] = {}
        self._strings = 0

    def parse(self) -> GgufHeader:
        version, tensors, pairs = self._preamble()
        for _ in range(pairs):
            self._pair()
        table = self._tensors(tensors, self._alignment())
        data_start = -(-self._window.position // self._alignment()) * self._alignment()
        needed = data_start + table.end
        if needed > self._window.size:
            raise self._unusable(
                f"is {self._window.size} bytes, its tensor table needs {needed}: the download was cut short, "
                "download it again"
            )
        return self._header(version, table, needed)

    def _unusable(self, problem: str) -> ModelUnusable:
        return ModelUnusable(f"{self._path} {problem}")

    def _preamble(self) -> tuple[int, int, int]:
        window = self._window
        if window.size == 0:
            raise self._unusable("is empty; download it again")
        magic = window.take(min(4, window.size), "the magic number")
        if magic != b"GGUF":
            raise self._unusable(f"is not a GGUF file: it starts with {magic!r}, not b'GGUF'")
        version = window.count(_U32, "the version")
        if version & 0xFFFF == 0:
            raise self._unusable("is a big-endian GGUF file, this machine is little-endian; convert the model again")
        if version not in (2, 3):
            raise self._unusable(f"has GGUF version {version}; versions 2 and 3 can be read, convert the model again")
        tensors = window.count(_U64, "the tensor count")
        pairs = window.count(_U64, "the metadata count")
        if pairs > _MAX_PAIRS or tensors > _MAX_TENSORS:
            raise self._unusable(
                f"is corrupt: it claims {pairs} metadata entries and {tensors} tensors; download it again"
            )
        return version, tensors, pairs

    def _name(self, what: str) -> str:
        size = self._window.count(_U64, f"the length of {what}")
        if size > _MAX_NAME_BYTES:
            raise self._unusable(f"is corrupt: {what} has {size} bytes; download it again")
        return self._window.take(size, what).decode("utf-8", "replace")

    def _pair(self) -> None:
        key = self._name("a metadata key")
        kind = self._window.count(_U32, f"the type of {key!r}")
        if kind in _SCALARS:
            self._values[key] = self._window.scalar(_SCALARS[kind], repr(key))
        elif kind == _STRING:
            size = self._window.count(_U64, f"the length of {key!r}")
            if size <= _MAX_KEPT_STRING_BYTES and _kept(key):
                self._values[key] = self._window.take(size, repr(key)).decode("utf-8", "replace")
            else:
                self._window.skip(size, repr(key))
        elif kind == _ARRAY:
            self._array(key)
        else:
            raise self._unusable(f"is corrupt: metadata {key!r} has the unknown type {kind}; download it again")

    def _array(self, key: str) -> None:
        what = f"the array {key!r}"
        kind = self._window.count(_U32, what)
        length = self._window.count(_U64, what)
        self._lengths[key] = length
        if kind in _SCALARS:
            self._window.skip(length * _SCALARS[kind].size, what)
        elif kind == _STRING:
            self._window.require(length * _U64.size, what)
            self._strings += length
            if self._strings > _MAX_STRINGS:
                raise self._unusable(f"is corrupt: {what} claims {length} strings; download it again")
            for _ in range(length):
                self._window.skip(self._window.count(_U64, what), what)
        else:
            raise self._unusable(f"is corrupt: {what} holds the unknown type {kind}; download it again")

    def _alignment(self) -> int:
        alignment = self._values.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _MOST_ALIGNMENT_BYTES or alignment & (alignment - 1):
            raise self._unusable(f"is corrupt: general.alignment is {alignment!r}; download it again")
        return alignment

    def _tensors(self, count: int, alignment: int) -> _Tensors:
        table = _Tensors()
        for _ in range(count):
            name = self._name("a tensor's name")
            rank = self._window.count(_U32, f"the rank of tensor {name!r}")
            if rank > _MAX_DIMENSIONS:
                raise self._unusable(f"is corrupt: tensor {name!r} has {rank} dimensions; download it again")
            shape = [self._window.count(_U64, f"the shape of tensor {name!r}") for _ in range(rank)]
            kind = self._window.count(_U32, f"the type of tensor {name!r}")
            offset = self._window.count(_U64, f"the place of tensor {name!r}")
            if kind not in _TYPES:
                raise self._unusable(f"has tensor {name!r} in number format {kind}, which this version does not know")
            form, block, block_bytes = _TYPES[kind]
            weights = math.prod(shape)
            if offset % alignment or (shape and shape[0] % block):
                raise self._unusable(f"is corrupt: tensor {name!r} does not lie on whole blocks; download it again")
            size = weights // block * block_bytes
            table.parameters += weights
            table.end = max(table.end, offset + size)
            table.by_type[form] = table.by_type.get(form, 0) + size
            table.add(name, size)
        if not table.parameters:
            raise self._unusable("holds no weights (a vocabulary only?); use the whole model")
        return table

    def _header(self, version: int, table: _Tensors, needed: int) -> GgufHeader:
        architecture = self._text("general.architecture")
        if not architecture or architecture != _shown(architecture):
            raise self._unusable("does not name its architecture (general.architecture); convert the model again")
        kind = self._text("general.type")
        if kind in ("adapter", "mmproj", "imatrix") or architecture == "clip":
            raise self._unusable(
                f"is no language model but a {kind or 'vision projector'}; serve the model it belongs to"
            )
        return GgufHeader(
            path=self._path,
            version=version,
            architecture=architecture,
            name=_shown(self._text("general.name")),
            parameters=table.parameters,
            context_tokens=self._number(f"{architecture}.context_length"),
            vocabulary=self._lengths.get("tokenizer.ggml.tokens", 0),
            chat_template=self._text("tokenizer.chat_template"),
            tensor_bytes=table.by_type,
            block_bytes=tuple(table.by_block[number] for number in sorted(table.by_block)),
            input_bytes=table.input_bytes,
            output_bytes=table.output_bytes + (0 if table.has_output else table.input_bytes),
            file_bytes=self._window.size,
            needed_bytes=needed,
            experts=self._number(f"{architecture}.expert_count"),
            pooling=self._pooling(architecture),
        )

    def _pooling(self, architecture: str) -> int | None:
        value = self._values.get(f"{architecture}.pooling_type")
        return value if isinstance(value, int) else None

    def _text(self, key: str) -> str:
        value = self._values.get(key, "")
        return value if isinstance(value, str) else ""

    def _number(self, key: str) -> int:
        value = self._values.get(key, 0)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _shown(text: str) -> str:
    """As it may stand in a line for people: a file may hold what a terminal obeys."""
    return printable(text[:_MOST_SHOWN])


def _kept(key: str) -> bool:
    return key in ("general.architecture", "general.name", "general.type", "tokenizer.chat_template")
