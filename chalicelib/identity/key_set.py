"""The keys that tokens are verified with: fetched seldom, kept through an outage, shared by all threads."""

import json
import logging
import os
import re
import threading
import time
import urllib.request
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from contextlib import suppress
from contextvars import copy_context
from http.client import InvalidURL
from typing import Any

from chalicelib.observability import record as telemetry

Key = dict[str, Any]
Moment = tuple[float, float]
"""On the clock that never jumps, and on the one that goes on while a whole machine is paused."""

REFRESH_EVERY = 3600
"""Seconds after which the keys are fetched again, so that a withdrawn one ends; no request waits for that."""
OUTDATED_AFTER = 24 * 3600
"""Seconds after which a request does wait: some hosts freeze between requests, and with them any thread."""
UNKNOWN_EVERY = 60
"""Seconds between two fetches that an unknown key id may cause; also the longest pause after a failure."""
RETRY_AFTER = 5
"""Seconds until the next fetch after one that failed; twice as many after every further one."""
FETCH_TIMEOUT = 3
"""Seconds that a request waits for the keys."""
LONGEST_FETCH = 10
"""Seconds that the key server may take, waited for or not."""
MOST_FETCHES = 3
"""Fetches that run at once, where a server holds them up for longer than any timeout sees."""
LARGEST_ANSWER = 512 * 1024
"""Bytes. Real key sets have some 30 KiB at most."""
SHORTEST_KEY = 2048
"""Bits of an RSA key (RFC 7518, 3.3)."""

_log = logging.getLogger("order-api")


class NoSuchKey(LookupError):
    """The issuer has no key with this id, or none could be fetched."""


class KeySet:
    """The issuer's public keys. Known ones go on serving while the key server is down.

    The lock is never held over a wait, so that a request with a known key is never held up by a fetch.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: Mapping[str, Key] = {}
        self._edition = object()
        self._lock = threading.Lock()
        self._fetches: list[_Fetch] = []
        self._failures = 0
        self._asked = self._paused = (0.0, 0.0)
        """When the keys that are known were asked for, and since when none are."""
        self._pause = 0.0
        """Seconds from then on in which none are."""

    def all(self) -> list[Key]:
        return list(self._keys.values())

    def edition(self) -> object:
        """Another one whenever the keys have changed. Old keys are fetched anew, beside this request."""
        age = _since(self._asked)
        if self._keys and age > REFRESH_EVERY:
            begun = self._begin()
            if begun and age > OUTDATED_AFTER:
                begun.wait()
        return self._edition

    def get(self, kid: Any) -> Key:
        """The key with this id. An unknown id fetches the keys anew, at most once a minute.

        Raises NoSuchKey when there is none.
        """
        if kid not in self._keys:
            begun, fetches = self._begin(), self._fetches
            # A server that failed the last time is worth the time of one request, while there are keys.
            if begun or (fetches and not (self._keys and self._failures)):
                (begun or fetches[-1]).wait()
        try:
            return self._keys[kid]
        except KeyError:
            raise NoSuchKey from None

    def _begin(self) -> "_Fetch | None":
        """A new fetch in a thread of its own, or None while it is too early for one."""
        if self._is_early():
            return None
        with self._lock:
            self._fetches = [each for each in self._fetches if not each.is_over()]
            if self._is_early() or len(self._fetches) == MOST_FETCHES:
                return None
            fetch = _Fetch(self)
            with suppress(RuntimeError):  # no thread can be had now
                fetch.start()
                # In this order: who is too early for a fetch finds one to wait for.
                self._fetches.append(fetch)
                self._wait_for(LONGEST_FETCH + RETRY_AFTER)
                return fetch
        return None

    def _is_early(self) -> bool:
        return _since(self._paused) < self._pause

    def _wait_for(self, seconds: float) -> None:
        self._paused, self._pause = _now(), seconds

    def run(self, fetch: "_Fetch") -> None:
        """Replace the keys, unless there is none to be had, or a later fetch has been begun."""
        keys: Mapping[str, Key] = {}
        try:
            keys = _usable(json.loads(_read(self._url)))
        except Exception as error:
            outlook = "; the known ones go on serving" if self._keys else ""
            reason = "it is no URL" if isinstance(error, InvalidURL) else error  # which repeats parts of it
            _log.error("cannot fetch the token keys from %s: %s%s", _public(self._url), reason, outlook)
        with self._lock:
            if fetch is not self._fetches[-1]:
                return
            if not keys:
                self._wait_for(min(RETRY_AFTER * 2**self._failures, UNKNOWN_EVERY))
                self._failures = min(self._failures + 1, 10)
                return
            self._failures = 0
            self._wait_for(UNKNOWN_EVERY)
            self._asked = fetch.begun
            if keys != self._keys:
                # In this order: what is verified under the new edition was verified with the new keys.
                self._keys = keys
                self._edition = object()


class _Fetch(threading.Thread):
    """A socket's timeout bounds neither the look-up of a name nor an answer that trickles: this does.

    Several requests wait for one, which join() and is_alive() do not bear before Python 3.13: two threads in
    them at once raise AssertionError or RuntimeError now and then.
    """

    def __init__(self, keys: KeySet) -> None:
        super().__init__(target=copy_context().run, args=[keys.run, self], daemon=True)
        self.begun = _now()
        self._process = os.getpid()
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._ended.set()

    def is_over(self) -> bool:
        """Ended, or left behind in the process that this one was forked from."""
        return self._ended.is_set() or self._process != os.getpid()

    def wait(self) -> None:
        if not self.is_over():
            self._ended.wait(max(0.0, FETCH_TIMEOUT - _since(self.begun)))


def _public(url: str) -> str:
    """Without what may be secret: a name with its password, and the query."""
    return re.split("[?#]", re.sub(r"//[^/]*@", "//", url))[0]


def _now() -> Moment:
    return time.monotonic(), time.time()


def _since(moment: Moment) -> float:
    """Seconds; of what the two clocks say the longer."""
    return max(now - then for now, then in zip(_now(), moment, strict=True))


def _usable(answer: Any) -> Mapping[str, Key]:
    """The keys of a key set by their ids; of several with one id the first. Raises when there is none."""
    keys: dict[str, Key] = {}
    for key in answer["keys"]:
        if _is_ours(key):
            keys.setdefault(key["kid"], {**key, "alg": "RS256"})
    if not keys:
        raise ValueError("no RS256 key in the answer")
    return keys


def _is_ours(key: Any) -> bool:
    """Whether this member of a key set has an id and is for RS256 (RFC 7517, 5: others are ignored)."""
    return (
        isinstance(key, dict)
        and isinstance(key.get("kid"), str)
        and key.get("kty") == "RSA"
        and key.get("alg", "RS256") == "RS256"
        and key.get("use", "sig") == "sig"
        and _bits(key.get("n")) >= SHORTEST_KEY
    )


def _bits(number: Any) -> int:
    try:
        return int.from_bytes(urlsafe_b64decode(number + "==="), "big").bit_length()
    except (TypeError, ValueError):
        return 0


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from the configured address alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _read(url: str) -> bytes:
    """What the key server answers, if it is not too much and does not take too long."""
    deadline = time.monotonic() + LONGEST_FETCH
    # Firewalls in front of issuers answer urllib's own User-Agent with 403 (jpadilla/pyjwt#1121).
    headers = {"User-Agent": "order-api", **telemetry.outgoing_headers()}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (settings/tokens.py)
    opener = urllib.request.build_opener(_NoRedirects)
    body = b""
    with opener.open(request, timeout=LONGEST_FETCH) as answer:
        while chunk := answer.read1(64 * 1024):
            body += chunk
            if len(body) > LARGEST_ANSWER:
                raise ValueError(f"more than {LARGEST_ANSWER} bytes")
            # What is there already, after a pause of the process, counts.
            if answer.length != 0 and time.monotonic() > deadline:
                raise TimeoutError(f"not complete after {LONGEST_FETCH} seconds")
    return body
