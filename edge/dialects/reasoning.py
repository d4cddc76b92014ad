"""Reasoning tags: text that a model thinks before it answers, told apart from the answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """What opens and what closes reasoning text."""

    open: str
    close: str


KNOWN = (
    ReasoningTags("<think>", "</think>"),
    ReasoningTags("[THINK]", "[/THINK]"),
    ReasoningTags("<seed:think>", "</seed:think>"),
)


def detect_reasoning(template_source: str) -> ReasoningTags | None:
    """The tags that a chat template knows, None for models that do not reason in tags."""
    return next((tags for tags in KNOWN if tags.close in template_source), None)


def prompt_opens_reasoning(prompt: str, tags: ReasoningTags) -> bool:
    """Whether a rendered prompt ends inside reasoning tags, so that the answer begins with reasoning."""
    return prompt.rstrip().endswith(tags.open)
