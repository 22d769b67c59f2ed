"""Tokens for local development, with Cognito's claims and real signatures by a local key."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid4, uuid5

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jose import jwk, jwt

USER_POOL_ARN = "arn:aws:cognito-idp:eu-west-1:000000000000:userpool/eu-west-1_LocalPool"
ISSUER = "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_LocalPool"
CLIENT_ID = "local-development"
LIFETIME = 12 * 60 * 60
KEY_ID = "local-development-key"


class Issuer:
    """Signs with a key that is kept in `folder`, so that tokens outlive a restart."""

    def __init__(self, folder: Path) -> None:
        path = folder / "signing-key.pem"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write_new_key(path)
        self._pem = path.read_text()

    def token(self, tenant: str, user: str, **changes: Any) -> str:
        """An ID token of `user` in `tenant`, valid for LIFETIME seconds, with some claims changed."""
        now = int(time.time())
        claims = {
            "sub": str(uuid5(NAMESPACE_URL, f"https://{tenant}.example/{user}")),
            "cognito:username": user,
            "custom:tenant_id": tenant,
            "email": f"{user}@{tenant}.example",
            "iss": ISSUER,
            "aud": CLIENT_ID,
            "token_use": "id",
            "auth_time": now,
            "iat": now,
            "exp": now + LIFETIME,
            "jti": str(uuid4()),
            **changes,
        }
        return str(jwt.encode(claims, self._pem, algorithm="RS256", headers={"kid": KEY_ID}))

    def jwks(self) -> dict[str, Any]:
        """The public key, as a user pool publishes it at /.well-known/jwks.json."""
        public = jwk.construct(self._pem, "RS256").public_key().to_dict()
        return {"keys": [{**public, "kid": KEY_ID, "alg": "RS256", "use": "sig"}]}


def variables(jwks_url: str) -> dict[str, str]:
    """The settings with which the API accepts this issuer's tokens and no others."""
    return {
        "AUTH_PROVIDER": "cognito",
        "COGNITO_USER_POOL_ARN": USER_POOL_ARN,
        "AUTH_ISSUER": ISSUER,
        "AUTH_AUDIENCE": CLIENT_ID,
        "AUTH_JWKS_URL": jwks_url,
        # Empty, so that the developer's shell does not set them: they are for other providers.
        **dict.fromkeys(["AUTH_TENANT_CLAIM", "AUTH_USER_CLAIM", "AUTH_EMAIL_CLAIM"], ""),
    }


def _write_new_key(path: Path) -> None:
    pem = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    unfinished = path.with_suffix(f".{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(pem)
    with suppress(FileExistsError):  # another `make run` was first: its key is used
        os.link(unfinished, path)
    unfinished.unlink()
