"""Logs why tokens are refused. Neither the log nor the answer contains any part of the token."""

import logging
import threading
import time
from collections import Counter

LOG_INTERVAL = 60
"""Seconds between two lines with the same reason, so that a flood of bad tokens does not flood the log."""

_log = logging.getLogger("order-api.tokens")


class TokenRefused(Exception):
    """The token is not valid; the message is a reason that is safe to log."""


_REASONS = {
    "NoSuchKey": "unknown key",
    "InvalidSignatureError": "signature",
    "CognitoJWTException": "signature",
    "InvalidAudienceError": "audience",
    "ExpiredSignatureError": "expired",
    "ImmatureSignatureError": "not valid yet",
}
"""By the name of the exception's class: importing the classes would import libraries that are not used."""


def reason(error: Exception) -> str:
    """Never a library's own message: those quote the token."""
    if isinstance(error, TokenRefused):
        return str(error)
    return _REASONS.get(type(error).__name__, "malformed")


class RefusalLog:
    """Counts refusals by reason. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unlogged: Counter[str] = Counter()
        self._next_line_at: dict[str, float] = {}

    def add(self, reason: str) -> None:
        with self._lock:
            self._unlogged[reason] += 1
            now = time.monotonic()
            if now < self._next_line_at.get(reason, 0.0):
                return
            self._next_line_at[reason] = now + LOG_INTERVAL
            count = self._unlogged.pop(reason)
        _log.warning("refused a token: %s (%d since the last such line)", reason, count)
