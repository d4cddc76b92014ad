"""Grammars over a GGUF vocabulary: what may come next in an answer that has to be JSON or a tool call.

llguidance compiles a JSON schema or Lark grammar once per request and answers two questions per token: may this token
come
next (tens of microseconds), and which may (one mask over the vocabulary, asked only when the first answer was no).
Unsupported keywords of JSON schema are refused by name; nothing fails open.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from edge.dialects.tools import JSON_STYLE, GrammarSpec, UnsupportedSchema
from edge.engine.llama.model import Vocabulary

MAX_SOURCE_CHARACTERS = 256 * 1024
_MARKER = re.compile(r"@@(.+?)@@")
_LONGEST_COMPLAINT = 300
_SPECIAL = b"\xff"
"""llguidance's sign in front of a token that is no text."""


class _Words:
    """The vocabulary in the form that llguidance's tokenizer wants."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        table = vocabulary.table()
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.eos if vocabulary.eos >= 0 else min(vocabulary.end_tokens)
        self.bos_token_id = vocabulary.bos if vocabulary.bos >= 0 else None
        self.special_token_ids = [t for t, control in enumerate(table.control) if control]
        self.tokens = [_SPECIAL + p if c else p for p, c in zip(table.pieces, table.control, strict=True)]

    def __call__(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe; building the tables (about 1.5 s at 152 k) waits for the
    first use."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._limits = LLParserLimits()

    def warm(self) -> None:
        """Build the tables now."""
        self._tables()

    def compile(self, spec: GrammarSpec) -> GrammarState:
        """A fresh state at the grammar's start. Raises UnsupportedSchema."""
        if len(spec.source) > MAX_SOURCE_CHARACTERS:
            raise UnsupportedSchema(f"the schema has {len(spec.source)} characters; at most {MAX_SOURCE_CHARACTERS}")
        tokenizer = self._tables()
        grammar = self._grammar(spec)
        error, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer, limits=self._limits)
        if error or messages:
            raise UnsupportedSchema(_in_one_line(messages))
        matcher = LLMatcher(tokenizer, grammar, limits=self._limits, log_level=0)
        if matcher.is_error():
            raise UnsupportedSchema(_in_one_line([matcher.get_error()]))
        return GrammarState(matcher, self._vocabulary, tokenizer, spec.trigger)

    def _tables(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                words = _Words(self._vocabulary)
                ends = sorted(self._vocabulary.end_tokens)
                self._tokenizer = LLTokenizer(TokenizerWrapper(words), eos_token=ends, slices=LLTokenizer.json_slices())
            return self._tokenizer

    def _grammar(self, spec: GrammarSpec) -> str:
        try:
            match spec.kind:
                case "json_schema":
                    schema: Any = json.loads(spec.source)
                    if not isinstance(schema, dict):
                        raise UnsupportedSchema("a JSON schema must be an object")
                    return str(LLMatcher.grammar_from_json_schema({**schema, "x-guidance": JSON_STYLE}))
                case "lark":
                    return str(LLMatcher.grammar_from_lark(_MARKER.sub(self._marker, spec.source)))
        except (ValueError, RecursionError) as error:
            raise UnsupportedSchema(str(error)) from error

    def _marker(self, found: re.Match[str]) -> str:
        """A marker as one control token where the vocabulary has it, else as plain text."""
        tokens = self._vocabulary.tokenize(found[1], add_special=False, parse_special=True)
        if len(tokens) == 1 and self._vocabulary.piece(tokens[0]) == b"":
            return f"<[{tokens[0]}]>"
        return json.dumps(found[1])


class GrammarState:
    """Where one answer stands in its grammar. Owned by the answer's sampler."""

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, tokenizer: LLTokenizer, trigger: str | None) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._trigger = trigger.encode() if trigger is not None else None
        self._tail = b""
        self.active = trigger is None
        """Whether the grammar constrains the next token; a lazy one waits for its trigger text."""

    def clone(self) -> GrammarState:
        """An independent state at the same place."""
        trigger = self._trigger.decode() if self._trigger is not None else None
        copy = GrammarState(self._matcher.deep_copy(), self._vocabulary, self._tokenizer, trigger)
        copy.active, copy._tail = self.active, self._tail
        return copy

    @property
    def finished(self) -> bool:
        """Nothing but the end may follow."""
        return bool(self.active and self._matcher.is_stopped())

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if token in self._vocabulary.end_tokens:
            return bool(self._matcher.is_accepting())
        return bool(self._matcher.validate_tokens([token]) == 1)

    def mask(self) -> np.ndarray:
        """bool[vocabulary]: which tokens may come next; at least one may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary.size].astype(bool)
        if not allowed.any():
            allowed[list(self._vocabulary.end_tokens)] = True
        return allowed

    def accept(self, token: int) -> None:
        """Advance over a token that was drawn."""
        if self.active:
            if token not in self._vocabulary.end_tokens:
                self._matcher.consume_token(token)
            return
        assert self._trigger is not None
        self._tail += self._vocabulary.marked_piece(token)
        at = self._tail.find(self._trigger)
        if at < 0:
            self._tail = self._tail[-len(self._trigger) :]
            return
        rest = self._tail[at + len(self._trigger) :]
        self._tail = b""
        # Text of the same token behind the trigger is already written: the grammar starts after it, if it fits at all.
        self.active = not rest or self._matcher.consume_tokens(self._tokenizer.tokenize_bytes(rest))
        if not self.active:
            self._matcher.reset()


def _in_one_line(messages: list[str]) -> str:
    text = " ".join(" ".join(messages).split()) or "the grammar cannot be compiled"
    return text[:_LONGEST_COMPLAINT]
