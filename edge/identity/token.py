"""The enrollment token: what a bare box needs to find out whom to trust, and to be let in.

`E10<sha256 of the root certificate's DER, hex>::<token id>:<secret>`. The hash pins the fleet's CA before anything is trusted;
id and secret are name and password of HTTP Basic (RFC 7030, section 3.2.3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from edge.errors import ConfigurationError

_FORM = re.compile(r"E10([0-9a-f]{64})::([a-z0-9]{4,32}):([A-Za-z0-9_\-]{16,128})")


@dataclass(frozen=True, slots=True)
class EnrollmentToken:
    """One token, taken apart. The secret has no repr, so that no log carries it."""

    root_sha256: str
    """Of the DER bytes of the fleet's root certificate; 64 hexadecimal digits, lower case."""
    id: str
    secret: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> EnrollmentToken:
        """Raises ConfigurationError; the message does not repeat what was given."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ConfigurationError(
                "that is no enrollment token: it begins with E10 and is one line of the form "
                "E10<hash>::<id>:<secret>; copy it whole from `edge fleet token create`"
            )
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"E10{self.root_sha256}::{self.id}:{self.secret}"
