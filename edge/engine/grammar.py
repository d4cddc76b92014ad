"""Grammars over a GGUF vocabulary: what may come next in an answer that has to be JSON or a tool call.

llguidance compiles a JSON schema or Lark grammar once per request and answers two questions per token: may this token
come next (tens of microseconds), and which may (one mask over the vocabulary, asked only when the first answer was
no). Unsupported keywords of JSON schema are refused by name, and so is what would hold up the engine; nothing fails
open.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from edge.dialects.cost import refuse_costly
from edge.dialects.reasoning import ReasoningTags
from edge.dialects.strict import tighten
from edge.dialects.tools import JSON_STYLE, GrammarSpec, UnsupportedSchema
from edge.dialects.trigger import TriggerWatch
from edge.engine.llama.model import Vocabulary

MAX_SOURCE_CHARACTERS = 256 * 1024
_MARKER = re.compile(r"@@(.+?)@@")
_EMBEDDED = re.compile(r"(?P<head>.*?)%json (?P<schema>.+)")
_LONGEST_COMPLAINT = 300
_OPEN = "the schema leaves too many names or alternatives open at one place; make some required, or give it fewer alternatives"
_TOO_MUCH = {
    "Too many items": _OPEN,
    "Current row has": _OPEN,
    "too many expressions": "a pattern in the schema can be matched in too many ways; make it simpler",
}
"""Of the compiler's words about its limits, in words that help."""
_SPECIAL = b"\xff"
"""llguidance's sign in front of a token that is no text."""
_LEAD = "\x02"
_MOST_ITEMS = 8000
"""Of the parser, in one step. So many take 25 ms on a small box, in which nobody gets a token; by itself the library goes on to
50,000, and says then that more than 2,000 at one place are too many: about 500 names that an object may begin with."""


class GrammarFailed(Exception):
    """The grammar cannot say what may come next: what was written so far may be right, what follows would be anything."""


class _Words:
    """The vocabulary in the form that llguidance's tokenizer wants."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        table = vocabulary.table()
        self._vocabulary = vocabulary
        self.eos_token_id = vocabulary.eos if vocabulary.eos >= 0 else min(vocabulary.end_tokens)
        self.bos_token_id = vocabulary.bos if vocabulary.bos >= 0 else None
        # Some files call an end token ordinary text; in a string it would end the answer in the middle.
        ends = vocabulary.end_tokens
        self.special_token_ids = [t for t, control in enumerate(table.control) if control or t in ends]
        self.tokens = list(table.pieces)
        for token in self.special_token_ids:
            self.tokens[token] = _SPECIAL + self.tokens[token]

        self._lead = self._tokenize(_LEAD)

    def __call__(self, text: str) -> list[int]:
        """Tokens of exactly this text. Some tokenizers put a space before whatever they are given: behind a character
        that joins no other they do not."""
        tokens = self._tokenize(_LEAD + text)
        behind = tokens[len(self._lead) :]
        if tokens[: len(self._lead)] == self._lead and b"".join(map(self._vocabulary.piece, behind)) == text.encode():
            return behind
        return self._longest_pieces(text.encode())

    def _longest_pieces(self, text: bytes) -> list[int]:
        """For tokenizers that change text (case, accents): the longest piece that fits, again and again."""
        special = set(self.special_token_ids)
        ids = {piece: token for token, piece in enumerate(self.tokens) if token not in special and piece}
        longest, found, at = max(map(len, ids), default=0), [], 0
        while at < len(text):
            piece = next((text[at:e] for e in range(at + longest, at, -1) if text[at:e] in ids), None)
            if piece is None:
                raise UnsupportedSchema(f"this model's vocabulary cannot write {text[at : at + 10]!r}")
            found.append(ids[piece])
            at += len(piece)
        return found

    def _tokenize(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)


class GrammarCompiler:
    """Compiles grammars for one vocabulary. Thread-safe; building the tables (about 1.5 s at 152 k) waits for the
    first use."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._limits = LLParserLimits(step_max_items=_MOST_ITEMS)

    def warm(self) -> None:
        """Build the tables now."""
        self._tables()

    def compile(
        self, spec: GrammarSpec, *, reasoning: ReasoningTags | None = None, reasoning_open: bool = False
    ) -> GrammarState:
        """A fresh state at the grammar's start. `reasoning`: tags whose content the grammar does not concern;
        `reasoning_open`: the answer begins inside them. Raises UnsupportedSchema."""
        if len(spec.source) > MAX_SOURCE_CHARACTERS:
            raise UnsupportedSchema(f"the schema has {len(spec.source)} characters; at most {MAX_SOURCE_CHARACTERS}")
        tokenizer = self._tables()
        matcher = LLMatcher(tokenizer, self._grammar(spec), limits=self._limits, log_level=0)
        _require_next(matcher)  # a schema without any instance shows itself at the first step only
        ahead = matcher.deep_copy()  # what is forced comes for certain, so what stands behind it is found out now
        ahead.consume_tokens(ahead.compute_ff_tokens())
        _require_next(ahead)
        if warnings := matcher.get_grammar_warnings():
            raise UnsupportedSchema(_complaint(" ".join(warnings)))
        watch = None
        if spec.trigger is not None or reasoning_open:
            watch = TriggerWatch(spec.trigger, lead=spec.lead, reasoning=reasoning, reasoning_open=reasoning_open)
        return GrammarState(matcher, self._vocabulary, tokenizer, watch)

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
                    refuse_costly(schema)
                    return str(LLMatcher.grammar_from_json_schema({**tighten(schema), "x-guidance": JSON_STYLE}))
                case "lark":
                    return str(LLMatcher.grammar_from_lark("\n".join(map(self._line, spec.source.split("\n")))))
        except (ValueError, RecursionError) as error:
            raise UnsupportedSchema(str(error)) from error

    def _line(self, line: str) -> str:
        """A line with its markers put in; what a client's schema says is no marker."""
        embedded = _EMBEDDED.fullmatch(line)
        if embedded is None:
            return _MARKER.sub(self._marker, line)
        schema = json.loads(embedded["schema"])
        refuse_costly(schema)
        return f"{embedded['head']}%json {json.dumps(tighten(schema))}"

    def _marker(self, found: re.Match[str]) -> str:
        """A marker as one control token where the vocabulary has it, else as plain text."""
        tokens = self._vocabulary.tokenize(found[1], add_special=False, parse_special=True)
        if len(tokens) == 1 and self._vocabulary.piece(tokens[0]) == b"":
            return f"<[{tokens[0]}]>"
        return json.dumps(found[1])


class GrammarState:
    """Where one answer stands in its grammar. Owned by the answer's sampler."""

    def __init__(
        self, matcher: LLMatcher, vocabulary: Vocabulary, tokenizer: LLTokenizer, watch: TriggerWatch | None
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer
        self._watch = watch

    @property
    def active(self) -> bool:
        """Whether the grammar constrains the next token; a lazy one waits for its trigger text."""
        return self._watch is None

    def clone(self) -> GrammarState:
        """An independent state at the same place."""
        return GrammarState(self._matcher.deep_copy(), self._vocabulary, self._tokenizer, copy.copy(self._watch))

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
        """bool[vocabulary]: which tokens may come next; at least one may. Raises GrammarFailed."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, count=self._vocabulary.size, bitorder="little").view(np.bool_)
        if not allowed.any():
            allowed[list(self._vocabulary.end_tokens)] = True
        return allowed

    def accept(self, token: int) -> None:
        """Advance over a token that was drawn. Raises GrammarFailed."""
        if self._watch is None:
            if token not in self._vocabulary.end_tokens:
                self._matcher.consume_token(token)
                self._require_sound()
            return
        rest = self._watch.feed(self._vocabulary.marked_piece(token))
        # Text of the same token behind the trigger is already written: the grammar starts after it, if it fits at all.
        if rest is not None and self._fits(rest):
            self._watch = None

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise GrammarFailed(_complaint(self._matcher.get_error()))

    def _fits(self, text: bytes) -> bool:
        if not text:
            return True
        # Not the model's own tokenizer: some put a space before whatever they are given.
        tokens = self._tokenizer.greedy_tokenize(text.decode("utf-8", "replace"))
        if self._matcher.try_consume_tokens(tokens) == len(tokens):
            return True
        self._require_sound()
        self._matcher.reset()
        return False


def _require_next(matcher: LLMatcher) -> None:
    """Find out what may come next. Raises UnsupportedSchema if that cannot be said."""
    matcher.compute_bitmask()
    if matcher.is_error():
        raise UnsupportedSchema(_complaint(matcher.get_error()))


def _complaint(text: str) -> str:
    """The first line: the rest is the compiler's state. Of a regular expression it is the last that says what is wrong."""
    if text.startswith("NoExtension"):
        return "no value can satisfy this schema"
    for sign, said in _TOO_MUCH.items():
        if sign in text:
            return said
    lines = text.strip().split("\n")
    if lines[0].startswith("regex parse error"):
        error = next((line for line in lines if line.startswith("error:")), "error: it cannot be read")
        return f"pattern: {error.removeprefix('error: ')}"[:_LONGEST_COMPLAINT]
    return (lines[0].partition(" Enable '")[0] or "the grammar cannot be compiled")[:_LONGEST_COMPLAINT]
