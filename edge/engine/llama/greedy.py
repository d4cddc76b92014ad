"""Greedy answers, one after the other: what a model says when nothing is left to chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge.engine.llama.context import Context, ContextShape
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model

_PASS_TOKENS = 512


class Greedy:
    """Answers of one model. `visible`: texts whose control tokens belong into the answer, as markers of tool calls do."""

    def __init__(
        self, library: Library, model: Model, *, context_tokens: int, threads: int, visible: Sequence[str] = ()
    ) -> None:
        self._words = model.vocabulary
        self._room = context_tokens
        found = [self._words.tokenize(text, add_special=False, parse_special=True) for text in visible]
        self._visible = frozenset(tokens[0] for tokens in found if len(tokens) == 1)
        shape = ContextShape(
            slots=1,
            context_tokens=context_tokens,
            chunk_tokens=min(_PASS_TOKENS, context_tokens),
            threads=threads,
            unified=False,
            kv_type="f16",
            flash_attention="auto",
        )
        self._context = Context(library, model, shape)

    def answer(self, prompt: Sequence[int], most_tokens: int) -> str:
        """The text up to an end token, `most_tokens` or the end of the context. The prompt must leave room for one token.
        Raises ForwardFailed."""
        row = self._read(prompt)
        text, position = b"", len(prompt)
        for _ in range(min(most_tokens, self._room - len(prompt))):
            token = int(np.argmax(self._context.logits(row)))
            if token in self._words.end_tokens:
                break
            text += self._words.marked_piece(token) if token in self._visible else self._words.piece(token)
            self._context.forward([token], [position], [0], [True])
            row, position = 0, position + 1
        return text.decode("utf-8", "replace")

    def _read(self, prompt: Sequence[int]) -> int:
        """Compute the prompt; gives the row of its last token."""
        self._context.forget(0)
        step = self._context.rows_limit
        for start in range(0, len(prompt), step):
            part = prompt[start : start + step]
            last = start + len(part) == len(prompt)
            outputs = [False] * (len(part) - 1) + [last]
            self._context.forward(part, range(start, start + len(part)), [0] * len(part), outputs)
        return len(part) - 1

    def close(self) -> None:
        """Free native memory."""
        self._context.close()
