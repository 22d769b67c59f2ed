"""Says in the log why tokens are refused. An answer never does, and neither says a word of the token."""

import logging
import threading
import time
from collections import Counter

QUIET = 60
"""Seconds between two lines with the same reason: a flood of bad tokens is no flood of lines."""

_log = logging.getLogger("order-api.tokens")


class Refused(Exception):
    """A token is not good; the text is one of our own few words for why."""


_WORDS = {
    "NoSuchKey": "unknown key",
    "InvalidSignatureError": "signature",
    "CognitoJWTException": "signature",
    "InvalidAudienceError": "audience",
    "ExpiredSignatureError": "expired",
    "ImmatureSignatureError": "not valid yet",
}


def reason(error: Exception) -> str:
    """Never the error's own text: libraries quote the token in theirs."""
    if isinstance(error, Refused):
        return str(error)
    return _WORDS.get(type(error).__name__, "malformed")


class Refusals:
    """Counts by reason; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unsaid: Counter[str] = Counter()
        self._quiet_until: dict[str, float] = {}

    def note(self, why: str) -> None:
        with self._lock:
            self._unsaid[why] += 1
            now = time.monotonic()
            if now < self._quiet_until.get(why, 0.0):
                return
            self._quiet_until[why] = now + QUIET
            count = self._unsaid.pop(why)
        _log.warning("refused a token: %s (%d since the last such line)", why, count)
