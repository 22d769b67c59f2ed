"""Forged tokens at every door, for every identity provider, against the folders that are deployed."""

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
from tests.conformance.conftest import DOORS
from tests.support.cognito import UserPool
from tests.support.forgeries import oddly_written
from tests.support.issuer import (
    COGNITO,
    ENTRA,
    FIREBASE,
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

ON_AWS_ALONE = [("lambda", COGNITO)]
PAIRS = [(door, provider) for door in DOORS if door != "lambda" for provider in PROVIDERS] + ON_AWS_ALONE
"""API Gateway's own authorizer knows Cognito alone."""
LONGEST_LINE = 8000
"""Characters of a header that every host takes; gunicorn refuses 8,190 with its own 431."""


@dataclass(frozen=True)
class Place:
    """A door that accepts one provider's tokens."""

    door: str
    provider: Provider
    send: Transport
    keys: KeyServer
    attackers_keys: KeyServer


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    """Lists KEY, with which every provider signs: nothing but the claims tells their tokens apart."""
    keys = KeyServer(KEY.jwk())
    yield keys
    keys.stop()


@pytest.fixture(scope="module")
def attackers_keys() -> Iterator[KeyServer]:
    keys = KeyServer(ATTACKERS_KEY.jwk(), ATTACKERS_KEY.jwk(kid=KEY.kid))
    yield keys
    keys.stop()


@contextmanager
def opened(door: str, built: Built, variables: dict[str, str]) -> Iterator[Transport]:
    """The door's host, started anew with these variables; nothing else of it changes."""
    port = free_port()
    with hosts.serving(door, built(door), variables, "127.0.0.1", port):
        yield over_http("127.0.0.1", port)


@pytest.fixture(scope="module", params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1].name}")
def place(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    built: Built,
    keys: KeyServer,
    attackers_keys: KeyServer,
) -> Iterator[Place]:
    door, provider = request.param
    variables = {**environment, **provider.variables(keys)}
    if door == "local":
        with accepted(variables):
            yield Place(door, provider, request.getfixturevalue("http"), keys, attackers_keys)
        return
    with opened(door, built, variables) as send:
        yield Place(door, provider, send, keys, attackers_keys)


def authorized(place: Place, authorization: str | None, method: str, body: bytes = b"") -> Answer:
    headers = JSON if authorization is None else {**JSON, "authorization": authorization}
    return place.send(method, "/orders", headers, body)


# The attacks


def forged(place: Place, tenant: str) -> Tokens:
    """What each attack sends as its Authorization header."""
    claims = place.provider.claims(tenant)
    good = KEY.token(claims)
    yield from ((f"garbage: {name}", value) for name, value in GARBAGE.items())
    yield from ((f"form {form}", form.format(good, good)) for form in WRONG_FORMS)
    yield from from_a_good_token(good)
    yield from ((f"HS256 with {form}", public_key_as_secret(place, good, form)) for form in PUBLIC_FORMS)
    yield from ((f"header {header}", KEY.token(claims, **header)) for header in WRONG_HEADERS)
    yield from ((f"claims {wrong}", KEY.token({**claims, **wrong})) for wrong in wrong_claims(place))
    yield from oddly_written(KEY, claims, "victim")
    yield from with_another_key(place, claims)
    yield from out_of_time(place.provider, tenant)
    yield from of_other_providers(place.provider, tenant)


def wrong_claims(place: Place) -> list[dict[str, Any]]:
    return [wrong for wrong in WRONG_CLAIMS if "sub" not in wrong or arrives(place, wrong["sub"])]


def arrives(place: Place, claim: Any) -> bool:
    """Whether the API sees the claim as it was signed: API Gateway makes UTF-8 text of it."""
    is_utf8 = isinstance(claim, str) and claim.encode(errors="replace").decode() == claim
    return place.door != "lambda" or claim is None or is_utf8


def from_a_good_token(good: str) -> Tokens:
    header, payload, signature = good.split(".")
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
    yield "padding", f"{good}=="


def public_key_as_secret(place: Place, good: str, form: str) -> str:
    return hs256_with_public_key(place.keys.body, form, good.split(".")[1])


def with_another_key(place: Place, claims: dict[str, Any]) -> Tokens:
    for kid in (KEY.kid, ATTACKERS_KEY.kid):
        for pointer in POINTERS:
            yield f"{pointer} with kid {kid}", token_with_own_key(pointer, kid, claims, place.attackers_keys)
    yield "another key under the same kid", ATTACKERS_KEY.token(claims, kid=KEY.kid)
    yield "SHA-512 as RS512", KEY.token(claims, hashes.SHA512(), alg="RS512")
    yield "SHA-512 as RS256", KEY.token(claims, hashes.SHA512())


def out_of_time(provider: Provider, tenant: str) -> Tokens:
    now = int(time.time())
    for name, moment in (("exp", now - 60), ("nbf", now + 600), ("iat", now + 600)):
        yield f"{name} {moment - now:+}", KEY.token(provider.claims(tenant, **{name: moment}))


def of_other_providers(provider: Provider, tenant: str) -> Tokens:
    """Good tokens elsewhere, also such as hold every provider's claims at once."""
    every: dict[str, Any] = {}
    for each in PROVIDERS:
        every |= each.claims(tenant)
    for other in PROVIDERS:
        if other is not provider:
            yield f"{other.name}'s", KEY.token(other.claims(tenant))
            yield f"{other.name}'s with all claims", KEY.token({**every, "iss": other.issuer})


def test_token_attacks_are_many_and_uniquely_named(place: Place) -> None:
    names = [name for name, _ in forged(place, "victim")]

    assert len(names) >= 25
    assert len(set(names)) == len(names)


def test_valid_token_places_an_order_for_its_tenant(place: Place, tenant: str) -> None:
    claims = place.provider.claims(tenant)
    alice = Client(place.send, KEY.token(claims))

    placed = alice.place()

    order = placed.json["order"]
    assert (placed.status, order["tenant_id"]) == (201, tenant)
    assert order["created_by"] == claims[place.provider.user]
    assert alice.get("/orders").json["orders"] == [order]


def test_forged_token_is_rejected(place: Place, rows: Rows, tenant: str) -> None:
    before = stored_rows(rows)

    for name, authorization in forged(place, tenant):
        for method, body in (("POST", SEED_BYTES), ("GET", b"")):
            answer = authorized(place, authorization, method, body)
            if answer.status == 431 and len(authorization or "") > LONGEST_LINE:
                continue
            assert answer.status == 401, name
            assert_unauthorized(answer)

    assert stored_rows(rows) == before
    assert place.attackers_keys.fetches == 0
    assert authorized(place, KEY.token(place.provider.claims(tenant)), "GET").status == 200


def test_token_without_a_tenant_is_forbidden(place: Place, rows: Rows) -> None:
    before = stored_rows(rows)

    for name, value in WITHOUT_TENANT.items():
        token = KEY.token(place.provider.claims(value))
        for method, body in (("POST", SEED_BYTES), ("GET", b"")) if arrives(place, value) else ():
            answer = authorized(place, token, method, body)
            assert (answer.status, answer.slug) == (403, "missing-tenant"), name
            assert answer.json["detail"] == "Missing tenant_id in claims"
            assert "www-authenticate" not in answer.headers

    assert stored_rows(rows) == before


# From provider to provider


@pytest.mark.parametrize("door", ["azure", "gcp"])
def test_one_build_switches_provider_by_environment_only(
    door: str, environment: dict[str, str], built: Built, user_pool: UserPool, tenant: str
) -> None:
    """Three configurations as their users hold them, each with an issuer and keys of its own."""
    entras, firebases = SigningKey("entra-1"), SigningKey("firebase-1")
    entras_keys, firebases_keys = KeyServer(entras.jwk()), KeyServer(firebases.jwk())
    tokens = {
        "cognito": user_pool.token(tenant),
        "entra": entras.token(ENTRA.claims(tenant)),
        "firebase": firebases.token(FIREBASE.claims(tenant)),
    }
    configurations = {
        "cognito": environment,
        "entra": {**environment, **ENTRA.variables(entras_keys)},
        "firebase": {**environment, **FIREBASE.variables(firebases_keys)},
    }
    before = contents(built(door))

    placed = []
    for provider, variables in configurations.items():
        with opened(door, built, variables) as send:
            callers = {name: Client(send, token) for name, token in tokens.items()}
            placed.append(callers[provider].place().json["order"])
            assert callers[provider].get("/orders").json["orders"] == placed[::-1]
            assert {name for name, caller in callers.items() if caller.get("/orders").status == 200} == {
                provider
            }

    assert [order["tenant_id"] for order in placed] == [tenant] * 3
    assert contents(built(door)) == before
    entras_keys.stop()
    firebases_keys.stop()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*.py")}
