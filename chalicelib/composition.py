"""The one place where the objects that a process's requests share are made.

At the first request that needs one, never at import: a host may fork after it has imported the app.
"""

import threading

from chalicelib.database.connections import Connections
from chalicelib.rate_limit import RateLimiter
from chalicelib.settings.database import database_settings
from chalicelib.settings.rate_limit import rate_limit

_lock = threading.RLock()
_connections: Connections | None = None
_rate_limiter: RateLimiter | None = None


def connections() -> Connections:
    """The process's database connections. Raises SettingsError until the settings are right."""
    global _connections  # noqa: PLW0603 (this module holds the process's state)
    shared = _connections
    if shared is None:
        with _lock:
            shared = _connections = _connections or Connections(database_settings())
    return shared


def rate_limiter() -> RateLimiter:
    """The process's rate limiter. Raises SettingsError until RATE_LIMIT is right."""
    global _rate_limiter  # noqa: PLW0603 (this module holds the process's state)
    shared = _rate_limiter
    if shared is None:
        with _lock:
            shared = _rate_limiter = _rate_limiter or RateLimiter(connections, rate_limit())
    return shared


def close() -> None:
    """Close the connections and forget all shared objects; the next request makes new ones."""
    global _connections, _rate_limiter  # noqa: PLW0603 (this module holds the process's state)
    with _lock:
        if _connections is not None:
            _connections.close()
        _connections = _rate_limiter = None
