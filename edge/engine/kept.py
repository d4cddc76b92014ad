"""Beginnings of prompts that outlive the process: pinned by the settings, or worth keeping when the engine last stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from edge.engine.llama.context import Context, Saved
from edge.engine.prefix import Prefix, PrefixCache
from edge.engine.statefiles import StateFiles
from edge.errors import EdgeError, ModelUnusable
from edge.messages import Load, Prompt


class Tokenizer(Protocol):
    """Makes tokens of a prompt, as for a request."""

    def __call__(self, prompt: Prompt) -> list[int]:
        """Raises EdgeError."""
        ...


class KeptPrefixes:
    """Fills the prefix cache at load, and writes down what is worth it at the end. Runs while nothing else does."""

    def __init__(
        self, context: Context, cache: PrefixCache, files: StateFiles, load: Load, recompute_s: Callable[[int], float]
    ) -> None:
        self._context = context
        self._cache = cache
        self._files = files
        self._load = load
        self._recompute_s = recompute_s

    # --- pinned -------------------------------------------------------------------------------------------------------

    def pin(self, tokenize: Tokenizer, on_progress: Callable[[float], None]) -> None:
        """Compute, or take from disk, the beginnings that are never given up. Raises ModelUnusable if they do not fit."""
        pinned = [self._pinnable(number, prompt, tokenize) for number, prompt in enumerate(self._load.pinned, 1)]
        self._files.keep_only(pinned)
        if not self._cache.enabled:
            return
        self._require_cells(sum(map(len, pinned)))
        for number, tokens in enumerate(pinned):
            on_progress(number / len(pinned))
            saved = self._from_disk(tokens) or self._computed(tokens)
            self._adopt(tokens, "", saved, pinned=True)
            self._require_room(number + 1, len(pinned))

    def _pinnable(self, number: int, prompt: Prompt, tokenize: Tokenizer) -> list[int]:
        try:
            tokens = tokenize(prompt)
        except EdgeError as error:
            raise ModelUnusable(f"entry {number} of cache.pinned_file: {error.message}") from None
        if len(tokens) >= self._context.shape.context_tokens:
            raise ModelUnusable(f"entry {number} of cache.pinned_file has {len(tokens)} tokens, more than the context")
        return tokens

    def _require_cells(self, pinned_tokens: int) -> None:
        """In the unified layout pinned cells are taken from everybody's: one whole context at least must be left."""
        shape = self._context.shape
        most = (shape.slots - 1) * shape.context_tokens
        if shape.unified and pinned_tokens > most:
            raise ModelUnusable(
                f"the prompts of cache.pinned_file have {pinned_tokens:,} tokens; with engine.kv_layout unified there is "
                f"room for {most:,}: pin fewer, or set it to streams"
            )

    def _require_room(self, done: int, of: int) -> None:
        """Asked after each: the memory for all of them may not be there."""
        if (kept := self._cache.saved_bytes) > self._load.cache_bytes:
            which = "the prompts" if done == of else f"the first {done} of {of} prompts"
            raise ModelUnusable(
                f"{which} of cache.pinned_file need {kept / 2**20:,.1f} MiB, and the saved beginnings have "
                f"{self._load.cache_bytes / 2**20:,.1f} (cache.host_mib, less where memory is short); raise it, or pin fewer"
            )

    def _from_disk(self, tokens: list[int]) -> Saved | None:
        if self._context.shape.unified:
            return None
        state = self._files.read_cells(tokens)
        return self._tried(Saved(len(state), state=state), len(tokens)) if state is not None else None

    def _computed(self, tokens: list[int]) -> Saved:
        context, most = self._context, self._context.rows_limit
        for start in range(0, len(tokens), most):
            part = tokens[start : start + most]
            places = list(range(start, start + len(part)))
            context.forward(part, places, [0] * len(part), [False] * len(part))
        saved = context.save(0, len(tokens))
        context.forget(0)
        if saved is None:
            raise ModelUnusable("no room for another pinned prompt; make cache.pinned_file shorter")
        if saved.state is not None:
            self._files.write_cells(tokens, saved.state)
            self._files.complain("the next start computes it anew")
        return saved

    # --- over a restart -----------------------------------------------------------------------------------------------

    def recall(self) -> int:
        """Take back what was kept at the last stop, as far as it fits. Returns how many beginnings that are."""
        recalled = 0
        self._files.tidy()
        if not self._cache.enabled or self._context.shape.unified or not self._load.kept_bytes:
            self._files.keep_only_prefixes([])
            return 0
        room = min(self._load.cache_bytes - self._cache.saved_bytes, self._load.kept_bytes)
        for kept in self._files.read_prefixes(room):
            if bool(kept.owner) > self._load.isolate_keys or len(kept.tokens) >= self._context.shape.context_tokens:
                continue
            saved = self._tried(Saved(len(kept.state), state=kept.state), len(kept.tokens))
            if saved is not None:
                self._adopt(kept.tokens, kept.owner, saved, pinned=False)
                recalled += 1
        return recalled

    def write_down(self) -> None:
        """Keep the beginnings that would take longest to compute again, up to `kept_bytes`. The engine has nothing to do."""
        room = self._load.kept_bytes
        if not room or not self._cache.enabled or self._context.shape.unified:
            return
        chosen: list[Prefix] = []
        for prefix in self._cache.by_worth():
            size = self._context.saved_bytes(prefix.slot) if prefix.slot >= 0 else prefix.saved_bytes
            if not prefix.pinned and not prefix.live and size <= room:
                room -= size
                chosen.append(prefix)
        self._files.keep_only_prefixes([(prefix.tokens, prefix.namespace) for prefix in chosen])
        for prefix in chosen:  # one at a time: there is no memory for copies of all slots
            saved = self._context.save(prefix.slot, prefix.computed) if prefix.slot >= 0 else prefix.saved
            if saved is None or saved.state is None:
                continue
            self._files.write_prefix(prefix.tokens, prefix.namespace, saved.state)
            if self._files.complain("it is computed anew after the restart"):
                return

    # --- parts --------------------------------------------------------------------------------------------------------

    def _tried(self, saved: Saved, tokens: int) -> Saved | None:
        """Cells kept by an earlier start, tried out in a slot: what libllama does not take is not used."""
        taken = self._context.restore(saved, 0) and self._context.length(0) == tokens
        self._context.forget(0)
        return saved if taken else None

    def _adopt(self, tokens: list[int], owner: str, saved: Saved, *, pinned: bool) -> None:
        freed = self._cache.adopt(
            tokens, owner, saved, saved.size_bytes, pinned=pinned, recompute_s=self._recompute_s(len(tokens))
        )
        for old in freed:
            self._context.release(old)
