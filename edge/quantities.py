"""Counts and sizes as people read them."""

from __future__ import annotations


def count(number: int, noun: str) -> str:
    """`1 answer`, `2 answers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def size(count_bytes: int) -> str:
    """Bytes in the unit that suits."""
    for unit, factor, digits in (("GB", 1e9, 2), ("MB", 1e6, 1), ("kB", 1e3, 1)):
        if count_bytes >= factor:
            return f"{count_bytes / factor:.{digits}f} {unit}"
    return count(count_bytes, "byte")


def mib(count_bytes: int) -> str:
    """Bytes in whole MiB, rounded up: memory that is needed."""
    return f"{-(-count_bytes // 2**20):,} MiB"
