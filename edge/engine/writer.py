"""One answer being written: draws tokens, turns them into text, and knows when the answer ends."""

from __future__ import annotations

from edge.engine.detok import Released, TextGate
from edge.engine.llama.context import Context
from edge.engine.llama.model import Vocabulary
from edge.engine.sampler import TokenSampler
from edge.messages import FinishReason, Submit, Token


class AnswerWriter:
    """Owner of one answer's sampler and of its text that is not sent yet."""

    def __init__(
        self,
        work: Submit,
        index: int,
        *,
        vocabulary: Vocabulary,
        sampler: TokenSampler,
        limit: int,
        visible: frozenset[int],
    ) -> None:
        self._request_id = work.request_id
        self._index = index
        self._vocabulary = vocabulary
        self.sampler = sampler
        self._gate = TextGate(work.stop)
        self._limit = limit
        self._visible = visible
        self._count = 0
        self.tokens: list[int] = []
        """All that were drawn, an end token too."""
        self.prefix = ""
        """Text that goes out with the first token (a completion's echoed prompt)."""

    def write(self, context: Context, row: int) -> tuple[int, Token]:
        """Draw the next token from a row's logits. Returns it and what to send. Raises BrokenLogits, GrammarFailed."""
        draw = self.sampler.draw(context, row)
        self.tokens.append(draw.token)
        if draw.token in self._vocabulary.end_tokens:
            return draw.token, self._message(self._gate.finish(), 0, "stop")
        self._count += 1
        visible = draw.token in self._visible
        piece = self._vocabulary.marked_piece(draw.token) if visible else self._vocabulary.piece(draw.token)
        released = self._gate.push(piece, draw.logprob)
        grammar = self.sampler.grammar
        finish: FinishReason | None = None
        if released.stopped or (grammar is not None and grammar.finished):
            finish = "stop"
        elif self._count >= self._limit:
            finish = "length"
        if finish is not None and not released.stopped:
            last = self._gate.finish()
            released = Released(released.text + last.text, released.logprobs + last.logprobs)
        return draw.token, self._message(released, 1, finish)

    def _message(self, released: Released, tokens: int, finish: FinishReason | None) -> Token:
        text, self.prefix = self.prefix + released.text, ""
        return Token(self._request_id, self._index, text, tokens, released.logprobs, finish)

    @property
    def count(self) -> int:
        """Tokens written, an end token not counted."""
        return self._count

    def close(self) -> None:
        """Free native parts."""
        self.sampler.close()
