"""Verifies tokens where no gateway has done so: every host but AWS, and local development.

cognitojwt checks the signature, the app client and token_use's name. What it leaves open is closed
here: it checks no issuer and no nbf, fetches keys without a timeout and keeps them for ever, and
raises KeyError, ValueError or JOSEError on malformed tokens (cognitojwt 1.4.1, jwt_sync.py).
"""

import logging
import re
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any

import requests
from cognitojwt import jwt_sync
from cognitojwt.token_utils import get_unverified_headers

from chalicelib import settings
from chalicelib.errors import Unauthorized

Claims = Mapping[str, Any]
Key = Mapping[str, Any]

SKEW = 30
"""Seconds that our clock and the issuer's may differ."""
REFRESH_EVERY = 60
"""Seconds between two fetches that an unknown key id may cause."""
RETRY_AFTER = 5
"""Seconds until the next fetch after one that failed."""
FETCH_TIMEOUT = 3
"""Seconds that a request waits for the keys."""

_log = logging.getLogger("order-api")
# cognitojwt's decoder skips other characters; RFC 7515, 5.2 refuses them.
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def claims(authorization: str | None) -> Claims:
    """The claims of the ID token in an Authorization header, `Bearer <token>` or the bare token.

    Raises Unauthorized for every token that is not good, whatever is wrong with it.
    """
    scheme, _, token = (authorization or "").strip(" \t").rpartition(" ")
    if not _COMPACT.fullmatch(token) or scheme.strip(" \t").lower() not in ("", "bearer"):
        raise Unauthorized
    try:
        return _verified(token, _accepted())
    except settings.SettingsError:
        raise
    except Exception:
        # Any failure of any library on input that an attacker wrote means: not verified.
        raise Unauthorized from None


@cache
def _accepted() -> settings.Tokens:
    return settings.tokens()


def _verified(token: str, accepted: settings.Tokens) -> Claims:
    header = get_unverified_headers(token)
    # `crit` names extensions that must be understood (RFC 7515, 4.1.11); we understand none.
    if header["alg"] != "RS256" or "crit" in header or not _keys(accepted.jwks_url).has(header["kid"]):
        raise Unauthorized
    found: Claims = jwt_sync.decode(
        token, accepted.region, accepted.user_pool, accepted.audience, testmode=True
    )
    now = time.time()
    if (
        found["iss"] != accepted.issuer
        or found["token_use"] != "id"
        # Said this way round, because every comparison with NaN is false.
        or not float(found.get("nbf", 0)) - SKEW <= now <= float(found["exp"]) + SKEW
    ):
        raise Unauthorized
    return found


class KeySet:
    """The issuer's public keys. Known ones go on serving while the key server is down."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: list[Key] = []
        self._next_fetch = 0.0
        self._fetching = threading.Lock()

    def all(self) -> list[Key]:
        return self._keys

    def has(self, kid: str) -> bool:
        """Whether a key has this id; an unknown id fetches the keys anew, at most once a minute."""
        if not self._knows(kid):
            with self._fetching:
                if not self._knows(kid) and time.monotonic() >= self._next_fetch:
                    self._next_fetch = time.monotonic() + FETCH_TIMEOUT + RETRY_AFTER
                    # requests' timeout bounds neither the look-up of the name nor an answer that trickles.
                    fetch = threading.Thread(target=self._fetch, daemon=True)
                    fetch.start()
                    fetch.join(FETCH_TIMEOUT)
        return self._knows(kid)

    def _knows(self, kid: str) -> bool:
        return any(key["kid"] == kid for key in self._keys)

    def _fetch(self) -> None:
        """Replace the keys, unless there is none to be had."""
        try:
            answer = requests.get(self._url, timeout=FETCH_TIMEOUT, allow_redirects=False)
            answer.raise_for_status()
            keys: list[Key] = [{**key, "alg": "RS256"} for key in answer.json()["keys"] if _is_ours(key)]
            if not keys:
                raise ValueError("no RS256 key in the answer")
        except Exception as error:
            _log.error("cannot fetch the token keys from %s: %s", self._url, error)
        else:
            self._keys = keys
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


@cache
def _keys(url: str) -> KeySet:
    return KeySet(url)


# cognitojwt's own key source has no timeout and never forgets; this one is asked instead.
jwt_sync.get_keys = lambda _url: _keys(_accepted().jwks_url).all()
