"""Where an answer that one server began is joined to what another says: nothing missing, nothing twice. Pure."""

from __future__ import annotations

from edge.errors import FleetUnavailable

LEAST_SENT = 32
"""An answer of which less was sent is begun anew: so little can be repeated by chance."""
_CHANCE = 16
"""A continuation may begin like the answer itself for so many characters, and still be one."""


class Seam:
    """Takes what comes from the second server, gives what is to be sent on.

    `anew`: it was asked for the whole answer, and must repeat what was sent. Else it was asked to go on, but may not have
    understood, and begin anew all the same, or repeat what it was given first (llama-server without `continue_final_message`
    does). `tail`: white space at the end of `sent` that it was not given, since templates cut it off: it may come once more.
    """

    def __init__(self, sent: str, *, anew: bool, tail: str = "") -> None:
        self._sent = sent
        self._tail = tail
        self._anew = anew
        self._held = ""
        self._joined = not sent
        self.repeated = False
        """It repeated what was sent, and that was left out."""

    def feed(self, text: str) -> str:
        """What of it is to be sent now. Raises FleetUnavailable if it is another answer."""
        if self._joined:
            return self._without_tail(text)
        self._held += text
        same = _common(self._held, self._sent)
        if same == len(self._sent):
            self._joined = self.repeated = True
            return self._held[same:]
        if same == len(self._held):
            return ""
        if self._anew or same >= _CHANCE:
            raise FleetUnavailable("the engine failed, and the fleet's answer is another one")
        self._joined = True
        return self._without_tail(self._held)

    def _without_tail(self, text: str) -> str:
        if not self._tail or not text or self.repeated:
            return text
        same = _common(text, self._tail)
        self._tail = self._tail[same:] if same == len(text) else ""
        return text[same:]

    def end(self) -> str:
        """The second server is done: what was held back. Raises FleetUnavailable if it never came to where the first was."""
        if self._joined:
            return ""
        if self._anew or len(self._held) >= _CHANCE:
            raise FleetUnavailable("the engine failed, and the fleet's answer is shorter")
        self._joined = True
        return self._without_tail(self._held)


def _common(one: str, other: str) -> int:
    """Length of the common beginning."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return min(len(one), len(other))
