"""An issuer that signs what no user pool would, and serves its keys over HTTP on loopback."""

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

REGION = "eu-west-1"
POOL_ID = "eu-west-1_TestIssuer"
POOL_ARN = f"arn:aws:cognito-idp:{REGION}:123456789012:userpool/{POOL_ID}"
ISSUER = f"https://cognito-idp.{REGION}.amazonaws.com/{POOL_ID}"
CLIENT_ID = "test-client"

Json = dict[str, Any]


def encoded(value: Any) -> str:
    """base64url of bytes, or of a value's JSON."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(segment: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))


def id_claims(tenant: str | None, **changes: Any) -> Json:
    """A good ID token's claims with some of them changed; None leaves one out."""
    now = int(time.time())
    claims = {
        "sub": str(uuid4()),
        "cognito:username": "alice",
        "custom:tenant_id": tenant,
        "email": "alice@example.com",
        "iss": ISSUER,
        "aud": CLIENT_ID,
        "token_use": "id",
        "iat": now,
        "exp": now + 600,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


class SigningKey:
    """One RSA key of an issuer."""

    def __init__(self, kid: str = "key-1") -> None:
        self.kid = kid
        self._private = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    def jwk(self, **changes: Any) -> Json:
        """The public key as a key server lists it; None leaves a member out."""
        numbers = self._private.public_key().public_numbers()
        members = {
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": self.kid,
            "n": encoded(numbers.n.to_bytes(256, "big")),
            "e": "AQAB",
            **changes,
        }
        return {name: value for name, value in members.items() if value is not None}

    def token(self, claims: Any, hash_: hashes.HashAlgorithm | None = None, **header: Any) -> str:
        """A signed token; header members may be changed, None leaves one out."""
        members = {"typ": "JWT", "alg": "RS256", "kid": self.kid, **header}
        members = {name: value for name, value in members.items() if value is not None}
        signing_input = f"{encoded(members)}.{encoded(claims)}"
        signature = self._private.sign(signing_input.encode(), padding.PKCS1v15(), hash_ or hashes.SHA256())
        return f"{signing_input}.{encoded(signature)}"


class KeyServer:
    """Serves `body` at `url` and counts the fetches; may be stopped, and made slow."""

    def __init__(self, *keys: Json) -> None:
        self.fetches = 0
        self.status = 200
        self.byte_delay = 0.0
        """Seconds between two bytes of the body."""
        self.released = threading.Event()
        """Cleared, it holds every answer back until it is set."""
        self.released.set()
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
        threading.Thread(target=self._server.serve_forever, args=[0.05], daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self.released.set()
        self.byte_delay = 0
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._count:
            self.fetches += 1
        self.released.wait(30)
        body = self.body
        try:
            handler.send_response(self.status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            sent = 0
            while self.byte_delay and sent < len(body):
                handler.wfile.write(body[sent : sent + 1])
                sent += 1
                time.sleep(self.byte_delay)
            handler.wfile.write(body[sent:])
        except OSError:
            pass  # the reader did not wait for the end


@contextmanager
def accepted(variables: Mapping[str, str]) -> Iterator[None]:
    """The API in this process reads these variables, and no key or setting from before, nor leaves any."""
    from chalicelib import tokens

    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        tokens._accepted.cache_clear()
        tokens._keys.cache_clear()
        yield
    tokens._accepted.cache_clear()
    tokens._keys.cache_clear()


def variables(keys: KeyServer) -> dict[str, str]:
    """What makes the API accept this issuer's tokens alone."""
    return {"COGNITO_USER_POOL_ARN": POOL_ARN, "AUTH_AUDIENCE": CLIENT_ID, "AUTH_JWKS_URL": keys.url}
