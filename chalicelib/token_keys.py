"""The keys that tokens are verified with: fetched seldom, kept through an outage, shared by all threads."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

Key = dict[str, Any]

REFRESH_EVERY = 60
"""Seconds between two fetches that an unknown key id may cause."""
RETRY_AFTER = 5
"""Seconds until the next fetch after one that failed."""
FETCH_TIMEOUT = 3
"""Seconds that a request waits for the keys."""

_log = logging.getLogger("order-api")


class NoSuchKey(LookupError):
    """The issuer has no key with this id, or none could be fetched."""


class KeySet:
    """The issuer's public keys. Known ones go on serving while the key server is down."""

    def __init__(self, url: str, read: Callable[[str], Any]) -> None:
        self._url = url
        self._read = read
        self._keys: list[Key] = []
        self.edition = object()
        """Another one whenever the keys were fetched anew."""
        self._next_fetch = 0.0
        self._fetching = threading.Lock()

    def all(self) -> list[Key]:
        return self._keys

    def get(self, kid: Any) -> Key:
        """The key with this id. An unknown id fetches the keys anew, at most once a minute.

        Raises NoSuchKey when there is none.
        """
        if not self._knows(kid):
            with self._fetching:
                if time.monotonic() >= self._next_fetch:
                    self._next_fetch = time.monotonic() + FETCH_TIMEOUT + RETRY_AFTER
                    # A socket's timeout bounds neither the look-up of the name nor an answer that trickles.
                    fetch = threading.Thread(target=self._fetch, daemon=True)
                    fetch.start()
                    fetch.join(FETCH_TIMEOUT)
        for key in self._keys:
            if key["kid"] == kid:
                return key
        raise NoSuchKey

    def _knows(self, kid: Any) -> bool:
        return any(key["kid"] == kid for key in self._keys)

    def _fetch(self) -> None:
        """Replace the keys, unless there is none to be had."""
        try:
            keys: list[Key] = [
                {**key, "alg": "RS256"} for key in self._read(self._url)["keys"] if _is_ours(key)
            ]
            if not keys:
                raise ValueError("no RS256 key in the answer")
        except Exception as error:
            _log.error("cannot fetch the token keys from %s: %s", self._url, error)
        else:
            # In this order: what is verified under the new edition was verified with the new keys.
            self._keys = keys
            self.edition = object()
            self._next_fetch = time.monotonic() + REFRESH_EVERY


def _is_ours(key: Any) -> bool:
    """Whether this member of a key set has an id and is for RS256 (RFC 7517, 5: others are ignored)."""
    return (
        isinstance(key, dict)
        and isinstance(key.get("kid"), str)
        and key.get("kty") == "RSA"
        and key.get("alg", "RS256") == "RS256"
        and key.get("use", "sig") == "sig"
    )


def by_requests(url: str) -> Any:
    import requests

    answer = requests.get(url, timeout=FETCH_TIMEOUT, allow_redirects=False)
    answer.raise_for_status()
    return answer.json()


def by_key_client(url: str) -> Any:
    from jwt import PyJWKClient

    # Firewalls in front of issuers answer urllib's own User-Agent with 403 (jpadilla/pyjwt#1121).
    headers = {"User-Agent": "order-api"}
    return PyJWKClient(url, cache_jwk_set=False, timeout=FETCH_TIMEOUT, headers=headers).fetch_data()
