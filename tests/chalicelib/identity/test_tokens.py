"""A valid token identifies the caller; every other token is rejected with 401."""

import hashlib
import hmac
import json
import time
import zlib
from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from chalicelib.settings.tokens import accepted_tokens
from tests.support.cognito import UserPool
from tests.support.forgeries import ambiguous_tokens
from tests.support.issuer import (
    AUDIENCE,
    COGNITO,
    ENTRA,
    OIDC,
    PROVIDERS,
    KeyServer,
    Provider,
    SigningKey,
    accepted,
    decoded,
    encoded,
)
from tools.client import SEED_BYTES, Answer, Client, Transport

Place = Callable[[str | None], Answer]
Check = Callable[..., None]
Rows = Callable[..., list[tuple[Any, ...]]]
Sign = Callable[[str], str]

JSON = {"content-type": "application/json"}
KEY, ATTACKERS_KEY = SigningKey(), SigningKey("attackers-key")

over_sockets = pytest.mark.parametrize("transport", ["http"], indirect=True)
"""For tests in which the server's parsing of the header matters."""


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> Transport:
    transport: Transport = request.getfixturevalue(getattr(request, "param", "in_process"))
    return transport


@pytest.fixture
def place(transport: Transport) -> Place:
    """Posts the seed order with this Authorization header."""

    def send(authorization: str | None) -> Answer:
        headers = JSON if authorization is None else {**JSON, "authorization": authorization}
        return transport("POST", "/orders", headers, SEED_BYTES)

    return send


@pytest.fixture
def assert_rejected(transport: Transport, place: Place, rows: Rows) -> Check:
    """Asserts that reads and writes with this Authorization header get 401 and store nothing."""

    def check(authorization: str | None, attack: object = "") -> None:
        headers = {} if authorization is None else {"authorization": authorization}
        before = stored_rows(rows)
        for answer in (
            place(authorization),
            transport("GET", "/orders", headers, b""),
            transport("GET", f"/orders/{uuid4()}", headers, b""),
        ):
            assert_unauthorized(answer, attack)
        assert stored_rows(rows) == before, attack

    return check


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    """A key server that lists KEY."""
    keys = KeyServer(KEY.jwk())
    yield keys
    keys.stop()


@pytest.fixture(params=PROVIDERS, ids=lambda provider: provider.name)
def provider(request: pytest.FixtureRequest, app: Any, keys: KeyServer) -> Iterator[Provider]:  # noqa: ARG001
    """Configures the API for this provider, with KEY as the signing key."""
    with accepted(request.param.variables(keys)):
        yield request.param


@pytest.fixture(params=["user pool", *PROVIDERS], ids=lambda provider: getattr(provider, "name", provider))
def sign(
    request: pytest.FixtureRequest,
    app: Any,  # noqa: ARG001 (it reads its settings first)
    user_pool: UserPool,
    keys: KeyServer,
) -> Iterator[Sign]:
    """Signs valid tokens for a tenant, with moto's user pool or with KEY for a provider."""
    provider = request.param
    if provider == "user pool":
        yield lambda tenant: user_pool.sign_in(tenant, "alice", user_pool.client_id)["IdToken"]
        return
    with accepted(provider.variables(keys)):
        yield lambda tenant: KEY.token(provider.claims(tenant))


@pytest.fixture
def valid_token(sign: Sign, tenant: str) -> str:
    return sign(tenant)


def assert_unauthorized(answer: Answer, attack: object = "") -> None:
    assert answer.status == 401, (attack, answer)
    assert answer.slug == "unauthorized"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["x-request-id"] == answer.json["request_id"]
    assert set(answer.json) == {"type", "title", "status", "detail", "request_id", "errors"}
    assert answer.json["errors"] == []


def decoded_bytes(segment: str) -> bytes:
    return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


def stored_rows(rows: Rows) -> list[tuple[Any, ...]]:
    return rows("select (select count(*) from orders), (select count(*) from idempotency_keys)")


# Valid tokens


@over_sockets
def test_valid_token_is_accepted_with_or_without_bearer(place: Place, valid_token: str, tenant: str) -> None:
    claims = decoded(valid_token.split(".")[1])
    for form in ("Bearer {}", "bearer {}", "BEARER {}", "{}", "Bearer  {}", " Bearer {} "):
        answer = place(form.format(valid_token))
        assert answer.status == 201, form
        assert answer.json["order"]["tenant_id"] == tenant
        assert answer.json["order"]["created_by"] == claims.get("oid", claims["sub"])


def test_clock_skew_of_half_a_minute_is_tolerated(place: Place, provider: Provider, tenant: str) -> None:
    for claim, seconds in (("exp", -20), ("nbf", 20), ("nbf", -600), ("iat", 20)):
        claims = provider.claims(tenant, **{claim: int(time.time()) + seconds})
        assert place(KEY.token(claims)).status == 201, (claim, seconds)


# Not Firebase: its only audience is the project.
@pytest.mark.parametrize(
    "provider", [COGNITO, ENTRA, OIDC], indirect=True, ids=lambda provider: provider.name
)
def test_one_of_several_configured_audiences_is_enough(place: Place, provider: Provider, tenant: str) -> None:
    clients = f"web, {AUDIENCE}"
    with accepted({"AUTH_AUDIENCE": clients}):
        assert place(KEY.token(provider.claims(tenant))).status == 201
        assert place(KEY.token(provider.claims(tenant, aud="web"))).status == 201
        assert place(KEY.token(provider.claims(tenant, aud="we"))).status == 401
        assert place(KEY.token(provider.claims(tenant, aud=clients))).status == 401


# Malformed tokens

COMPRESSED = zlib.compress(b" " * 3_000_000, wbits=-15)
"""A decompression bomb: 3 MB in 3 kB (RFC 8725, 3.6)."""
GARBAGE = {
    "absent": None,
    "empty": "",
    "blank": "   ",
    "a bare scheme": "Bearer",
    "a scheme and a blank": "Bearer ",
    "Basic": "Basic YWxpY2U6c2VjcmV0",
    "Digest": 'Digest username="alice"',
    "a word": "garbage",
    "Bearer and a word": "Bearer garbage",
    "null": "Bearer null",
    "one dot": "Bearer a.b",
    "two dots": "Bearer a.b.c",
    "dots alone": "Bearer ..",
    "many dots": "Bearer " + "." * 10_000,
    "10,000 characters": "Bearer " + "x" * 10_000,
    "10,000 characters in three parts": f"{'A' * 3333}.{'A' * 3333}.{'A' * 3333}",
    "Latin-1": "Bearer \u00fc.\u00fc.\u00fc",
    "UTF-8": "Bearer 李.李.李".encode().decode("latin-1"),
    "a no-break space": "Bearer\u00a0a.b.c",
    "bytes that are no UTF-8": "Bearer \u00ff\u00fe",
    "empty objects": "Bearer e30.e30.",
    "quoted": 'Bearer "a.b.c"',
    "a header that is a list": f"{encoded(['RS256'])}.e30.AA",
    "a header that is null": f"{encoded(None)}.e30.AA",
    "a header that is not JSON": f"{encoded(b'{')}.e30.AA",
    "a header that is no UTF-8": f"{encoded(bytes([255]))}.e30.AA",
    "a header nested deep": f"{encoded(b'[' * 20_000)}.e30.AA",
    "a kid that is a list": f"{encoded({'alg': 'RS256', 'kid': ['key-1']})}.e30.AA",
    "a kid that is an object": f"{encoded({'alg': 'RS256', 'kid': {}})}.e30.AA",
    "an alg that is a list": f"{encoded({'alg': ['RS256'], 'kid': 'key-1'})}.e30.AA",
    "a header nested less deep": f"{encoded(b'[' * 3000)}.e30.AA",
    "a kid of 5,000 characters": f"{encoded({'alg': 'RS256', 'kid': 'k' * 5000})}.e30.AA",
    "a kid of 2,000 digits": f"{encoded({'alg': 'RS256', 'kid': 10**2000})}.e30.AA",
    "encrypted": f"{encoded({'alg': 'RSA-OAEP', 'enc': 'A256GCM', 'kid': 'key-1'})}.AA.AA.AA.AA",
    "encrypted and compressed": (
        f"{encoded({'alg': 'dir', 'enc': 'A128GCM', 'zip': 'DEF'})}..AAAA.{encoded(COMPRESSED)}.AAAA"
    ),
    "encrypted, labelled as signed": (
        f"{encoded({'alg': 'RS256', 'kid': 'key-1', 'zip': 'DEF'})}..AAAA.{encoded(COMPRESSED)}.AAAA"
    ),
    "JSON serialization": '{"payload":"e30","protected":"e30","signature":"AA"}',
}


@over_sockets
@pytest.mark.usefixtures("provider")
def test_garbage_authorization_header_is_rejected(assert_rejected: Check) -> None:
    for name, authorization in GARBAGE.items():
        assert_rejected(authorization, name)


WRONG_FORMS = [
    "Basic {}",
    "Token {}",
    "BearerX {}",
    "Bearer:{}",
    "Bearer={}",
    "Bearer Bearer {}",
    "Bearer {} {}",
    "{} {}",
    "{},{}",
    "Bearer {}, Bearer {}",
    'Bearer "{}"',
    "Bearer {}.{}",
    "Bearer .{}",
    "Bearer {}.",
    "Bearer {},",
    "Bearer {}" + "." * 5_000,
    "Bearer {}.AAAA.AAAA",
]


@over_sockets
def test_valid_token_in_a_malformed_header_is_rejected(assert_rejected: Check, valid_token: str) -> None:
    for form in WRONG_FORMS:
        assert_rejected(form.format(valid_token, valid_token), form)


@over_sockets
def test_signature_with_invalid_base64_characters_is_rejected(
    assert_rejected: Check, valid_token: str
) -> None:
    """RFC 7515, section 5.2: base64url without additional characters."""
    for addition in ("!", "!!!!", "\u00fc", "====A", "=="):
        assert_rejected(f"Bearer {valid_token}{addition}", addition)


def test_non_canonical_base64_signature_is_rejected(assert_rejected: Check, valid_token: str) -> None:
    """RFC 4648, section 3.5: the last character of 256 bytes has four unused bits."""
    next_character = chr(ord(valid_token[-1]) + 1)
    assert decoded_bytes(valid_token[-2:]) == decoded_bytes(valid_token[-2] + next_character)

    assert_rejected(valid_token[:-1] + next_character)


# Valid signature, but not for this API


@pytest.mark.usefixtures("app")
def test_token_of_another_user_pool_is_rejected(
    assert_rejected: Check, place: Place, user_pool: UserPool, tenant: str
) -> None:
    """All of moto's pools share one key, so that only the issuer differs."""
    other = UserPool(user_pool._endpoint, "another-pool")
    foreign = other.sign_in(tenant, "alice", other.client_id)["IdToken"]
    assert_rejected(foreign)

    with accepted({"AUTH_AUDIENCE": f"{user_pool.client_id},{other.client_id}"}):
        assert_rejected(foreign)
        assert place(user_pool.token(tenant)).status == 201


def test_token_of_another_app_client_is_rejected(
    assert_rejected: Check, user_pool: UserPool, tenant: str
) -> None:
    assert_rejected(user_pool.sign_in(tenant, "alice", user_pool.other_client_id)["IdToken"])


def test_an_access_token_is_refused(assert_rejected: Check, user_pool: UserPool, tenant: str) -> None:
    assert_rejected(user_pool.sign_in(tenant, "alice", user_pool.client_id)["AccessToken"])


# Forged tokens


WRONG_ALGORITHMS = ["none", "None", "NONE", "", None, "HS256", "RS512", "rs256"]


def test_token_with_another_algorithm_is_rejected(assert_rejected: Check, valid_token: str) -> None:
    header, payload, original = valid_token.split(".")
    for algorithm, signature in product(WRONG_ALGORITHMS, ("", "AA", original)):
        forged = {**decoded(header), "alg": algorithm}
        assert_rejected(f"Bearer {encoded(forged)}.{payload}.{signature}", (algorithm, signature))


PUBLIC_FORMS = ["pem", "pem without newline", "der", "jwk", "compact jwk", "jwks", "n"]


def test_hmac_signed_with_the_public_key_is_rejected(assert_rejected: Check, valid_token: str) -> None:
    with urlopen(Request(accepted_tokens().jwks_url, headers={"User-Agent": "curl"})) as answer:
        jwks = answer.read()

    payload = valid_token.split(".")[1]
    for form, with_kid in product(PUBLIC_FORMS, (True, False)):
        assert_rejected(hs256_with_public_key(jwks, form, payload, with_kid=with_kid), (form, with_kid))


def hs256_with_public_key(jwks: bytes, form: str, payload: str, *, with_kid: bool = True) -> str:
    """An HS256 token whose shared secret is the published public key, in one of PUBLIC_FORMS."""
    jwk = json.loads(jwks)["keys"][0]
    e, n = (int.from_bytes(urlsafe_b64decode(jwk[name] + "==="), "big") for name in "en")
    key = RSAPublicNumbers(e, n).public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    secret = {
        "pem": pem,
        "pem without newline": pem.strip(),
        "der": key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        "jwk": json.dumps(jwk).encode(),
        "compact jwk": json.dumps(jwk, separators=(",", ":")).encode(),
        "jwks": jwks,
        "n": jwk["n"].encode(),
    }[form]
    header = {"alg": "HS256", "typ": "JWT", **({"kid": jwk["kid"]} if with_kid else {})}
    signing_input = f"{encoded(header)}.{payload}"
    return f"{signing_input}.{encoded(hmac.digest(secret, signing_input.encode(), hashlib.sha256))}"


def test_a_changed_payload_is_refused(assert_rejected: Check, valid_token: str) -> None:
    header, payload, signature = valid_token.split(".")
    names = ("custom:tenant_id", "tid", "tenant_id")
    victim = {**decoded(payload), **dict.fromkeys(names, "victim"), "firebase": {"tenant": "victim"}}

    assert_rejected(f"{header}.{encoded(victim)}.{signature}")


def test_a_changed_signature_is_refused(assert_rejected: Check, valid_token: str) -> None:
    header, payload, signature = valid_token.split(".")
    for changed in (
        ("B" if signature[0] == "A" else "A") + signature[1:],
        signature[:-4],
        signature + "AAAA",
        signature[::-1],
        "A" * len(signature),
        "",
    ):
        assert_rejected(f"{header}.{payload}.{changed}")


def test_a_signature_of_another_token_is_refused(
    assert_rejected: Check, sign: Sign, valid_token: str
) -> None:
    other = sign("another-tenant")

    assert_rejected(".".join([*valid_token.split(".")[:2], other.split(".")[2]]))


# Valid signature, invalid content


def test_issuers_of_the_tests_sign_valid_tokens(place: Place, provider: Provider, tenant: str) -> None:
    answer = place(KEY.token(provider.claims(tenant)))

    assert (answer.status, answer.json["order"]["tenant_id"]) == (201, tenant)


def test_token_outside_its_validity_period_is_rejected(
    assert_rejected: Check, provider: Provider, tenant: str
) -> None:
    for claim, seconds in (("exp", -40), ("exp", -86_400), ("nbf", 40), ("nbf", 86_400), ("iat", 40)):
        claims = provider.claims(tenant, **{claim: int(time.time()) + seconds})
        assert_rejected(KEY.token(claims), (claim, seconds))


WRONG_CLAIMS: list[dict[str, Any]] = [
    {"exp": None},
    {"exp": 0},
    {"exp": True},
    {"exp": "9999999999"},
    {"exp": [9_999_999_999]},
    {"exp": float("nan")},
    {"exp": float("inf")},
    {"exp": 10**400},
    {"nbf": "tomorrow"},
    {"nbf": [0]},
    {"nbf": float("nan")},
    {"nbf": float("-inf")},
    {"nbf": "0"},
    {"nbf": True},
    {"iat": float("nan")},
    {"iat": "0"},
    {"iat": True},
    {"iat": []},
    {"iss": None},
    {"iss": ""},
    {"iss": "https://attacker.example"},
    {"iss": 5},
    {"iss": {}},
    {"aud": None},
    {"aud": ""},
    {"aud": "another-client"},
    {"aud": AUDIENCE.upper()},
    {"aud": AUDIENCE[:-1]},
    {"aud": ["another-client"]},
    {"aud": [[AUDIENCE]]},
    {"aud": []},
    {"aud": {}},
    {"aud": {AUDIENCE: 1}},
    {"aud": 5},
    {"sub": None},
    {"sub": ""},
    {"sub": 5},
    {"sub": ["alice"]},
    {"aud": [AUDIENCE.upper(), "another-client"]},
    {"aud": f"{AUDIENCE},another-client"},
    {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    {"events": {}},
    {"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}},
    {"cnf": {"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}},
    {"email": float("nan")},
    {"email": {"a": [float("-inf")]}},
]


def test_a_token_with_a_wrong_claim_is_refused(
    assert_rejected: Check, provider: Provider, tenant: str
) -> None:
    for changes in WRONG_CLAIMS:
        assert_rejected(KEY.token(provider.claims(tenant, **changes)), changes)


def test_token_without_a_valid_user_is_rejected(
    assert_rejected: Check, provider: Provider, tenant: str
) -> None:
    for user in ("", " ", 5, ["alice"], "x" * 256, "a\x00b"):
        assert_rejected(KEY.token(provider.claims(tenant, **{provider.user: user})), user)


def test_near_match_of_the_issuer_is_rejected(
    assert_rejected: Check, provider: Provider, tenant: str
) -> None:
    name = provider.issuer
    for iss in (f"{name}/", name.upper(), [name], name[:-1], f" {name}", name.replace("https", "http")):
        assert_rejected(KEY.token(provider.claims(tenant, iss=iss)), iss)


@pytest.mark.parametrize("provider", [COGNITO], indirect=True, ids=["cognito"])
def test_only_cognito_id_tokens_are_accepted(assert_rejected: Check, provider: Provider, tenant: str) -> None:
    wrong_uses: list[dict[str, Any]] = [
        {"token_use": None},
        {"token_use": ""},
        {"token_use": "access"},
        {"token_use": "access", "client_id": AUDIENCE},
        {"token_use": "refresh"},
        {"token_use": ["id"]},
    ]
    for changes in wrong_uses:
        assert_rejected(KEY.token(provider.claims(tenant, **changes)), changes)


@pytest.mark.usefixtures("provider")
def test_non_object_claims_are_rejected(assert_rejected: Check) -> None:
    payloads: list[Any] = [[], None, "alice", 5, b"", b"{", b"\xff", b"[" * 20_000]
    for payload in payloads:
        assert_rejected(KEY.token(payload), payload)


WRONG_HEADERS: list[dict[str, Any]] = [
    {"kid": None},
    {"kid": ""},
    {"kid": "unknown"},
    {"kid": 1},
    {"kid": "../../key-1"},
    {"alg": None},
    {"alg": "RS384"},
    {"alg": "RS512"},
    {"alg": "PS256"},
    {"alg": "ES256"},
    {"alg": "HS256"},
    {"alg": "none"},
    {"crit": ["exp"]},
    {"crit": ["b64"], "b64": True},
    {"crit": []},
    {"crit": "exp"},
    {"crit": ["b64"], "b64": False},
    {"b64": False},
    {"b64": True},
    {"typ": ""},
    {"typ": 5},
    {"typ": ["JWT"]},
    {"typ": "JWE"},
    {"typ": "JOSE"},
    {"typ": "logout+jwt"},
    {"typ": "application/logout+jwt"},
    {"typ": "secevent+jwt"},
    {"typ": "dpop+jwt"},
]


def test_token_with_a_wrong_jose_header_is_rejected(
    assert_rejected: Check, provider: Provider, tenant: str
) -> None:
    for header in WRONG_HEADERS:
        assert_rejected(KEY.token(provider.claims(tenant), **header), header)


def test_ambiguously_encoded_token_is_rejected(
    place: Place, assert_rejected: Check, provider: Provider, tenant: str
) -> None:
    """RFC 7515, section 4, RFC 7519, section 4, and RFC 8725, section 3.7."""
    claims = provider.claims(tenant)
    assert place(KEY.token(claims)).status == 201

    for name, token in ambiguous_tokens(KEY, claims, "victim"):
        assert_rejected(token, name)


def test_typ_header_accepts_only_the_providers_token_kinds(
    place: Place, provider: Provider, tenant: str
) -> None:
    """Cognito and Firebase send ID tokens; only the other providers send access tokens (RFC 9068)."""
    only_id_tokens = provider.name in ("cognito", "firebase")
    for typ in (None, "JWT", "jwt", "application/jwt", "at+jwt", "application/AT+JWT"):
        rejected = typ is not None and "at+" in typ.lower() and only_id_tokens
        assert place(KEY.token(provider.claims(tenant), typ=typ)).status == (401 if rejected else 201), typ


def test_deeply_nested_signed_claims_cause_no_500(place: Place, provider: Provider, tenant: str) -> None:
    for depth in (100, 900, 1_000, 3_000, 5_000):
        nested_claims = json.dumps(provider.claims(tenant))[:-1] + f',"a":{"[" * depth}{"]" * depth}}}'
        assert place(KEY.token(nested_claims.encode())).status in (201, 401)


def test_rs512_signature_is_rejected(assert_rejected: Check, provider: Provider, tenant: str) -> None:
    assert_rejected(KEY.token(provider.claims(tenant), hashes.SHA512(), alg="RS512"))
    assert_rejected(KEY.token(provider.claims(tenant), hashes.SHA512()))


POINTERS = ["jku", "x5u", "jwk", "x5c", "iss"]


def token_with_own_key(pointer: str, kid: str, claims: dict[str, Any], attackers_server: KeyServer) -> str:
    """A token signed by ATTACKERS_KEY whose header or issuer points to that key."""
    jwk = ATTACKERS_KEY.jwk(kid=kid)
    pointers: dict[str, dict[str, Any]] = {
        "jku": {"jku": attackers_server.url},
        "x5u": {"x5u": attackers_server.url},
        "jwk": {"jwk": jwk},
        "x5c": {"x5c": [jwk["n"]]},
        "iss": {},
    }
    token_claims = {**claims, "iss": attackers_server.url} if pointer == "iss" else claims
    return ATTACKERS_KEY.token(token_claims, **pointers[pointer], kid=kid)


@pytest.mark.parametrize("kid", ["attackers-key", KEY.kid])
def test_a_token_cannot_bring_its_own_key(
    assert_rejected: Check, provider: Provider, tenant: str, kid: str
) -> None:
    attackers_server = KeyServer(ATTACKERS_KEY.jwk(kid=kid))

    for pointer in POINTERS:
        assert_rejected(token_with_own_key(pointer, kid, provider.claims(tenant), attackers_server), pointer)

    attackers_server.stop()
    assert attackers_server.fetches == 0


# Valid tokens without a tenant

WITHOUT_TENANT: dict[str, Any] = {
    "absent": None,
    "empty": "",
    "a space": " ",
    "blanks": " \t ",
    "too long": "x" * 256,
    "a newline": "acme\n",
    "NUL": "ac\x00me",
    "DEL": "acme\x7f",
    "an escape": "\x1b[31macme",
    "a lone surrogate": "\ud800",
    "a no-break space": "\u00a0",
    "a line separator": "acme\u2028",
    "a number": 5,
    "a list": ["acme"],
    "an object": {"acme": 1},
    "true": True,
}


def test_valid_token_without_a_tenant_claim_is_forbidden(
    in_process: Transport, rows: Rows, provider: Provider
) -> None:
    before = stored_rows(rows)

    for name, tenant_claim in WITHOUT_TENANT.items():
        caller = Client(in_process, KEY.token(provider.claims(tenant_claim)))
        for answer in (caller.place(), caller.get("/orders"), caller.get(f"/orders/{uuid4()}")):
            assert answer.status == 403, name
            assert answer.slug == "missing-tenant"
            assert answer.json["detail"] == "Missing tenant_id in claims"
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "www-authenticate" not in answer.headers
    assert stored_rows(rows) == before


def test_cognito_user_without_a_tenant_is_forbidden(place: Place, user_pool: UserPool) -> None:
    answer = place(user_pool.sign_in(None, "bob", user_pool.client_id)["IdToken"])

    assert (answer.status, answer.slug) == (403, "missing-tenant")
    assert answer.json["detail"] == "Missing tenant_id in claims"


def test_tenant_names_up_to_255_characters_are_accepted(place: Place, provider: Provider) -> None:
    for tenant_claim in ("x" * 255, "李", "a b", "'; drop table orders; --", "%s", "100%"):
        answer = place(KEY.token(provider.claims(tenant_claim)))
        assert (answer.status, answer.json["order"]["tenant_id"]) == (201, tenant_claim)


def test_token_is_checked_before_the_body(http: Transport, user_pool: UserPool) -> None:
    def send(token: str | None) -> Answer:
        return Client(http, token).send("POST", "/orders", b"{", {"content-type": "text/plain"})

    assert_unauthorized(send(None))
    assert send(user_pool.token(None)).slug == "missing-tenant"
