"""Verifies tokens where no gateway has done so: every host but AWS, and local development.

A library checks the signature, cognitojwt for Cognito and PyJWT for the others, and only the configured
provider's is imported. What they leave open is closed here. cognitojwt 1.4.1 (jwt_sync.py) checks no issuer
and no nbf, fetches keys without a timeout, keeps them for ever, and raises KeyError, ValueError or JOSEError
on malformed tokens. PyJWT 2.15 takes numbers written as text for times, and its key client reads an answer of
any size and lets every request wait for one that hangs. Both take UTF-16, and the last of repeated members.
docs/identity.md goes through RFC 8725 section by section.
"""

import json
import math
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, NoReturn

from chalicelib.errors import Unauthorized
from chalicelib.identity.key_set import Key, KeySet
from chalicelib.identity.refusal_log import Refusals, Refused, reason
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.tokens import ANY_DIRECTORY, GUID, AcceptedTokens, accepted_tokens

Claims = Mapping[str, Any]
Verify = Callable[[str, Key, AcceptedTokens], object]
IsTheirs = Callable[[Claims, Key, AcceptedTokens], bool]

SKEW = 30
"""Seconds that our clock and the issuer's may differ."""
LONGEST = 16 * 1024
"""Characters of a token; most hosts' servers take less in a header."""
_EXTENSIONS = {"crit", "b64"}
"""Header members that change what is signed (RFC 7515, 4.1.11; RFC 7797). We understand no extension."""
_OTHER_KINDS = {"events", "cnf"}
"""Claims of logout tokens and other events (RFC 8417), and of those that ask for a proof (RFC 7800)."""
_PERSONAL_ACCOUNTS = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The one directory of all personal Microsoft accounts."""


def claims(authorization: str | None) -> Claims:
    """The claims of the token in an Authorization header, `Bearer <token>` or the bare token.

    Raises Unauthorized for every token that is not good, whatever is wrong with it.
    """
    scheme, _, token = (authorization or "").strip(" \t").rpartition(" ")
    if not token or scheme.strip(" \t").lower() not in ("", "bearer"):
        raise Unauthorized
    try:
        if len(token) > LONGEST:
            raise Refused("too long")
        found = _verified(token, _keys().edition())
        _refuse_out_of_time(found)
    except SettingsError:
        raise
    except Exception as error:
        # Any failure of any library on input that an attacker wrote means: not verified.
        _refusals().note(reason(error))
        raise Unauthorized from None
    return found


@cache
def _accepted() -> AcceptedTokens:
    return accepted_tokens()


@lru_cache(maxsize=1024)
def _verified(token: str, _edition: object) -> Claims:
    """What does not change while the keys do not; the token that comes again is the same, bit by bit.

    Bad tokens are not remembered: they raise, and so cannot push out good ones.
    """
    accepted = _accepted()
    kinds, verify, is_theirs = _VERIFIERS[accepted.provider]
    header, payload, _signature = (_decoded(part) for part in token.split(".", 3))
    members = _object(header)
    if members["alg"] != "RS256" or _EXTENSIONS & members.keys():
        raise Refused("algorithm")
    if members.get("typ", "JWT").lower().removeprefix("application/") not in kinds:
        raise Refused("kind")
    key = _keys().get(members["kid"])
    verify(token, key, accepted)
    found = _object(payload)
    if _OTHER_KINDS & found.keys():
        raise Refused("kind")
    if not (found["sub"] and is_theirs(found, key, accepted)):
        raise Refused("issuer, audience or kind")
    return found


def _decoded(part: str) -> bytes:
    """base64url with nothing else in it (RFC 7515, 5.2), spelt as an encoder spells it (RFC 4648, 3.5)."""
    decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise Refused("malformed")
    return decoded


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 (RFC 8725, 3.7) whose members all have names of their own (RFC 7515, 4)."""
    found = _STRICT.decode(text.decode())
    if not isinstance(found, dict):
        raise Refused("malformed")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused("malformed")
    return members


def _no_number(_constant: str) -> NoReturn:
    raise Refused("malformed")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_number)


def _by_cognitojwt(token: str, _key: Key, accepted: AcceptedTokens) -> object:
    # Neither time nor audience: both are looked at below, with words for what is wrong.
    return _cognitojwt().decode(token, accepted.region, accepted.user_pool, testmode=True)


@cache
def _cognitojwt() -> Any:
    from cognitojwt import jwt_sync

    # Its own key source has no timeout and never forgets; this one is asked instead.
    jwt_sync.get_keys = lambda _url: _keys().all()
    return jwt_sync


def _by_pyjwt(token: str, key: Key, accepted: AcceptedTokens) -> object:
    import jwt

    return jwt.decode(token, jwt.PyJWK(key), ["RS256"], audience=accepted.audience, leeway=SKEW)


def _refuse_out_of_time(found: Claims) -> None:
    now = time.time()
    if now > _moment(found["exp"]) + SKEW:
        raise Refused("expired")
    if now < max(_moment(found.get(name, 0)) for name in ("nbf", "iat")) - SKEW:
        raise Refused("not valid yet")


def _moment(value: Any) -> float:
    """A NumericDate (RFC 7519, 2), or a ValueError."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _is_from_cognito(found: Claims, _key: Key, accepted: AcceptedTokens) -> bool:
    """An ID token: access tokens carry no tenant."""
    return bool(
        found["iss"] == accepted.issuer and found["token_use"] == "id" and found["aud"] in accepted.audience
    )


def _is_from_entra(found: Claims, key: Key, accepted: AcceptedTokens) -> bool:
    """Issued for the configured directory, or for the one that the token names, with a key meant for it.

    A key that names an issuer signs for that one alone (Microsoft identity platform, access tokens,
    "Validate the signing key issuer").
    """
    directory = str(found.get("tid"))
    if ANY_DIRECTORY in accepted.issuer and (
        not GUID.fullmatch(directory)
        # As one tenant they would see each other's orders.
        or directory == _PERSONAL_ACCOUNTS
    ):
        return False
    issuers = (accepted.issuer, key.get("issuer", accepted.issuer))
    return all(str(each).replace(ANY_DIRECTORY, directory) == found["iss"] for each in issuers)


def _is_from_firebase(found: Claims, _key: Key, accepted: AcceptedTokens) -> bool:
    """Of somebody who has signed in (Firebase, "Verify ID tokens using a third-party JWT library")."""
    return found["iss"] == accepted.issuer and _moment(found["auth_time"]) - SKEW <= time.time()


def _is_from_issuer(found: Claims, _key: Key, accepted: AcceptedTokens) -> bool:
    return bool(found["iss"] == accepted.issuer)


_VERIFIERS: Mapping[str, tuple[tuple[str, ...], Verify, IsTheirs]] = {
    "cognito": (("jwt",), _by_cognitojwt, _is_from_cognito),
    "entra": (("jwt", "at+jwt"), _by_pyjwt, _is_from_entra),
    "firebase": (("jwt",), _by_pyjwt, _is_from_firebase),
    "oidc": (("jwt", "at+jwt"), _by_pyjwt, _is_from_issuer),
}
"""What each provider's tokens may say that they are, in `typ` (RFC 8725, 3.11), and how they are verified."""


@cache
def _refusals() -> Refusals:
    return Refusals()


@cache
def _keys() -> KeySet:
    return KeySet(_accepted().jwks_url)
