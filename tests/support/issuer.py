"""Issuers of every provider's shape that sign what none would, and serve their keys over HTTP on loopback."""

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
"""One for all providers, so that it never is what tells their tokens apart."""
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
    """What one kind of issuer writes into its tokens, and what makes the API accept them."""

    name: str
    issuer: str
    settings: Mapping[str, str]
    user: str = "sub"
    """The claim that names the user."""

    def claims(self, tenant: Any, /, **changes: Any) -> Json:
        """A good token's claims with some of them changed; None leaves one out."""
        now = int(time.time())
        claims = {
            "sub": str(uuid4()),
            "email": "alice@example.com",
            "iss": self.issuer,
            "aud": AUDIENCE,
            "iat": now,
            "exp": now + 600,
            **self._own_claims(tenant, now),
            **changes,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def variables(self, keys: "KeyServer", **changes: str) -> dict[str, str]:
        """What makes the API accept this issuer's tokens alone."""
        set_ = {"AUTH_PROVIDER": self.name, "AUTH_AUDIENCE": AUDIENCE, "AUTH_JWKS_URL": keys.url}
        return {**dict.fromkeys(VARIABLES, ""), **set_, **self.settings, **changes}

    def _own_claims(self, tenant: Any, now: int) -> Json:
        if self.name == "cognito":
            return {"custom:tenant_id": tenant, "cognito:username": "alice", "token_use": "id"}
        if self.name == "entra":
            return {"tid": tenant, "oid": str(uuid4()), "nbf": now, "ver": "2.0", "azp": AUDIENCE}
        if self.name == "firebase":
            named = {} if tenant is None else {"tenant": tenant}
            return {"auth_time": now, "firebase": {"sign_in_provider": "password", "identities": {}, **named}}
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
        """Made at its first use: many keys are made when tests are collected, and few are used in one run."""
        return rsa.generate_private_key(public_exponent=65537, key_size=self._size)

    def named(self, kid: str) -> "SigningKey":
        """The same key under another id."""
        other = copy.copy(self)
        other.kid, other._private = kid, self._private
        return other

    def jwk(self, **changes: Any) -> Json:
        """The public key as a key server lists it; None leaves a member out."""
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
        """A signed token; header members may be changed, None leaves one out."""
        members = {"typ": "JWT", "alg": "RS256", "kid": self.kid, **header}
        return self.signed(
            {name: value for name, value in members.items() if value is not None}, claims, hash_
        )

    def signed(self, header: Any, claims: Any, hash_: hashes.HashAlgorithm | None = None) -> str:
        """A token of exactly this header and these claims, either as bytes or as what JSON is made of."""
        signing_input = f"{encoded(header)}.{encoded(claims)}"
        signature = self._private.sign(signing_input.encode(), padding.PKCS1v15(), hash_ or hashes.SHA256())
        return f"{signing_input}.{encoded(signature)}"


class KeyServer:
    """Serves `body` at `url` and counts the fetches; may be stopped, and made slow."""

    def __init__(self, *keys: Json) -> None:
        self.fetches = 0
        self.status = 200
        self.headers: dict[str, str] = {}
        self.byte_delay = 0.0
        """Seconds between two bytes of the body."""
        self.padding = 0
        """How many blanks follow the body."""
        self.padded = 0
        """How many of them the readers took."""
        self.released = threading.Event()
        """Cleared, it holds back what was asked for meanwhile until it is set."""
        self.released.set()
        self.held = 0
        """How many answers were held back."""
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
        """Listen; after `stop` on the same port again."""
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
        """Refuse connections from now on."""
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
        # As the firewall in front of many an issuer does.
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
            pass  # the reader did not wait for the end


@contextmanager
def accepted(variables: Mapping[str, str]) -> Iterator[None]:
    """The API in this process reads these variables, and no key or setting from before, nor leaves any."""
    from chalicelib.http.admission import claim_names
    from chalicelib.identity import tokens

    caches = (tokens._accepted_tokens, tokens._key_set, tokens._refusal_log, tokens._verified_claims)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        for cached in (claim_names, *caches):
            cached.cache_clear()
        yield
    for cached in (claim_names, *caches):
        cached.cache_clear()
