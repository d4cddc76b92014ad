"""A model that reads texts: every position's logits, in passes of bounded size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from edge.engine.llama.context import Context, ContextShape, Logits
from edge.engine.llama.library import Library
from edge.engine.llama.model import Model

_LOGITS_BYTES = 48 << 20
_LEAST_ROWS, _MOST_ROWS = 16, 256


def rows_of_a_pass(vocabulary: int) -> int:
    """Positions that are computed at a time: their logits take at most 48 MiB, less than 100 positions of 152,000 tokens."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, _LOGITS_BYTES // (4 * vocabulary)))


class ReadingContext:
    """One sequence of at most `context_tokens` positions, all with logits. Raises ModelUnusable when memory does not suffice."""

    def __init__(
        self,
        library: Library,
        model: Model,
        *,
        context_tokens: int,
        threads: int,
        observer: Callable[[int, bool], bool] | None = None,
        most_rows: int = _MOST_ROWS,
    ) -> None:
        self._rows = min(rows_of_a_pass(model.vocabulary.size), context_tokens, most_rows)
        shape = ContextShape(
            slots=1,
            context_tokens=context_tokens,
            chunk_tokens=self._rows,
            threads=threads,
            unified=False,
            kv_type="f16",
            flash_attention="auto",
            outputs=self._rows,
        )
        self._context = Context(library, model, shape, observer)

    def read(self, tokens: Sequence[int]) -> Iterator[range]:
        """Compute a text from its beginning, pass by pass; gives the positions whose logits `logits` has until the next step.
        Raises ForwardFailed."""
        self._context.forget(0)
        self._first = 0
        for start in range(0, len(tokens), self._rows):
            part = tokens[start : start + self._rows]
            positions = range(start, start + len(part))
            self._context.forward(part, positions, [0] * len(part), [True] * len(part))
            self._first = start
            yield positions

    def logits(self, position: int) -> Logits:
        """Logits at a position of the last pass, a view that the next pass overwrites."""
        return self._context.logits(position - self._first)

    def close(self) -> None:
        """Free native memory."""
        self._context.close()
