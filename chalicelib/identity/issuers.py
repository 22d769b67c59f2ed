"""Which claims a token of each provider must have, beyond a good signature."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from chalicelib.identity.jwks import Key
from chalicelib.identity.jwt_parts import CLOCK_SKEW, numeric_date
from chalicelib.settings.tokens import ANY_DIRECTORY, GUID, AcceptedTokens

Claims = Mapping[str, Any]
IssuerCheck = Callable[[Claims, Key, AcceptedTokens], bool]

_PERSONAL_ACCOUNTS = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""The one directory of all personal Microsoft accounts."""


@dataclass(frozen=True)
class Issuer:
    types: tuple[str, ...]
    """Values of the header's `typ` (RFC 8725, 3.11), in lower case and without `application/`."""
    has_issued: IssuerCheck


def _is_from_cognito(claims: Claims, _key: Key, accepted: AcceptedTokens) -> bool:
    """An ID token: access tokens carry no tenant."""
    return bool(
        claims["iss"] == accepted.issuer
        and claims["token_use"] == "id"  # noqa: S105 (a claim's name)
        and claims["aud"] in accepted.audience
    )


def _is_from_entra(claims: Claims, key: Key, accepted: AcceptedTokens) -> bool:
    """From the configured directory, or from the one that the token names; the key must be valid for it.

    A key that names an issuer signs for that one only (Microsoft identity platform, access tokens,
    "Validate the signing key issuer").
    """
    directory = str(claims.get("tid"))
    if ANY_DIRECTORY in accepted.issuer and (
        not GUID.fullmatch(directory)
        # All personal accounts would be one tenant and see each other's orders.
        or directory == _PERSONAL_ACCOUNTS
    ):
        return False
    issuers = (accepted.issuer, key.get("issuer", accepted.issuer))
    return all(str(issuer).replace(ANY_DIRECTORY, directory) == claims["iss"] for issuer in issuers)


def _is_from_firebase(claims: Claims, _key: Key, accepted: AcceptedTokens) -> bool:
    """The user has signed in (Firebase, "Verify ID tokens using a third-party JWT library")."""
    return claims["iss"] == accepted.issuer and numeric_date(claims["auth_time"]) - CLOCK_SKEW <= time.time()


def _is_from_issuer(claims: Claims, _key: Key, accepted: AcceptedTokens) -> bool:
    return bool(claims["iss"] == accepted.issuer)


ISSUERS: Mapping[str, Issuer] = {
    "cognito": Issuer(("jwt",), _is_from_cognito),
    "entra": Issuer(("jwt", "at+jwt"), _is_from_entra),
    "firebase": Issuer(("jwt",), _is_from_firebase),
    "oidc": Issuer(("jwt", "at+jwt"), _is_from_issuer),
}
"""By AUTH_PROVIDER."""
