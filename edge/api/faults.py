"""What a client is told of a body that pydantic refuses: one fault, in words of the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.errors import InvalidRequest

_BRANCHES = frozenset({"str", "NamedTool", "RerankText"})


def invalid_body(errors: Sequence[Any]) -> InvalidRequest:
    """The error for pydantic's. Of a field that may be several things it tells what comes nearest to what was meant: seventeen
    stop strings are too many, and not "no string"."""
    fault = max(errors, key=lambda error: (not error["type"].endswith("_type"), len(error["loc"])))
    where = [str(part) for part in fault["loc"] if part != "body" and not _is_branch(part)]
    param = ".".join(where) or None
    return InvalidRequest(f"{f'`{param}`' if param else 'the body'}: {fault['msg']}", param=param)


def _is_branch(part: object) -> bool:
    """pydantic names the branch of a union in an error's place; clients know nothing of those."""
    return isinstance(part, str) and (not part.replace("_", "").isalnum() or part in _BRANCHES or "[" in part)
