"""How schemathesis writes a certificate request's body: as it is."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/pkcs10")
def pkcs10(context: Any, value: Any) -> bytes:
    """The body is text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
