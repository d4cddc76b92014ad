"""Texts as models take them: what is read into tokens, and what is refused before a model sees it. Nothing native."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from edge.errors import ContextLengthExceeded, InvalidRequest
from edge.onnx.messages import Kind, Reading, Text

_LONGEST_TOKEN, _LEAST_LONG = 64, 4096
"""Characters: of a token, and what any text may have."""


class Encoded:
    """One text as the model takes it."""

    __slots__ = ("tokens", "types")

    def __init__(self, tokens: list[int], types: list[int]) -> None:
        self.tokens = tokens
        self.types = types


class TextReader(ABC):
    """The tokenizer of one model. Any thread may read."""

    def __init__(self, reading: Reading, vocabulary: int, pad: int) -> None:
        """`vocabulary`: how many tokens there are; `pad`: the one that fills up."""
        self._reading = reading
        self.max_tokens = reading.max_tokens
        self.vocabulary, self.pad = vocabulary, pad

    @abstractmethod
    def _read(self, texts: Sequence[str]) -> list[Encoded]:
        """Texts with the special tokens that belong around them."""

    @abstractmethod
    def _read_pairs(self, query: str, documents: Sequence[str]) -> list[Encoded]:
        """Query and document in one text each."""

    def texts(self, texts: Sequence[Text], kind: Kind = "", param: str = "input") -> list[Encoded]:
        """Raises InvalidRequest, ContextLengthExceeded with the text's place."""
        self._require_readable(texts, param)
        prompt = {"": "", "query": self._reading.query_prompt, "document": self._reading.document_prompt}[kind]
        words = [prompt + text for text in texts if isinstance(text, str)]
        read = iter(self._read(words))
        encoded: list[Encoded] = []
        for text in texts:
            found = next(read) if isinstance(text, str) else Encoded(text, [0] * len(text))
            encoded.append(self._checked(found, len(encoded), param))
        return encoded

    def pairs(self, query: str, documents: Sequence[str]) -> list[Encoded]:
        """Query and document in one text each. Raises as `texts`."""
        self._require_readable([query], "query")
        self._require_readable(documents, "documents")
        read = self._read_pairs(query, documents)
        return [self._checked(found, number, "documents") for number, found in enumerate(read)]

    def filler(self, length: int) -> list[int]:
        """Any text of so many tokens, for trials."""
        return [self.pad] * length

    def _require_readable(self, texts: Sequence[Text], param: str) -> None:
        """Raises ContextLengthExceeded for a text that is far too long: to count its tokens costs more than to read it."""
        most = self.max_tokens * _LONGEST_TOKEN + _LEAST_LONG
        for number, text in enumerate(texts):
            if len(text) > most:
                raise ContextLengthExceeded(
                    f"text {number} has {len(text):,} characters, and the model reads {self.max_tokens:,} tokens; shorten it",
                    param=param,
                )

    def _checked(self, found: Encoded, number: int, param: str) -> Encoded:
        tokens, most = found.tokens, self.max_tokens
        if len(tokens) > most:
            raise ContextLengthExceeded(
                f"text {number} has {len(tokens):,} tokens, and the model reads {most:,}; shorten it", param=param
            )
        if not tokens or min(tokens) < 0 or max(tokens) >= self.vocabulary:
            raise InvalidRequest(
                f"text {number} is empty, or has a token that the vocabulary of {self.vocabulary:,} has not",
                param=param,
            )
        return found
