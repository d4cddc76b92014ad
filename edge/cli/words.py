"""Sentences about a loaded model that more than one command says."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

from edge.quantities import count, size

if TYPE_CHECKING:
    from edge.messages import ModelFacts
    from edge.registry.resolve import ResolvedModel


def promise(facts: ModelFacts, ttft_ms: float, itl_ms: float, *, promises: bool) -> str:
    """What a node admits while it is idle."""
    if not promises:
        return "none: admission.mode is off"
    bounds = f"first token within {ttft_ms:g} ms, the next ones within {itl_ms:g} ms"
    if facts.admits_tokens == 0 or facts.admits_streams == 0:
        return f"none: this model is too slow here for {bounds}; use a smaller one, or larger targets in [slo]"
    share = "" if facts.caches_prefixes else "; this model's memory cannot be shared, so every prompt counts whole"
    return (
        f"{bounds}, for new prompts of up to {facts.admits_tokens:,} tokens and "
        f"{count(facts.admits_streams, 'answer')} at a time{share}"
    )


def of_header(model: ResolvedModel, where: str = "") -> str:
    """Which model, how large, from where; by its file's header."""
    header = model.header
    name = f"{header.name}, " if header.name and header.name != model.name else ""
    size_and_place = f"{size(header.file_bytes)}, {where or model.path}"
    return f"{name}{header.parameters / 1e6:,.1f} M parameters, {header.quantization}, {size_and_place}"


def runs_on(facts: ModelFacts) -> str:
    """Device, threads, slots and context."""
    return (
        f"{facts.device}, {count(facts.threads, 'thread')}, {count(facts.slots, 'answer')} at a time, "
        f"{facts.context_tokens:,} tokens each"
    )


def native_memory(facts: ModelFacts) -> str:
    """What libllama allocated."""
    return f"weights {size(facts.model_bytes)}, attention {size(facts.kv_bytes)}, compute {size(facts.compute_bytes)}"


def called(program: str, *, on_path: bool) -> str:
    """How a shell in this directory calls `edge`, which `make serve` runs from an environment that is not on the path."""
    named = not on_path and os.path.basename(program) == "edge"
    return shlex.quote(program) if named else "edge"
