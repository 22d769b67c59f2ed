"""RATE_LIMIT: how many requests each tenant may make."""

import re
from typing import NamedTuple

from chalicelib.settings.environment import SettingsError, text

_RATE = re.compile(r"([1-9][0-9]{0,6})/([smh])")


class Rate(NamedTuple):
    """So many requests in so many seconds."""

    requests: int
    seconds: int

    @property
    def interval(self) -> float:
        """Seconds between two requests, at an even pace."""
        return self.seconds / self.requests


def rate_limit() -> Rate | None:
    """How many requests each tenant may make; None: no limit."""
    limit = text("RATE_LIMIT")
    if not limit:
        return None
    match = _RATE.fullmatch(limit)
    if not match:
        raise SettingsError(
            f"RATE_LIMIT is {limit!r}: use requests per second, minute or hour, such as 100/s"
        )
    return Rate(int(match[1]), {"s": 1, "m": 60, "h": 3600}[match[2]])
