"""Weights and vocabulary of one GGUF file."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llama_cpp import llama_cpp as ll

from edge.engine.llama.library import Library
from edge.errors import DoesNotFit, ModelUnusable

_ALLOCATION = re.compile("failed to allocate|unable to allocate|out of memory", re.IGNORECASE)
"""How the library words that memory did not suffice."""
_MAX_TEMPLATE_BYTES = 1 << 20
_BLOCK = 2048
_ALIKE = tuple(re.compile(f"{kind}{{{_BLOCK}}}") for kind in (r"[^\s\d!-/:-@\[-`{-~]", r"(?:[^\w\s]|_)", r"\d", r"\s"))
"""Only letters, signs, digits, or white space: what one part of a pre-tokenizer's expression repeats."""


@dataclass(frozen=True, slots=True)
class VocabularyTable:
    """Every token's bytes and kind, in token order; built once when a grammar first needs it."""

    pieces: list[bytes]
    """Text of each token, special tokens included."""
    control: list[bool]
    """True for tokens that are not text: control and unknown."""
    markers: list[bool]
    """True for control and user-defined tokens: parsed as one unit in text."""


class Vocabulary:
    """Tokens to text and back. Reading is thread-safe in libllama: the reader thread uses it while the loop decodes."""

    def __init__(self, model: int) -> None:
        self._vocab = ll.llama_model_get_vocab(model)
        self.size: int = ll.llama_vocab_n_tokens(self._vocab)
        self.bos: int = ll.llama_vocab_bos(self._vocab)
        self.eos: int = ll.llama_vocab_eos(self._vocab)
        self.adds_bos = bool(ll.llama_vocab_get_add_bos(self._vocab))
        self._adds_eos = bool(ll.llama_vocab_get_add_eos(self._vocab))
        self._by_expression = ll.llama_vocab_type(self._vocab) == ll.LLAMA_VOCAB_TYPE_BPE
        self.end_tokens = frozenset(t for t in range(self.size) if ll.llama_vocab_is_eog(self._vocab, t))
        self._pieces: dict[int, bytes] = {}
        self._marked: dict[int, bytes] = {}

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Tokens of `text`. `parse_special`: control tokens written in the text count as such."""
        pieces = _bearable(text) if self._by_expression and len(text) > _BLOCK else [text]
        if len(pieces) == 1:
            return self._tokenized(text, add_special, parse_special)
        tokens = [token for piece in pieces for token in self._tokenized(piece, False, parse_special)]
        begin = [self.bos] if add_special and self.adds_bos else []
        return [*begin, *tokens, *([self.eos] if add_special and self._adds_eos else [])]

    def _tokenized(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode("utf-8", "replace")  # a lone surrogate would make libllama throw, and end the process
        room = len(raw) + 8
        out = (ll.llama_token * room)()
        count = ll.llama_tokenize(self._vocab, raw, len(raw), out, room, add_special, parse_special)
        if count < 0:
            room = -count
            out = (ll.llama_token * room)()
            count = ll.llama_tokenize(self._vocab, raw, len(raw), out, room, add_special, parse_special)
        return list(out[:count])

    def piece(self, token: int) -> bytes:
        """Text of a token as it belongs into an answer: empty for control tokens."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._render(token, special=False)
        return found

    def marked_piece(self, token: int) -> bytes:
        """Text of a token with control tokens spelled out."""
        found = self._marked.get(token)
        if found is None:
            found = self._marked[token] = self._render(token, special=True)
        return found

    def _render(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        size = ll.llama_token_to_piece(self._vocab, token, buffer, 64, 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = ll.llama_token_to_piece(self._vocab, token, buffer, -size, 0, special)
        return buffer.raw[:size]

    def detokenize(self, tokens: list[int]) -> str:
        """Text of tokens, control tokens spelled out."""
        return b"".join(self.marked_piece(t) for t in tokens).decode("utf-8", "replace")

    def table(self) -> VocabularyTable:
        """Every token at once; about 0.3 s for 150,000 tokens."""
        control: list[bool] = []
        markers: list[bool] = []
        for token in range(self.size):
            kind = ll.llama_vocab_get_attr(self._vocab, token)
            control.append(bool(kind & (ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_UNKNOWN)))
            markers.append(bool(kind & (ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_USER_DEFINED)))
        return VocabularyTable([self._render(t, special=True) for t in range(self.size)], control, markers)


def _bearable(text: str) -> list[str]:
    """A text cut where one kind of character goes on for thousands, never inside a marker. For most vocabularies the library
    splits a text by `std::regex`, which calls itself for each character of such a run: 26,000 dots end the process."""
    blocks = range(0, len(text) - _BLOCK + 1, _BLOCK)
    cuts = [at + _BLOCK // 2 for at in blocks if any(kind.match(text, at) for kind in _ALIKE)]
    places = [0, *cuts, len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


class Model:
    """A loaded GGUF file. Raises ModelUnusable with libllama's own words when it does not load."""

    def __init__(
        self,
        library: Library,
        path: Path,
        *,
        gpu_layers: int,
        on_progress: Callable[[float], None] | None = None,
        allocate: bool = True,
        mapped: bool = False,
    ) -> None:
        """`allocate` false: the vocabulary is read, the weights are not; contexts over it tell their sizes only."""
        params = ll.llama_model_default_params()
        params.no_alloc = not allocate
        params.n_gpu_layers = gpu_layers if library.offloads else 0
        if library.offloads:  # the planner counts one device's memory, and none of it where no layer lies there
            params.split_mode, params.main_gpu = ll.LLAMA_SPLIT_MODE_NONE, 0 if gpu_layers else -1
        # Repacked tensors would be held twice with mmap; on a device the file is read once and dropped. Mapped pages are the
        # kernel's, which can drop and read them again: for a large file that need not answer anybody in time.
        params.load_mode = ll.LLAMA_LOAD_MODE_MMAP if mapped else ll.LLAMA_LOAD_MODE_NONE

        def progress(fraction: float, _: object) -> bool:
            if on_progress is not None:
                on_progress(fraction)
            return True

        keep_alive = ll.llama_progress_callback(progress)
        params.progress_callback = keep_alive
        library.forget_log()
        self._handle = ll.llama_model_load_from_file(str(path).encode(), params)
        if not self._handle:
            reason = f"{path} cannot be loaded: {library.complaint or 'libllama gave no reason'}"
            raise DoesNotFit(reason) if _ALLOCATION.search(reason) else ModelUnusable(reason)
        if ll.llama_model_has_encoder(self._handle) or not ll.llama_model_has_decoder(self._handle):
            self.close()
            raise ModelUnusable(f"{path} is no text generator (it has an encoder); serve a decoder-only model")
        self.vocabulary = Vocabulary(self._handle)
        if self.vocabulary.size == 0:
            self.close()
            raise ModelUnusable(f"{path} has no vocabulary; convert it again with its tokenizer")

    @property
    def handle(self) -> int:
        """libllama's pointer."""
        return self._handle  # type: ignore[no-any-return]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(ll.llama_model_n_params(self._handle))

    @property
    def size_bytes(self) -> int:
        """Size of all tensors in bytes."""
        return int(ll.llama_model_size(self._handle))

    @property
    def train_context_tokens(self) -> int:
        """Context that the model was trained to."""
        return int(ll.llama_model_n_ctx_train(self._handle))

    @property
    def layers(self) -> int:
        """Number of layers that can be offloaded: the repeating ones and the output's."""
        return int(ll.llama_model_n_layer(self._handle)) + 1

    @property
    def copies_sequences(self) -> bool:
        """Whether a sequence's memory can be copied to another (false for recurrent and hybrid models)."""
        return not (ll.llama_model_is_recurrent(self._handle) or ll.llama_model_is_hybrid(self._handle))

    @property
    def description(self) -> str:
        """Architecture, size and quantization in libllama's words, such as `llama 4B Q4_0`."""
        buffer = ctypes.create_string_buffer(256)
        ll.llama_model_desc(self._handle, buffer, 256)
        return buffer.value.decode("utf-8", "replace")

    @property
    def chat_template(self) -> str | None:
        """The template in the file, None if it has none. Raises ModelUnusable if it is absurdly long."""
        source = ll.llama_model_chat_template(self._handle, None)
        if source is None:
            return None
        if len(source) > _MAX_TEMPLATE_BYTES:
            raise ModelUnusable(f"the model's chat template has {len(source)} bytes; at most {_MAX_TEMPLATE_BYTES}")
        return str(source.decode("utf-8", "replace"))

    def close(self) -> None:
        """Free the weights. Contexts over this model must be closed before."""
        if self._handle:
            ll.llama_model_free(self._handle)
            self._handle = None
