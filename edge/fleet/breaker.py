"""When an upstream is left alone, and when it is tried again. Pure: time comes in as an argument.

A circuit breaker (Nygard, Release It!): closed until a few requests in a row have failed, then open. A probe of the upstream's
own health lets one request through; only a real answer closes it.
"""

from __future__ import annotations

from typing import Literal

FAILURES = 3
_TRIAL_PATIENCE_S = 30.0
"""A trial that nobody reported on in this time is given up: another may follow."""

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Owner of what is believed of one upstream's health."""

    def __init__(self) -> None:
        self.state: State = "closed"
        self.reason = ""
        """Why it is not closed, for people."""
        self._failures = 0
        self._only_probes_failed = False
        self._trial_s: float | None = None
        self._busy_until_s = 0.0

    def allows(self, now_s: float) -> bool:
        """Whether a request may be sent now."""
        if now_s < self._busy_until_s or self.state == "open":
            return False
        on_trial = self._trial_s is not None and now_s - self._trial_s < _TRIAL_PATIENCE_S
        return self.state == "closed" or not on_trial

    def sent(self, now_s: float) -> None:
        """A request is being sent."""
        if self.state == "half-open":
            self._trial_s = now_s

    def succeeded(self) -> None:
        """A request was answered as it should be."""
        self.state, self.reason, self._failures, self._trial_s = "closed", "", 0, None
        self._only_probes_failed = False

    def failed(self, reason: str) -> None:
        """A request was not answered, or with nonsense."""
        self._failures += 1
        self._only_probes_failed = False
        self._trial_s = None
        if self._failures >= FAILURES or self.state == "half-open":
            self.state, self.reason = "open", reason

    def busy(self, until_s: float) -> None:
        """It asked to be left alone until then (Retry-After): no failure."""
        self._trial_s = None
        self._busy_until_s = max(self._busy_until_s, until_s)

    def probed(self, healthy: bool, reason: str = "") -> None:
        """Its health was looked at. One that fails is opened at once; one that is well again may be tried, and if no request
        of ours had failed, that is all there is to know."""
        if not healthy:
            self._only_probes_failed = self._failures == 0 and (self.state == "closed" or self._only_probes_failed)
            self.state, self.reason, self._trial_s = "open", reason, None
        elif self._only_probes_failed:
            self.succeeded()
        elif self.state == "open":
            self.state = "half-open"

    def released(self) -> None:
        """A trial ended without telling anything: the caller went away."""
        self._trial_s = None
