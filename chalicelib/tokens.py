"""Verifies tokens where no gateway has done so: every host but AWS, and local development.

A library checks signature and audience, cognitojwt for Cognito and PyJWT for the others, and only the
configured provider's is imported. What they leave open is closed here. cognitojwt 1.4.1 (jwt_sync.py)
checks no issuer and no nbf, fetches keys without a timeout, keeps them for ever, and raises KeyError,
ValueError or JOSEError on malformed tokens. PyJWT 2.15 takes numbers written as text for times, and its
key client forgets all keys in an outage and lets every request wait for one that hangs.
"""

import json
import math
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

from chalicelib import settings, token_keys
from chalicelib.errors import Unauthorized
from chalicelib.token_keys import Key, KeySet

Claims = Mapping[str, Any]
Decode = Callable[[str, Key, settings.Tokens], Claims]
IsTheirs = Callable[[Claims, Key, settings.Tokens], bool]

SKEW = 30
"""Seconds that our clock and the issuer's may differ."""
_PERSONAL_ACCOUNTS = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The one directory of all personal Microsoft accounts."""


def claims(authorization: str | None) -> Claims:
    """The claims of the token in an Authorization header, `Bearer <token>` or the bare token.

    Raises Unauthorized for every token that is not good, whatever is wrong with it.
    """
    scheme, _, token = (authorization or "").strip(" \t").rpartition(" ")
    if scheme.strip(" \t").lower() not in ("", "bearer"):
        raise Unauthorized
    try:
        found = _verified(token, _keys().edition)
        if not _is_current(found):
            raise Unauthorized
        return found
    except settings.SettingsError:
        raise
    except Exception:
        # Any failure of any library on input that an attacker wrote means: not verified.
        raise Unauthorized from None


@cache
def _accepted() -> settings.Tokens:
    return settings.tokens()


@lru_cache(maxsize=1024)
def _verified(token: str, _edition: object) -> Claims:
    """What does not change while the keys do not; the token that comes again is the same, bit by bit."""
    accepted = _accepted()
    header, _payload, _signature = (_decoded(part) for part in token.split("."))
    members = json.loads(header)
    # `crit` names extensions that must be understood (RFC 7515, 4.1.11); we understand none.
    if members["alg"] != "RS256" or "crit" in members:
        raise Unauthorized
    key = _keys().get(members["kid"])
    decode, is_theirs = _VERIFIERS[accepted.provider]
    found = decode(token, key, accepted)
    if not (found["sub"] and is_theirs(found, key, accepted)):
        raise Unauthorized
    return found


def _decoded(part: str) -> bytes:
    """base64url with nothing else in it (RFC 7515, 5.2), spelt as an encoder spells it (RFC 4648, 3.5)."""
    decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise Unauthorized
    return decoded


def _by_cognitojwt(token: str, _key: Key, accepted: settings.Tokens) -> Claims:
    found: Claims = _cognitojwt().decode(
        token, accepted.region, accepted.user_pool, accepted.audience, testmode=True
    )
    return found


@cache
def _cognitojwt() -> Any:
    from cognitojwt import jwt_sync

    # Its own key source has no timeout and never forgets; this one is asked instead.
    jwt_sync.get_keys = lambda _url: _keys().all()
    return jwt_sync


def _by_pyjwt(token: str, key: Key, accepted: settings.Tokens) -> Claims:
    import jwt

    # RFC 7518, 3.3: no keys under 2048 bits.
    strict: jwt.types.Options = {"enforce_minimum_key_length": True}
    return jwt.decode(token, jwt.PyJWK(key), ["RS256"], strict, audience=accepted.audience, leeway=SKEW)


def _is_current(found: Claims) -> bool:
    now = time.time()
    since = [_moment(found.get(name, 0)) for name in ("nbf", "iat")]
    return max(since) - SKEW <= now <= _moment(found["exp"]) + SKEW


def _moment(value: Any) -> float:
    """A NumericDate (RFC 7519, 2), or a ValueError."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _is_from_cognito(found: Claims, _key: Key, accepted: settings.Tokens) -> bool:
    """An ID token: access tokens carry no tenant."""
    return bool(found["iss"] == accepted.issuer and found["token_use"] == "id")


def _is_from_entra(found: Claims, key: Key, accepted: settings.Tokens) -> bool:
    """Issued for the configured directory, or for the one that the token names, with a key meant for it.

    A key that names an issuer signs for that one alone (Microsoft identity platform, access tokens,
    "Validate the signing key issuer").
    """
    directory = str(found.get("tid"))
    if settings.ANY_DIRECTORY in accepted.issuer and (
        not settings.GUID.fullmatch(directory)
        # As one tenant they would see each other's orders.
        or directory == _PERSONAL_ACCOUNTS
    ):
        return False
    issuers = (accepted.issuer, key.get("issuer", accepted.issuer))
    return all(str(each).replace(settings.ANY_DIRECTORY, directory) == found["iss"] for each in issuers)


def _is_from_firebase(found: Claims, _key: Key, accepted: settings.Tokens) -> bool:
    """Of somebody who has signed in (Firebase, "Verify ID tokens using a third-party JWT library")."""
    return found["iss"] == accepted.issuer and _moment(found["auth_time"]) - SKEW <= time.time()


def _is_from_issuer(found: Claims, _key: Key, accepted: settings.Tokens) -> bool:
    return bool(found["iss"] == accepted.issuer)


_VERIFIERS: Mapping[str, tuple[Decode, IsTheirs]] = {
    "cognito": (_by_cognitojwt, _is_from_cognito),
    "entra": (_by_pyjwt, _is_from_entra),
    "firebase": (_by_pyjwt, _is_from_firebase),
    "oidc": (_by_pyjwt, _is_from_issuer),
}


@cache
def _keys() -> KeySet:
    accepted = _accepted()
    return KeySet(
        accepted.jwks_url,
        token_keys.by_requests if accepted.provider == "cognito" else token_keys.by_key_client,
    )
