"""Local fakes of the clouds' secret stores and identity endpoints, with the protocols that their SDKs use.

The SDKs keep the real addresses: the server is also their HTTPS proxy and terminates TLS for every host
with a certificate of a temporary authority.
"""

import json
import ssl
import threading
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.message import Message
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

TOKEN = "token-of-this-machine"
AZURE_SECRET = "https://shop.vault.azure.net/secrets/db-password"
GOOGLE_SECRET = "projects/shop-1234/secrets/db-password"
OCI_SECRET = "ocid1.vaultsecret.oc1.eu-frankfurt-1.amaaaaaadbpassword"
HOSTS = (
    "shop.vault.azure.net",
    "secretmanager.googleapis.com",
    "secrets.vaults.eu-frankfurt-1.oci.oraclecloud.com",
)


@dataclass
class StoreRequest:
    """A request, over plain HTTP or through the HTTPS proxy."""

    url: str
    """Path and query; over TLS with scheme and host in front."""
    headers: Message
    body: bytes


ERRORS = {
    "down": (503, "Unavailable", "come back later"),
    "forbidden": (403, "Denied", "this is not for you"),
}
Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""
Reply = Callable[["Store", StoreRequest], Answer]


@dataclass
class Store:
    """One secret and its store's behaviour. `reply` implements a cloud's protocol."""

    reply: Reply
    text: str = ""
    behaviour: str = "good"
    """`good`, `down` (503), `forbidden` (403), `broken` (truncated JSON with the secret in it) or `slow`."""
    fetches: int = 0
    sign_ins: int = 0
    address: str = ""
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def reset(self) -> None:
        self.behaviour, self.fetches, self.sign_ins = "good", 0, 0

    def secret(self, answer: Callable[[], Answer]) -> Answer:
        """Counts a fetch, and answers according to `behaviour`."""
        self.fetches += 1
        if self.behaviour in ERRORS:
            status, code, message = ERRORS[self.behaviour]
            # Each SDK reads other members of this.
            error = {
                "__type": code,
                "code": code,
                "message": message,
                "error": {"code": code, "message": message},
            }
            return status, *_json(error)[1:]
        status, headers, body = answer()
        if self.behaviour == "broken":
            # Truncated after the secret: not valid JSON.
            return status, headers, b"<" + body[:-1]
        return status, headers, body


def azure(store: Store, request: StoreRequest) -> Answer:
    """Key Vault's Get Secret with its challenge, and App Service's managed identity, version 2019-08-01."""
    url = urlsplit(request.url)
    query = parse_qs(url.query)
    if url.path == "/msi/token":
        assert request.headers["X-IDENTITY-HEADER"] == "of-this-app"
        assert query["resource"] == ["https://vault.azure.net"]
        store.sign_ins += 1
        return _json(
            {"access_token": TOKEN, "expires_on": str(int(time.time()) + 3600), "token_type": "Bearer"}
        )
    assert f"https://{url.netloc}{url.path}".startswith(AZURE_SECRET)
    if request.headers.get("Authorization") != f"Bearer {TOKEN}":
        challenge = (
            'Bearer authorization="https://login.microsoftonline.com/a", resource="https://vault.azure.net"'
        )
        return 401, {"WWW-Authenticate": challenge}, b""
    assert "api-version" in query
    return store.secret(
        lambda: _json(
            {"value": store.text, "id": f"{AZURE_SECRET}/{32 * '0'}", "attributes": {"enabled": True}}
        )
    )


def google(store: Store, request: StoreRequest) -> Answer:
    """Secret Manager's v1 REST access method, and the metadata server's token."""
    url = urlsplit(request.url)
    if not url.netloc:
        flavour = {"Metadata-Flavor": "Google"}
        if url.path.endswith("/default/token"):
            store.sign_ins += 1
            token = {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}
            return _json(token, **flavour)
        if url.path.endswith("/default/"):
            return _json(
                {"email": "api@shop-1234.iam.gserviceaccount.com", "scopes": [], "aliases": []}, **flavour
            )
        metadata = {"/": b"computeMetadata/", "/computeMetadata/v1/project/project-id": b"shop-1234"}
        text = {**flavour, "Content-Type": "application/text"}
        return (200, text, metadata[url.path]) if url.path in metadata else (404, text, b"")
    assert url.path == f"/v1/{GOOGLE_SECRET}/versions/latest:access"
    assert request.headers["Authorization"] == f"Bearer {TOKEN}"
    payload = {"data": b64encode(store.text.encode()).decode()}
    return store.secret(lambda: _json({"name": f"{GOOGLE_SECRET}/versions/1", "payload": payload}))


def oci(store: Store, request: StoreRequest) -> Answer:
    """Vault's GetSecretBundle; the request must be signed with the resource principal's key."""
    url = urlsplit(request.url)
    assert (url.netloc, url.path) == (HOSTS[2], f"/20190301/secretbundles/{OCI_SECRET}")
    _verify_signature(request, url.netloc, f"{url.path}?{url.query}" if url.query else url.path, store.key)
    store.sign_ins += 1
    content = {"contentType": "BASE64", "content": b64encode(store.text.encode()).decode()}
    bundle = {
        "secretId": OCI_SECRET,
        "versionNumber": 1,
        "secretBundleContent": content,
        "stages": ["CURRENT"],
    }
    return store.secret(lambda: _json(bundle))


def in_front_of(endpoint: str) -> Reply:
    """Forwards to moto's Secrets Manager; counts fetches and applies `behaviour`."""

    def aws(store: Store, request: StoreRequest) -> Answer:
        assert request.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue"

        def forward() -> Answer:
            connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=10)
            connection.request("POST", request.url, request.body, dict(request.headers.items()))
            answer = connection.getresponse()
            return answer.status, {"Content-Type": "application/x-amz-json-1.1"}, answer.read()

        return store.secret(forward)

    return aws


@contextmanager
def serving(store: Store, folder: Path | None = None) -> Iterator[dict[str, str]]:
    """Serves the store; yields the environment variables for its SDK. With a folder also over TLS."""
    tls = _tls(folder) if folder else None

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        host = ""

        def do_CONNECT(self) -> None:
            self.send_response(200)
            self.end_headers()
            assert tls is not None
            with suppress(OSError), tls.wrap_socket(self.connection, server_side=True) as connection:
                inside = type("Inside", (Handler,), {"host": self.path.removesuffix(":443")})
                inside(connection, self.client_address, self.server)
            self.close_connection = True

        def do_GET(self) -> None:
            if store.behaviour == "slow":
                time.sleep(6)
                self.close_connection = True
                return
            length = int(self.headers.get("Content-Length") or 0)
            url = f"https://{self.host}{self.path}" if self.host else self.path
            try:
                status, headers, body = store.reply(
                    store, StoreRequest(url, self.headers, self.rfile.read(length))
                )
            except Exception as error:  # an unexpected request: make the test fail with this text
                status, headers, body = 500, {}, f"{type(error).__name__} at {url}: {error}".encode()
            with suppress(OSError):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    store.address = f"127.0.0.1:{server.server_address[1]}"
    try:
        yield _environment(store, folder)
    finally:
        server.shutdown()
        server.server_close()


def _environment(store: Store, folder: Path | None) -> dict[str, str]:
    """The variables that the cloud's platform sets, and the proxy."""
    http = f"http://{store.address}"
    if folder is None:
        return {"AWS_ENDPOINT_URL_SECRETS_MANAGER": http}
    (folder / "rpst").write_text(_session_token())
    (folder / "key.pem").write_bytes(_pem(store.key))
    platforms: dict[Reply, dict[str, str]] = {
        azure: {"IDENTITY_ENDPOINT": f"{http}/msi/token", "IDENTITY_HEADER": "of-this-app"},
        google: {"GCE_METADATA_HOST": store.address, "GCE_METADATA_IP": store.address},
        oci: {
            "OCI_RESOURCE_PRINCIPAL_VERSION": "2.2",
            "OCI_RESOURCE_PRINCIPAL_REGION": "eu-frankfurt-1",
            "OCI_RESOURCE_PRINCIPAL_RPST": str(folder / "rpst"),
            "OCI_RESOURCE_PRINCIPAL_PRIVATE_PEM": str(folder / "key.pem"),
        },
    }
    ca = str(folder / "ca.pem")
    proxy = {"HTTPS_PROXY": http, "NO_PROXY": "127.0.0.1", "REQUESTS_CA_BUNDLE": ca}
    return {**proxy, **platforms[store.reply]}


def _json(value: Any, **headers: str) -> Answer:
    return 200, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def _verify_signature(request: StoreRequest, host: str, target: str, key: rsa.RSAPrivateKey) -> None:
    """OCI's request signature, version 1 (an HTTP signature, draft-cavage 08)."""
    scheme, _, rest = request.headers["Authorization"].partition(" ")
    parts = dict(part.split("=", 1) for part in rest.replace('"', "").split(","))
    assert (scheme, parts["algorithm"], parts["keyId"]) == (
        "Signature",
        "rsa-sha256",
        f"ST${_session_token()}",
    )
    special = {"(request-target)": f"get {target}", "host": host}
    signed = "\n".join(
        f"{name}: {special.get(name) or request.headers[name]}" for name in parts["headers"].split(" ")
    )
    try:
        key.public_key().verify(
            b64decode(parts["signature"]), signed.encode(), padding.PKCS1v15(), hashes.SHA256()
        )
    except InvalidSignature:
        raise AssertionError("the signature is not of this key") from None


def _session_token() -> str:
    """A resource principal session token; the SDK reads only `exp`."""
    parts = [{"alg": "RS256"}, {"exp": 4102444800, "res_tenant": "ocid1.tenancy.oc1..shop"}, {}]
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _tls(folder: Path) -> ssl.SSLContext:
    """A certificate for all HOSTS, issued by an authority whose certificate is in folder/ca.pem."""
    authority, key = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    ca = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "throw-away")])
    names = x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS])
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())

    def certificate(of: rsa.RSAPrivateKey, name: str, *extensions: tuple[x509.ExtensionType, bool]) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(ca, subject, of.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    key_id = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    usage = x509.KeyUsage(True, False, False, False, False, True, False, False, False)
    (folder / "ca.pem").write_bytes(
        certificate(authority, "throw-away", (constraints, True), (usage, True), (key_id, False))
    )
    (folder / "host.pem").write_bytes(certificate(key, HOSTS[0], (names, False), (signer, False)) + _pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "host.pem")
    return context
