"""Forged tokens sent to every door, for every identity provider; the doors run the built folders."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes

from local import hosts
from tests.chalicelib.identity.test_tokens import (
    ATTACKERS_KEY,
    GARBAGE,
    JSON,
    KEY,
    POINTERS,
    PUBLIC_FORMS,
    WITHOUT_TENANT,
    WRONG_ALGORITHMS,
    WRONG_CLAIMS,
    WRONG_FORMS,
    WRONG_HEADERS,
    Rows,
    assert_unauthorized,
    hs256_with_public_key,
    stored_rows,
    token_with_own_key,
)
from tests.support.cognito import UserPool
from tests.support.forgeries import ambiguous_tokens
from tests.support.issuer import (
    COGNITO,
    ENTRA,
    FIREBASE,
    OIDC,
    PROVIDERS,
    KeyServer,
    Provider,
    SigningKey,
    accepted,
    decoded,
    encoded,
)
from tools.client import SEED_BYTES, Answer, Client, Transport, free_port, over_http

pytestmark = pytest.mark.slow

Tokens = Iterator[tuple[str, str | None]]
Built = Callable[[str], Path]

PAIRS = [
    *(("local", provider) for provider in PROVIDERS),
    ("lambda", COGNITO),  # API Gateway's authorizer supports only Cognito
    *(("azure", provider) for provider in (COGNITO, ENTRA)),
    *(("gcp", provider) for provider in (COGNITO, FIREBASE)),
    *(("oci", provider) for provider in (COGNITO, OIDC)),
]
"""Every provider, and on every door both libraries that verify tokens: Cognito's, and that of the others."""
MAX_HEADER_LENGTH = 8000
"""Header length that every host accepts; gunicorn answers 431 from 8,190 characters on."""


@dataclass(frozen=True)
class ProviderDoor:
    """A door that accepts one provider's tokens."""

    door: str
    provider: Provider
    send: Transport
    keys: KeyServer
    attackers_keys: KeyServer


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    """Serves KEY, with which every provider signs, so that only the claims distinguish their tokens."""
    keys = KeyServer(KEY.jwk())
    yield keys
    keys.stop()


@pytest.fixture(scope="module")
def attackers_keys() -> Iterator[KeyServer]:
    keys = KeyServer(ATTACKERS_KEY.jwk(), ATTACKERS_KEY.jwk(kid=KEY.kid))
    yield keys
    keys.stop()


@contextmanager
def running_door(door: str, built: Built, variables: dict[str, str]) -> Iterator[Transport]:
    """A new process of the door's host with these variables."""
    port = free_port()
    with hosts.serving(door, built(door), variables, "127.0.0.1", port):
        yield over_http("127.0.0.1", port)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1].name}")
def provider_door(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    built: Built,
    keys: KeyServer,
    attackers_keys: KeyServer,
) -> Iterator[ProviderDoor]:
    door, provider = request.param
    variables = {**environment, **provider.variables(keys)}
    if door == "local":
        with accepted(variables):
            yield ProviderDoor(door, provider, request.getfixturevalue("http"), keys, attackers_keys)
        return
    with running_door(door, built, variables) as send:
        yield ProviderDoor(door, provider, send, keys, attackers_keys)


def authorized(
    provider_door: ProviderDoor, authorization: str | None, method: str, body: bytes = b""
) -> Answer:
    headers = JSON if authorization is None else {**JSON, "authorization": authorization}
    return provider_door.send(method, "/orders", headers, body)


# The attacks


def forged_tokens(provider_door: ProviderDoor, tenant: str) -> Tokens:
    """Pairs of an attack's name and its Authorization header."""
    claims = provider_door.provider.claims(tenant)
    valid = KEY.token(claims)
    yield from ((f"garbage: {name}", value) for name, value in GARBAGE.items())
    yield from ((f"form {form}", form.format(valid, valid)) for form in WRONG_FORMS)
    yield from altered_tokens(valid)
    yield from (
        (f"HS256 with {form}", public_key_as_secret(provider_door, valid, form)) for form in PUBLIC_FORMS
    )
    yield from ((f"header {header}", KEY.token(claims, **header)) for header in WRONG_HEADERS)
    yield from ((f"claims {wrong}", KEY.token({**claims, **wrong})) for wrong in wrong_claims(provider_door))
    yield from ambiguous_tokens(KEY, claims, "victim")
    yield from with_another_key(provider_door, claims)
    yield from with_wrong_times(provider_door.provider, tenant)
    yield from from_other_providers(provider_door.provider, tenant)


def wrong_claims(provider_door: ProviderDoor) -> list[dict[str, Any]]:
    return [
        claims
        for claims in WRONG_CLAIMS
        if "sub" not in claims or arrives_unchanged(provider_door, claims["sub"])
    ]


def arrives_unchanged(provider_door: ProviderDoor, claim: Any) -> bool:
    """Whether the claim reaches the API unchanged: API Gateway converts claims to UTF-8 strings."""
    is_utf8 = isinstance(claim, str) and claim.encode(errors="replace").decode() == claim
    return provider_door.door != "lambda" or claim is None or is_utf8


def altered_tokens(valid: str) -> Tokens:
    header, payload, signature = valid.split(".")
    names = ("custom:tenant_id", "tid", "tenant_id")
    victim = {**decoded(payload), **dict.fromkeys(names, "victim"), "firebase": {"tenant": "victim"}}
    for algorithm in WRONG_ALGORITHMS:
        head = encoded({**decoded(header), "alg": algorithm})
        yield f"alg {algorithm!r}, no signature", f"{head}.{encoded(victim)}."
        yield f"alg {algorithm!r}, the good signature", f"{head}.{payload}.{signature}"
    yield "another payload", f"{header}.{encoded(victim)}.{signature}"
    yield "no signature", f"{header}.{payload}."
    yield "no third part", f"{header}.{payload}"
    yield "a signature of zeros", f"{header}.{payload}.{'A' * len(signature)}"
    yield "half a signature", f"{header}.{payload}.{signature[:-4]}"
    yield "a longer signature", f"{header}.{payload}.{signature}AAAA"
    yield "padding", f"{valid}=="


def public_key_as_secret(provider_door: ProviderDoor, valid: str, form: str) -> str:
    return hs256_with_public_key(provider_door.keys.body, form, valid.split(".")[1])


def with_another_key(provider_door: ProviderDoor, claims: dict[str, Any]) -> Tokens:
    for kid in (KEY.kid, ATTACKERS_KEY.kid):
        for pointer in POINTERS:
            yield (
                f"{pointer} with kid {kid}",
                token_with_own_key(pointer, kid, claims, provider_door.attackers_keys),
            )
    yield "another key under the same kid", ATTACKERS_KEY.token(claims, kid=KEY.kid)
    yield "SHA-512 as RS512", KEY.token(claims, hashes.SHA512(), alg="RS512")
    yield "SHA-512 as RS256", KEY.token(claims, hashes.SHA512())


def with_wrong_times(provider: Provider, tenant: str) -> Tokens:
    now = int(time.time())
    for name, moment in (("exp", now - 60), ("nbf", now + 600), ("iat", now + 600)):
        yield f"{name} {moment - now:+}", KEY.token(provider.claims(tenant, **{name: moment}))


def from_other_providers(provider: Provider, tenant: str) -> Tokens:
    """Valid tokens of other providers, also with the claims of all providers."""
    all_claims: dict[str, Any] = {}
    for provider_ in PROVIDERS:
        all_claims |= provider_.claims(tenant)
    for other in PROVIDERS:
        if other is not provider:
            yield f"{other.name}'s", KEY.token(other.claims(tenant))
            yield f"{other.name}'s with all claims", KEY.token({**all_claims, "iss": other.issuer})


def test_valid_token_places_an_order_for_its_tenant(provider_door: ProviderDoor, tenant: str) -> None:
    claims = provider_door.provider.claims(tenant)
    alice = Client(provider_door.send, KEY.token(claims))

    placed = alice.place()

    order = placed.json["order"]
    assert (placed.status, order["tenant_id"]) == (201, tenant)
    assert order["created_by"] == claims[provider_door.provider.user]
    assert alice.get("/orders").json["orders"] == [order]


def test_forged_token_is_rejected(provider_door: ProviderDoor, rows: Rows, tenant: str) -> None:
    before = stored_rows(rows)
    attacks = list(forged_tokens(provider_door, tenant))
    methods = {"POST": SEED_BYTES}
    if provider_door.door == "local":
        methods["GET"] = b""

    assert len({name for name, _ in attacks}) == len(attacks) >= 200
    for name, authorization in attacks:
        for method, body in methods.items():
            answer = authorized(provider_door, authorization, method, body)
            if answer.status == 431 and len(authorization or "") > MAX_HEADER_LENGTH:
                continue
            assert answer.status == 401, name
            assert_unauthorized(answer)

    assert stored_rows(rows) == before
    assert provider_door.attackers_keys.fetches == 0
    assert authorized(provider_door, KEY.token(provider_door.provider.claims(tenant)), "GET").status == 200


def test_token_without_a_tenant_is_forbidden(provider_door: ProviderDoor, rows: Rows) -> None:
    before = stored_rows(rows)

    for name, value in WITHOUT_TENANT.items():
        token = KEY.token(provider_door.provider.claims(value))
        for method, body in (
            (("POST", SEED_BYTES), ("GET", b"")) if arrives_unchanged(provider_door, value) else ()
        ):
            answer = authorized(provider_door, token, method, body)
            assert (answer.status, answer.slug) == (403, "missing-tenant"), name
            assert answer.json["detail"] == "Missing tenant_id in claims"
            assert "www-authenticate" not in answer.headers

    assert stored_rows(rows) == before


# Switching the provider


def test_one_build_switches_provider_by_environment_only(
    environment: dict[str, str], built: Built, user_pool: UserPool, tenant: str
) -> None:
    """Three configurations, each with its own issuer and keys."""
    entra_key, firebase_key = SigningKey("entra-1"), SigningKey("firebase-1")
    entra_server, firebase_server = KeyServer(entra_key.jwk()), KeyServer(firebase_key.jwk())
    tokens = {
        "cognito": user_pool.token(tenant),
        "entra": entra_key.token(ENTRA.claims(tenant)),
        "firebase": firebase_key.token(FIREBASE.claims(tenant)),
    }
    configurations = {
        "cognito": environment,
        "entra": {**environment, **ENTRA.variables(entra_server)},
        "firebase": {**environment, **FIREBASE.variables(firebase_server)},
    }
    before = contents(built("azure"))

    placed = []
    for provider, variables in configurations.items():
        with running_door("azure", built, variables) as send:
            callers = {name: Client(send, token) for name, token in tokens.items()}
            placed.append(callers[provider].place().json["order"])
            assert callers[provider].get("/orders").json["orders"] == placed[::-1]
            assert {name for name, caller in callers.items() if caller.get("/orders").status == 200} == {
                provider
            }

    assert [order["tenant_id"] for order in placed] == [tenant] * 3
    assert contents(built("azure")) == before
    entra_server.stop()
    firebase_server.stop()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.py")}
