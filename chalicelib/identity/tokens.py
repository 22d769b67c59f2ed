"""Verifies tokens where no gateway has done so: every host but AWS, and local development.

A library checks the signature, cognitojwt for Cognito and PyJWT for the others, and only the configured
provider's is imported. The checks that they lack are here. cognitojwt 1.4.1 (jwt_sync.py) checks neither
issuer nor nbf, fetches keys without a timeout, keeps them for ever, and raises KeyError, ValueError or
JOSEError on malformed tokens. PyJWT 2.15 accepts times that are strings, and its key client reads a response
of any size and makes every request wait for one that hangs. Both accept UTF-16, and the last of repeated
members.
docs/identity.md goes through RFC 8725 section by section.
"""

import time
from functools import cache, lru_cache
from typing import Any

from chalicelib.errors import Unauthorized
from chalicelib.identity.issuers import ISSUERS, Claims
from chalicelib.identity.jwks import Key
from chalicelib.identity.jwt_parts import CLOCK_SKEW, base64url, json_object, numeric_date
from chalicelib.identity.key_set import KeySet
from chalicelib.identity.refusal_log import RefusalLog, TokenRefused, reason
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.tokens import AcceptedTokens, accepted_tokens

MAX_TOKEN_LENGTH = 16 * 1024
"""Characters; most hosts' servers accept less in a header."""
_EXTENSIONS = {"crit", "b64"}
"""Header members that change what is signed (RFC 7515, 4.1.11; RFC 7797). No extension is supported."""
_OTHER_TYPES = {"events", "cnf"}
"""Claims of security events such as logout (RFC 8417), and of tokens bound to a key (RFC 7800)."""


def claims(authorization: str | None) -> Claims:
    """The claims of the token in an Authorization header, `Bearer <token>` or the bare token.

    Raises Unauthorized for every token that is not valid, whatever the reason.
    """
    scheme, _, token = (authorization or "").strip(" \t").rpartition(" ")
    if not token or scheme.strip(" \t").lower() not in ("", "bearer"):
        raise Unauthorized
    try:
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenRefused("too long")
        verified = _verified_claims(token, _key_set().version())
        _check_times(verified)
    except SettingsError:
        raise
    except Exception as error:
        # An attacker chooses the input: any exception of any library means that the token is not verified.
        _refusal_log().add(reason(error))
        raise Unauthorized from None
    return verified


@lru_cache(maxsize=1024)
def _verified_claims(token: str, _key_set_version: object) -> Claims:
    """All checks but those of the time: their result is the same until the keys change.

    Bad tokens raise, so that they are not cached and cannot evict good ones.
    """
    accepted = _accepted_tokens()
    issuer = ISSUERS[accepted.provider]
    header_bytes, payload, _signature = (base64url(part) for part in token.split(".", 3))
    header = json_object(header_bytes)
    if header["alg"] != "RS256" or _EXTENSIONS & header.keys():
        raise TokenRefused("algorithm")
    if header.get("typ", "JWT").lower().removeprefix("application/") not in issuer.types:
        raise TokenRefused("kind")
    key = _key_set().get(header["kid"])
    _verify_signature(token, key, accepted)
    verified = json_object(payload)
    if _OTHER_TYPES & verified.keys():
        raise TokenRefused("kind")
    if not (verified["sub"] and issuer.has_issued(verified, key, accepted)):
        raise TokenRefused("issuer, audience or kind")
    return verified


def _verify_signature(token: str, key: Key, accepted: AcceptedTokens) -> None:
    """PyJWT checks the audience too. With cognitojwt it is the issuer's check that does."""
    if accepted.provider == "cognito":
        _cognitojwt().decode(token, accepted.region, accepted.user_pool, testmode=True)
        return
    import jwt

    jwt.decode(token, jwt.PyJWK(key), ["RS256"], audience=accepted.audience, leeway=CLOCK_SKEW)


@cache
def _cognitojwt() -> Any:
    from cognitojwt import jwt_sync

    # Its own fetch of the keys has no timeout, and its cache never expires.
    jwt_sync.get_keys = lambda _url: _key_set().all()
    return jwt_sync


def _check_times(verified: Claims) -> None:
    now = time.time()
    if now > numeric_date(verified["exp"]) + CLOCK_SKEW:
        raise TokenRefused("expired")
    if now < max(numeric_date(verified.get(name, 0)) for name in ("nbf", "iat")) - CLOCK_SKEW:
        raise TokenRefused("not valid yet")


@cache
def _accepted_tokens() -> AcceptedTokens:
    return accepted_tokens()


@cache
def _key_set() -> KeySet:
    return KeySet(_accepted_tokens().jwks_url)


@cache
def _refusal_log() -> RefusalLog:
    return RefusalLog()
