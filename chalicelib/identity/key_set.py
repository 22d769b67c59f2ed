"""Caches the keys that verify tokens: refreshed in the background, kept through an outage."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import copy_context
from http.client import InvalidURL
from typing import Any

from chalicelib.identity import jwks
from chalicelib.identity.jwks import Key

Instant = tuple[float, float]
"""On the monotonic clock, and on the wall clock, which goes on while a whole machine is paused."""

REFRESH_AGE = 3600
"""Seconds after which the keys are fetched again, so that a withdrawn key expires. No request waits."""
MAX_STALE_AGE = 24 * 3600
"""Seconds after which a request does wait: hosts that freeze between requests freeze the threads too."""
UNKNOWN_KEY_INTERVAL = 60
"""Seconds between two fetches because of unknown key ids; also the longest delay after a failed fetch."""
FIRST_RETRY_DELAY = 5
"""Seconds until the next fetch after a failed one; doubled after each further failure."""
WAIT_TIMEOUT = 3
"""Seconds that a request waits for a fetch."""
FETCH_TIMEOUT = 10
"""Seconds that a fetch may take, whether or not a request waits for it."""
MAX_CONCURRENT_FETCHES = 3
"""A server that sends bytes slowly enough holds a fetch longer than any timeout of a socket."""

_log = logging.getLogger("order-api")


class NoSuchKey(LookupError):
    """The issuer has no key with this id, or no key could be fetched."""


class KeySet:
    """The issuer's public keys. Cached keys stay valid while the key server is down.

    No lock is held while waiting, so that a fetch never delays a request whose key is cached.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str, Key] = {}
        self._version = object()
        self._lock = threading.Lock()
        self._fetches: list[_Fetch] = []
        self._failures = 0
        self._requested_at = (0.0, 0.0)
        """When the fetch of the cached keys started."""
        self._delayed_at, self._delay = (0.0, 0.0), 0.0
        """No fetch starts before `_delay` seconds have passed since `_delayed_at`."""

    def all(self) -> list[Key]:
        return list(self._keys.values())

    def version(self) -> object:
        """Another object whenever the keys have changed. Old keys are refreshed in the background."""
        age = _seconds_since(self._requested_at)
        if self._keys and age > REFRESH_AGE:
            fetch = self._start_fetch()
            if fetch and age > MAX_STALE_AGE:
                fetch.wait()
        return self._version

    def get(self, kid: Any) -> Key:
        """The key with this id. An unknown id causes a fetch, at most once a minute.

        Raises NoSuchKey when there is none.
        """
        if kid not in self._keys:
            started, running = self._start_fetch(), self._fetches
            # While keys are cached, only one request waits for a server that failed the last time.
            if started or (running and not (self._keys and self._failures)):
                (started or running[-1]).wait()
        try:
            return self._keys[kid]
        except KeyError:
            raise NoSuchKey from None

    def _start_fetch(self) -> "_Fetch | None":
        """A new fetch in its own thread, or None while a fetch has to be delayed."""
        if self._is_delayed():
            return None
        with self._lock:
            self._fetches = [fetch for fetch in self._fetches if not fetch.is_finished()]
            if self._is_delayed() or len(self._fetches) == MAX_CONCURRENT_FETCHES:
                return None
            fetch = _Fetch(self)
            with suppress(RuntimeError):  # the system cannot start a thread now
                fetch.start()
                # In this order: a request that sees the delay finds this fetch to wait for.
                self._fetches.append(fetch)
                self._delay_next_fetch(FETCH_TIMEOUT + FIRST_RETRY_DELAY)
                return fetch
        return None

    def _is_delayed(self) -> bool:
        return _seconds_since(self._delayed_at) < self._delay

    def _delay_next_fetch(self, seconds: float) -> None:
        self._delayed_at, self._delay = _now(), seconds

    def run_fetch(self, fetch: "_Fetch") -> None:
        """Replace the keys, unless the download fails or a later fetch has started."""
        keys: Mapping[str, Key] = {}
        try:
            keys = jwks.download(self._url, FETCH_TIMEOUT)
        except Exception as error:
            self._log_failure(error)
        with self._lock:
            if fetch is not self._fetches[-1]:
                return
            if not keys:
                self._delay_next_fetch(min(FIRST_RETRY_DELAY * 2**self._failures, UNKNOWN_KEY_INTERVAL))
                self._failures = min(self._failures + 1, 10)
                return
            self._failures = 0
            self._delay_next_fetch(UNKNOWN_KEY_INTERVAL)
            self._requested_at = fetch.started_at
            if keys != self._keys:
                # In this order: a token cached under the new version was verified with the new keys.
                self._keys = keys
                self._version = object()

    def _log_failure(self, error: Exception) -> None:
        consequence = "; the known ones go on serving" if self._keys else ""
        # The text of InvalidURL repeats parts of the URL that may be secret.
        reason = "it is no URL" if isinstance(error, InvalidURL) else error
        _log.error(
            "cannot fetch the token keys from %s: %s%s", jwks.public_part(self._url), reason, consequence
        )


class _Fetch(threading.Thread):
    """Bounds what a socket's timeout does not: a slow name resolution, and a body that arrives byte by byte.

    Requests wait for the event instead of join() or is_alive(): before Python 3.13 two threads that call
    these at once sometimes raise AssertionError or RuntimeError.
    """

    def __init__(self, keys: KeySet) -> None:
        super().__init__(target=copy_context().run, args=[keys.run_fetch, self], daemon=True)
        self.started_at = _now()
        self._process_id = os.getpid()
        self._finished = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._finished.set()

    def is_finished(self) -> bool:
        """True for a fetch of the parent process too: its thread does not exist after a fork."""
        return self._finished.is_set() or self._process_id != os.getpid()

    def wait(self) -> None:
        if not self.is_finished():
            self._finished.wait(max(0.0, WAIT_TIMEOUT - _seconds_since(self.started_at)))


def _now() -> Instant:
    return time.monotonic(), time.time()


def _seconds_since(instant: Instant) -> float:
    """By the clock that shows the longer time."""
    return max(now - then for now, then in zip(_now(), instant, strict=True))
