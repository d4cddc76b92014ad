"""Text of others, as a terminal or a page may show it."""

from __future__ import annotations


def printable(text: str) -> str:
    """Without what is no letter, sign or space: a terminal may take it for a command."""
    return "".join(letter for letter in text if letter.isprintable())
