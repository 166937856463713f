"""Waiting for what another process does."""

import time
from collections.abc import Callable

POLL_SECONDS = 0.05


def wait_until(condition: Callable[[], object], seconds: float, what: str = "what was waited for") -> None:
    """Look again until it is so; an AssertionError if that takes longer."""
    since = time.monotonic()
    while not condition():
        assert time.monotonic() - since < seconds, f"{what} not seen"
        time.sleep(POLL_SECONDS)
