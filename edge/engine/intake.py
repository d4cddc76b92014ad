"""From a Submit to a Request: render, tokenise, check. Runs in the reader thread, while the loop decodes."""

from __future__ import annotations

from dataclasses import dataclass

from edge.dialects.reasoning import ReasoningTags, detect_reasoning, prompt_opens_reasoning
from edge.dialects.template import ChatTemplate, TemplateError
from edge.dialects.tools import UnsupportedSchema as GrammarRefused
from edge.engine.grammar import GrammarCompiler, GrammarState
from edge.engine.llama.model import Vocabulary
from edge.engine.sampler import TokenSampler
from edge.engine.sequence import Request, Sequence
from edge.engine.shortlist import Shortlist
from edge.engine.writer import AnswerWriter
from edge.errors import ContextLengthExceeded, InvalidRequest, UnsupportedParameter, UnsupportedSchema
from edge.messages import MOST_PIECES, ChatPrompt, Prompt, Submit, TextPrompt, TokenPrompt


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt's tokens, and whether its rendered text ended inside reasoning tags."""

    tokens: list[int]
    reasoning_open: bool = False


class Intake:
    """Owner of the chat template and the grammar compiler of one model."""

    def __init__(self, vocabulary: Vocabulary, template: ChatTemplate, source: str, *, context_tokens: int) -> None:
        self._vocabulary = vocabulary
        self._template = template
        self._reasoning: ReasoningTags | None = detect_reasoning(source)
        self._context_tokens = context_tokens
        self._shortlist = Shortlist(vocabulary.size)
        self.grammars = GrammarCompiler(vocabulary)

    def tokenize(self, prompt: Prompt, *, add_special: bool = True) -> Tokens:
        """Tokens of a prompt. Raises InvalidRequest."""
        match prompt:
            case TokenPrompt(tokens=tokens):
                for token in tokens:
                    if not 0 <= token < self._vocabulary.size:
                        limit = self._vocabulary.size - 1
                        raise InvalidRequest(
                            f"token {token} is not in this model's vocabulary (0 to {limit})", param="prompt"
                        )
                return Tokens(tokens)
            case TextPrompt(text=text):
                return Tokens(self._vocabulary.tokenize(text, add_special=add_special, parse_special=False))
            case ChatPrompt():
                return self._render(prompt, add_special=add_special)

    def _render(self, prompt: ChatPrompt, *, add_special: bool) -> Tokens:
        try:
            text = self._template.render(
                prompt.messages,
                tools=prompt.tools,
                add_generation_prompt=prompt.add_generation_prompt,
                continue_final=prompt.continue_final,
                kwargs=prompt.template_kwargs,
            )
        except TemplateError as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        bos = (
            self._vocabulary.marked_piece(self._vocabulary.bos).decode("utf-8", "replace")
            if self._vocabulary.bos >= 0
            else ""
        )
        # Templates that write the BOS token themselves must not get a second one.
        add = add_special and not (bos and text.startswith(bos))
        tokens = self._vocabulary.tokenize(text, add_special=add, parse_special=True)
        opened = self._reasoning is not None and prompt_opens_reasoning(text, self._reasoning)
        return Tokens(tokens, opened)

    def pieces(self, tokens: list[int]) -> list[bytes]:
        """Each token's bytes, control tokens spelled out. Raises InvalidRequest for more than are told at a time."""
        if len(tokens) > MOST_PIECES:
            raise InvalidRequest(
                f"the text has {len(tokens)} tokens, and `with_pieces` goes with {MOST_PIECES} at most; send it in parts",
                param="with_pieces",
            )
        return [self._vocabulary.marked_piece(token) for token in tokens]

    def detokenize(self, tokens: list[int]) -> str:
        """Text of tokens, control tokens spelled out. Raises InvalidRequest."""
        self.tokenize(TokenPrompt(tokens))
        return self._vocabulary.detokenize(tokens)

    def accept(self, work: Submit, received_s: float) -> tuple[Request, Tokens]:
        """Check a Submit and make it a Request. Raises InvalidRequest and its kinds."""
        prompt = self.tokenize(work.prompt)
        count = len(prompt.tokens)
        if count == 0:
            raise InvalidRequest("the prompt is empty", param="prompt")
        if count >= self._context_tokens:
            raise ContextLengthExceeded(
                f"the prompt has {count} tokens; this model's context holds {self._context_tokens}, "
                "the answer included. Shorten the prompt; nothing is cut off silently",
                param="messages" if isinstance(work.prompt, ChatPrompt) else "prompt",
            )
        for token in work.sampling.logit_bias:
            if not 0 <= token < self._vocabulary.size:
                raise InvalidRequest(f"token {token} is not in this model's vocabulary", param="logit_bias")
        room = self._context_tokens - count
        limit = room if work.max_tokens is None else min(work.max_tokens, room)
        request = Request(work, prompt.tokens, limit, received_s, work.arrived_s or received_s)
        grammar = self._grammar(work, prompt)
        visible = self._visible(work.visible_tokens)
        for index in range(work.n):
            request.sequences.append(self._sequence(request, index, grammar, visible))
        return request, prompt

    def _grammar(self, work: Submit, prompt: Tokens) -> GrammarState | None:
        if work.grammar is None:
            return None
        if work.ignore_eos:
            raise UnsupportedParameter(
                "ignore_eos contradicts a grammar: the answer must be able to end", param="ignore_eos"
            )
        try:
            return self.grammars.compile(work.grammar, reasoning=self._reasoning, reasoning_open=prompt.reasoning_open)
        except GrammarRefused as error:
            param = "response_format" if work.grammar.kind == "json_schema" else "tools"
            raise UnsupportedSchema(str(error), param=param) from error

    def _sequence(
        self, request: Request, index: int, grammar: GrammarState | None, visible: frozenset[int]
    ) -> Sequence:
        work = request.work
        own = grammar.clone() if grammar is not None and index > 0 else grammar
        sampler = TokenSampler(
            self._vocabulary,
            work.sampling,
            index=index,
            grammar=own,
            ignore_eos=work.ignore_eos,
            top_logprobs=work.top_logprobs,
            shortlist=self._shortlist,
        )
        writer = AnswerWriter(
            work, index, vocabulary=self._vocabulary, sampler=sampler, limit=request.limit, visible=visible
        )
        if work.echo:
            writer.prefix = self._vocabulary.detokenize(list(request.tokens))
        return Sequence(request, index, writer)

    def _visible(self, texts: tuple[str, ...]) -> frozenset[int]:
        """Ids of those texts that are single tokens of this vocabulary; others reach the answer as plain text
        anyway."""
        found = [self._vocabulary.tokenize(t, add_special=False, parse_special=True) for t in texts]
        return frozenset(tokens[0] for tokens in found if len(tokens) == 1)
