"""Waits for what comes about by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


def until(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for something to become true; fails if it does not."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        if found := what():
            return found
        time.sleep(0.02)
    pytest.fail("waited in vain")
