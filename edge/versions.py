"""State outlives a version of this program, in both directions: what a newer version wrote must not stop an older one, and must
not be lost to it (docs/state.md).

A state file has a `version`. One that an older version may read as its own, leaving out what it does not know, says so:
`readable_by` is the lowest version that may. Whoever leaves out a restriction grants too much, so only the writer can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class Fit(Enum):
    """What a state file is to this program."""

    OWN = "own"
    """Of its own version or an earlier one: read and write."""
    NEWER = "newer"
    """Of a later one, and may be read without what is not known. Writing would lose that."""
    FOREIGN = "foreign"
    """Of a later one, and is not for this program."""


def fit(version: int, readable_by: int | None, own: int) -> Fit:
    """How a file with these marks is to be treated by a program that writes version `own`."""
    if version <= own:
        return Fit.OWN
    return Fit.NEWER if readable_by is not None and readable_by <= own else Fit.FOREIGN


def fit_of(found: Mapping[str, Any], own: int, key: str = "version") -> Fit:
    """The same for a parsed file. A file without marks is of version 1; marks that are no numbers are nobody's."""
    version, readable_by = found.get(key, 1), found.get("readable_by")
    if not isinstance(version, int) or not isinstance(readable_by, int | None):
        return Fit.FOREIGN
    return fit(version, readable_by, own)


def without_unknown(found: Mapping[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """What a newer version added is left out."""
    return {key: value for key, value in found.items() if key in known}
