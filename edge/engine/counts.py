"""What an engine has counted, over all children that it had. A child begins at zero; a total that is sent must never fall."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals. Those of a language model's engine and of one that answers with numbers; what an engine does not count is 0."""

    cache_hits: int = 0
    cache_evictions: int = 0
    cached_tokens: int = 0
    texts: int = 0
    passes: int = 0
    restarts: int = 0
    reductions: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Counts)))
