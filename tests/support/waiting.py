"""Waiting for conditions, and time limits."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def until(condition: Callable[[], Any], seconds: float = 15) -> None:
    """Polls until the condition is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.05)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fails if the block takes longer than this."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds
