"""Verifies Cognito's ID tokens where no gateway has. Imported only there: a Lambda needs no cryptography."""

import os
from typing import Any

import jwt

_keys = jwt.PyJWKClient(os.environ["AUTH_JWKS_URL"])


def verified_claims(token: str) -> dict[str, Any]:
    """Raises jwt.PyJWTError for every token that is not good. Only ID tokens name an audience."""
    return jwt.decode(
        token,
        _keys.get_signing_key_from_jwt(token),
        algorithms=["RS256"],
        audience=os.environ["AUTH_AUDIENCE"],
        issuer=os.environ["AUTH_ISSUER"],
        options={"require": ["exp", "sub"]},
    )
