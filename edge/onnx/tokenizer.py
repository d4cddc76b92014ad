"""Texts read by a `tokenizer.json`. The only module that imports tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

try:
    from tokenizers import Tokenizer
except ModuleNotFoundError:
    Tokenizer = None  # type: ignore[assignment,misc]

from edge.errors import EngineFault, ModelUnusable
from edge.onnx.messages import Reading
from edge.onnx.texts import Encoded, TextReader

_PIECE = 32
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")


class FileReader(TextReader):
    """Reads as the model's file says."""

    def __init__(self, reading: Reading) -> None:
        """Raises ModelUnusable."""
        if Tokenizer is None:
            raise ModelUnusable(
                "tokenizers is not installed: pip install 'edge-node[onnx]', or 'edge-node[onnx-gpu]' on a machine with CUDA"
            )
        try:
            with _panics_caught():
                self._tokenizer = Tokenizer.from_file(reading.tokenizer)
                given = self._tokenizer.padding
                self._tokenizer.no_truncation()
                self._tokenizer.no_padding()
                self._tokenizer.encode_batch(["a"])
        except Exception as error:  # the library raises plain Exception
            raise ModelUnusable(f"the tokenizer {reading.tokenizer} cannot be read: {error}") from None
        named = (self._tokenizer.token_to_id(name) for name in _PADS)
        pad = given["pad_id"] if given else next((number for number in named if number is not None), None)
        super().__init__(reading, self._tokenizer.get_vocab_size(with_added_tokens=True), pad or 0)

    def _read(self, texts: Sequence[str]) -> list[Encoded]:
        return self._encoded(texts)

    def _read_pairs(self, query: str, documents: Sequence[str]) -> list[Encoded]:
        return self._encoded([(query, document) for document in documents])

    def _encoded(self, given: Sequence[str | tuple[str, str]]) -> list[Encoded]:
        """In pieces: what the library keeps of each text besides is many times as large as its tokens."""
        pieces = (list(given[at : at + _PIECE]) for at in range(0, len(given), _PIECE))
        try:
            with _panics_caught():
                return [
                    Encoded(one.ids, one.type_ids) for piece in pieces for one in self._tokenizer.encode_batch(piece)
                ]
        except _Panic as error:
            raise EngineFault(
                f"the tokenizer {self._reading.tokenizer} fails at this: {error}; it is damaged, or another model's"
            ) from None


class _Panic(Exception):
    """The library's own code came to an end."""


@contextmanager
def _panics_caught() -> Iterator[None]:
    """What a file leads the library's code to is no exception to Python, but something that ends a process. Raises _Panic."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise _Panic(str(error)) from None
