"""Token issuers in the format of every provider: they sign any claims and serve their keys on loopback."""

import base64
import copy
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from chalicelib.settings.table import SETTINGS

Json = dict[str, Any]

AUDIENCE = "test-client"
"""The same for all providers, so that the audience alone never distinguishes their tokens."""
POOL = "eu-west-1_TestIssuer"
DIRECTORY = "6e93a8a3-6b8b-4a52-9f1b-3f0c4a9d2b11"
ANY_DIRECTORY = "https://login.microsoftonline.com/{tenantid}/v2.0"
BLANKS = b" " * 65536
VARIABLES = [name for name in SETTINGS if name.startswith(("AUTH_", "COGNITO_"))]


def encoded(value: Any) -> str:
    """base64url of bytes, or of a value's JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(segment: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))


@dataclass(frozen=True)
class Provider:
    """The claims that one kind of issuer writes, and the settings with which the API accepts them."""

    name: str
    issuer: str
    settings: Mapping[str, str]
    user: str = "sub"
    """The claim that names the user."""

    def claims(self, tenant: Any, /, **changes: Any) -> Json:
        """A valid token's claims with these changes; None removes a claim."""
        now = int(time.time())
        claims = {
            "sub": str(uuid4()),
            "email": "alice@example.com",
            "iss": self.issuer,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            **self._provider_claims(tenant, now),
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def variables(self, keys: "KeyServer", **changes: str) -> dict[str, str]:
        """Environment variables with which the API accepts only this issuer's tokens."""
        common = {"AUTH_PROVIDER": self.name, "AUTH_AUDIENCE": AUDIENCE, "AUTH_JWKS_URL": keys.url}
        return {**dict.fromkeys(VARIABLES, ""), **common, **self.settings, **changes}

    def _provider_claims(self, tenant: Any, now: int) -> Json:
        if self.name == "cognito":
            return {"custom:tenant_id": tenant, "cognito:username": "alice", "token_use": "id"}
        if self.name == "entra":
            return {"tid": tenant, "oid": str(uuid4()), "nbf": now, "ver": "2.0", "azp": AUDIENCE}
        if self.name == "firebase":
            tenant_claim = {} if tenant is None else {"tenant": tenant}
            return {
                "auth_time": now,
                "firebase": {"sign_in_provider": "password", "identities": {}, **tenant_claim},
            }
        return {"tenant_id": tenant}


COGNITO = Provider(
    "cognito",
    f"https://cognito-idp.eu-west-1.amazonaws.com/{POOL}",
    {"COGNITO_USER_POOL_ARN": f"arn:aws:cognito-idp:eu-west-1:123456789012:userpool/{POOL}"},
)
ENTRA = Provider(
    "entra",
    ANY_DIRECTORY.replace("{tenantid}", DIRECTORY),
    {"AUTH_ISSUER": ANY_DIRECTORY.replace("{tenantid}", DIRECTORY)},
    user="oid",
)
FIREBASE = Provider("firebase", f"https://securetoken.google.com/{AUDIENCE}", {})
OIDC = Provider("oidc", "https://id.example/realms/shops", {"AUTH_ISSUER": "https://id.example/realms/shops"})
PROVIDERS = (COGNITO, ENTRA, FIREBASE, OIDC)


class SigningKey:
    """One RSA key of an issuer."""

    def __init__(self, kid: str = "key-1", size: int = 2048) -> None:
        self.kid = kid
        self._size = size

    @cached_property
    def _private(self) -> rsa.RSAPrivateKey:
        """Generated at first use: collecting tests creates many SigningKeys, and a run uses few."""
        return rsa.generate_private_key(public_exponent=65537, key_size=self._size)

    def named(self, kid: str) -> "SigningKey":
        """The same key under another id."""
        other = copy.copy(self)
        other.kid, other._private = kid, self._private
        return other

    def jwk(self, **changes: Any) -> Json:
        """The public key as a JWK with these changes; None removes a member."""
        numbers = self._private.public_key().public_numbers()
        members = {
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": self.kid,
            "n": encoded(numbers.n.to_bytes(self._private.key_size // 8, "big")),
            "e": "AQAB",
            **changes,
        }
        return {name: value for name, value in members.items() if value is not None}

    def token(self, claims: Any, hash_: hashes.HashAlgorithm | None = None, **header: Any) -> str:
        """A signed token; `header` changes header members, None removes one."""
        members = {"typ": "JWT", "alg": "RS256", "kid": self.kid, **header}
        return self.signed(
            {name: value for name, value in members.items() if value is not None}, claims, hash_
        )

    def signed(self, header: Any, claims: Any, hash_: hashes.HashAlgorithm | None = None) -> str:
        """A token of exactly this header and these claims, each as bytes or as a JSON value."""
        signing_input = f"{encoded(header)}.{encoded(claims)}"
        signature = self._private.sign(signing_input.encode(), padding.PKCS1v15(), hash_ or hashes.SHA256())
        return f"{signing_input}.{encoded(signature)}"


class KeyServer:
    """Serves `body` at `url` and counts the fetches; can be stopped and slowed down."""

    def __init__(self, *keys: Json) -> None:
        self.fetches = 0
        self.status = 200
        self.headers: dict[str, str] = {}
        self.byte_delay = 0.0
        """Seconds between two bytes of the body."""
        self.padding = 0
        """Number of blanks sent after the body."""
        self.padded = 0
        """Number of those blanks that clients have read."""
        self.released = threading.Event()
        """While it is cleared, responses wait until it is set."""
        self.released.set()
        self.held = 0
        """Number of responses that had to wait."""
        self.publish(*keys)
        self._count = threading.Lock()
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/jwks.json"

    def publish(self, *keys: Any) -> None:
        self.body = json.dumps({"keys": keys}).encode()

    def start(self) -> None:
        """Listens; after `stop` on the same port again."""
        key_server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                key_server._answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        self.released.set()
        self.byte_delay = 0
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._count:
            self.fetches += 1
            body, released = self.body, self.released
            self.held += not released.is_set()
        released.wait(30)
        # Firewalls of some issuers refuse this User-Agent.
        blocked = handler.headers.get("User-Agent", "").startswith("Python-urllib")
        try:
            handler.send_response(403 if blocked else self.status)
            for name, value in self.headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body) + self.padding))
            handler.end_headers()
            sent = 0
            while self.byte_delay and sent < len(body):
                handler.wfile.write(body[sent : sent + 1])
                sent += 1
                time.sleep(self.byte_delay)
            handler.wfile.write(body[sent:])
            for _ in range(self.padding // len(BLANKS)):
                handler.wfile.write(BLANKS)
                self.padded += len(BLANKS)
        except OSError:
            pass  # the client closed the connection before the end


@contextmanager
def accepted(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets these variables for the API in this process; clears its token caches before and after."""
    from chalicelib.http.admission import claim_names
    from chalicelib.identity import tokens

    caches = (tokens._accepted_tokens, tokens._key_set, tokens._refusal_log, tokens._verified_claims)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        for cache in (claim_names, *caches):
            cache.cache_clear()
        yield
    for cache in (claim_names, *caches):
        cache.cache_clear()
