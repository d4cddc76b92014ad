"""A query and a document in one text, as rerankers in GGUF files read them, and what their scores mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from llama_cpp import llama_cpp as ll

from edge.engine.llama.model import Model
from edge.errors import ModelUnusable

_SHARING = "qwen3"
"""Architectures whose graph in the library ends with shares."""
_PLACES = re.compile(r"\{(query|document)\}")


class PairWriter:
    """By the template for it in the file if there is one, such as Qwen3's; else as BERT and its kin have it."""

    def __init__(self, model: Model) -> None:
        """Raises ModelUnusable for a template without a place for both."""
        self._model, self._vocabulary = model, model.vocabulary
        vocab = ll.llama_model_get_vocab(model.handle)
        end, part = ll.llama_vocab_eos(vocab), ll.llama_vocab_sep(vocab)
        self._begin = [self._vocabulary.bos] if self._vocabulary.adds_bos else []
        closes = [end if end >= 0 else part] if ll.llama_vocab_get_add_eos(vocab) else []
        parts = [part] if ll.llama_vocab_get_add_sep(vocab) and part >= 0 else []
        self._between, self._end = [*closes, *parts], closes or parts
        source = ll.llama_model_chat_template(model.handle, b"rerank")
        self._template = source.decode("utf-8", "replace") if source is not None else ""
        if self._template and {"query", "document"} != set(_PLACES.findall(self._template)):
            raise ModelUnusable("the file's template for pairs has no place for {query} and {document}")
        self._markers = self._marks() if self._template else None
        labels = [ll.llama_model_cls_label(model.handle, n) for n in range(ll.llama_model_n_cls_out(model.handle))]
        self._labels = [label.decode("utf-8", "replace").lower() if label is not None else "" for label in labels]
        self.yes = self._labels.index("yes") if "yes" in self._labels else 0
        self.shares = len(self._labels) == 2
        """The model's scores are shares of yes and no already, not one logit."""

    def require_scores(self, width: int) -> None:
        """Raises ModelUnusable unless the model gives one logit, or shares of yes and no."""
        shares = sorted(self._labels) == ["no", "yes"] and self._model.description.startswith(_SHARING)
        if width == 1 or (width == 2 and shares):
            return
        raise ModelUnusable(
            f"the model gives {width} scores for a pair ({', '.join(self._labels) or 'without names'}); a reranker gives one, or "
            "those of yes and no"
        )

    def written(self, query: str, documents: Sequence[str]) -> Iterator[list[int]]:
        """Tokens of each pair."""
        if self._template:
            yield from (self._filled_in(query, document) for document in documents)
            return
        first = self._plain(query)
        for document in documents:
            yield [*self._begin, *first, *self._between, *self._plain(document), *self._end]

    def _plain(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _filled_in(self, query: str, document: str) -> list[int]:
        """The whole as one text, since words join what stands before them."""
        given = {"query": self._harmless(query), "document": self._harmless(document)}
        text = _PLACES.sub(lambda place: given[place[1]], self._template)
        return self._vocabulary.tokenize(text, add_special=True, parse_special=True)

    def _harmless(self, text: str) -> str:
        """Marks of the template's kind that a client wrote are no marks: a document must not end the question by itself."""
        return self._markers.sub(lambda mark: f"{mark[0][:1]} {mark[0][1:]}", text) if self._markers else text

    def _marks(self) -> re.Pattern[str] | None:
        table = self._vocabulary.table()
        marks = [
            piece.decode("utf-8", "replace")
            for piece, marker in zip(table.pieces, table.markers, strict=True)
            if marker and len(piece) > 1
        ]
        return re.compile("|".join(re.escape(mark) for mark in marks)) if marks else None
