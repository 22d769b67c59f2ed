"""What a test waits for, and for how long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def until(what: Callable[[], Any], seconds: float = 15) -> None:
    """Waits until it is true."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """What is done here is over in time."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds
