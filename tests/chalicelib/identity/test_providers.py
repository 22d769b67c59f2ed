"""Identity providers: their claims, and the environment variables that select them."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chalicelib.caller import Caller
from chalicelib.settings.environment import SettingsError
from chalicelib.settings.identity_provider import claim_names, user_pools
from chalicelib.settings.tokens import accepted_tokens
from tests.support.cognito import UserPool
from tests.support.issuer import (
    ANY_DIRECTORY,
    AUDIENCE,
    COGNITO,
    DIRECTORY,
    ENTRA,
    FIREBASE,
    OIDC,
    PROVIDERS,
    VARIABLES,
    Json,
    KeyServer,
    Provider,
    SigningKey,
    accepted,
)
from tools.client import Answer, Client, Transport

PROJECT = Path(__file__).parents[3]
ELSEWHERE = "11111111-2222-4333-8444-555555555555"
PERSONAL = "9188040d-6c67-4c5b-b112-36a304b66dad"
STS = f"https://sts.windows.net/{DIRECTORY}/"
KEY = SigningKey()

Place = Callable[[Json], Answer]
SetVariables = Callable[..., None]


@pytest.fixture(scope="module")
def key_server() -> Iterator[KeyServer]:
    keys = KeyServer(KEY.jwk())
    yield keys
    keys.stop()


@pytest.fixture
def keys(key_server: KeyServer, app: Any) -> KeyServer:  # noqa: ARG001 (the app reads its settings first)
    """A key server that lists KEY."""
    key_server.publish(KEY.jwk())
    return key_server


@pytest.fixture
def place(http: Transport) -> Place:
    """Places the seed order with a token that holds these claims."""
    return lambda claims: Client(http, KEY.token(claims)).place()


@pytest.fixture
def set_only(monkeypatch: pytest.MonkeyPatch) -> SetVariables:
    """Sets these variables and unsets the other provider variables."""

    def set_variables(**variables: str) -> None:
        for name in VARIABLES:
            monkeypatch.setenv(name, variables.get(name, ""))

    return set_variables


def provider_name(provider: Provider) -> str:
    return provider.name


def tenant_and_user(answer: Answer) -> tuple[str, str]:
    assert answer.status == 201, answer
    return answer.json["order"]["tenant_id"], answer.json["order"]["created_by"]


def entra_claims(directory: str, **changes: Any) -> Json:
    """The claims of a user of this directory."""
    issuer = ANY_DIRECTORY.replace("{tenantid}", directory)
    return ENTRA.claims(directory, **{"iss": issuer, **changes})


# Selection


def test_running_app_switches_provider_by_environment_only(
    http: Transport, user_pool: UserPool, keys: KeyServer, tenant: str
) -> None:
    """Orders belong to the tenant, not to the provider of its tokens."""
    cognito_client = Client(http, user_pool.token(tenant))
    first = cognito_client.place().json["order"]["order_id"]

    for provider in (ENTRA, FIREBASE, OIDC):
        with accepted(provider.variables(keys)):
            claims = provider.claims(tenant)
            provider_client = Client(http, KEY.token(claims))
            assert tenant_and_user(provider_client.place()) == (tenant, claims[provider.user])
            assert provider_client.get(f"/orders/{first}").status == 200
            assert cognito_client.get(f"/orders/{first}").status == 401

    assert provider_client.get(f"/orders/{first}").status == 401
    assert cognito_client.get(f"/orders/{first}").status == 200
    assert len(cognito_client.get("/orders").json["orders"]) == 4


@pytest.mark.parametrize("provider", PROVIDERS, ids=provider_name)
def test_token_of_another_provider_is_rejected(
    place: Place, keys: KeyServer, provider: Provider, tenant: str
) -> None:
    """Only the issuer differs: key and audience are the same, and the token has every provider's claims."""
    all_claims: Json = {}
    for issuer in PROVIDERS:
        all_claims |= issuer.claims(tenant)
    with accepted(provider.variables(keys)):
        for other in PROVIDERS:
            assert place({**all_claims, "iss": other.issuer}).status == (201 if other is provider else 401)


@pytest.mark.slow
@pytest.mark.parametrize("provider", [COGNITO, ENTRA], ids=provider_name)
def test_only_the_providers_own_library_is_loaded(environment: dict[str, str], provider: Provider) -> None:
    keys = KeyServer(KEY.jwk())
    program = """
import sys
import app
before = set(sys.modules)
from chalicelib.identity import tokens
verified = tokens.claims(sys.argv[1])
print(verified["sub"], "jwt" in sys.modules, "cognitojwt" in sys.modules)
verifiers = {"chalicelib.identity.tokens", "jwt", "cognitojwt", "jose", "requests", "cryptography"}
print(before & verifiers or "nothing")
"""
    claims = provider.claims("acme")
    process = subprocess.run(
        [sys.executable, "-c", program, KEY.token(claims)],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", **environment, **provider.variables(keys)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    keys.stop()

    assert process.returncode == 0, process.stderr
    pyjwt = provider is not COGNITO
    assert process.stdout == f"{claims['sub']} {pyjwt} {not pyjwt}\nnothing\n"


# Any provider but Cognito


@pytest.mark.parametrize("provider", [ENTRA, FIREBASE, OIDC], ids=provider_name)
def test_one_matching_audience_in_the_token_is_enough(
    place: Place, keys: KeyServer, provider: Provider, tenant: str
) -> None:
    with accepted(provider.variables(keys)):
        assert place(provider.claims(tenant, aud=["another", AUDIENCE])).status == 201
        assert place(provider.claims(tenant, aud=["another", 5, AUDIENCE])).status == 401


@pytest.mark.parametrize("provider", PROVIDERS, ids=provider_name)
def test_rsa_key_under_2048_bits_is_rejected(
    http: Transport, keys: KeyServer, provider: Provider, tenant: str
) -> None:
    """RFC 7518, section 3.3: a key of size 2048 bits or larger."""
    short_key = SigningKey("short", 1024)
    keys.publish(short_key.jwk(), KEY.jwk())
    with accepted(provider.variables(keys)):
        assert Client(http, short_key.token(provider.claims(tenant))).place().status == 401
        assert Client(http, KEY.token(provider.claims(tenant))).place().status == 201


# Entra ID


@pytest.fixture
def any_directory(keys: KeyServer) -> Iterator[KeyServer]:
    with accepted(ENTRA.variables(keys, AUTH_ISSUER=ANY_DIRECTORY)):
        yield keys


@pytest.mark.usefixtures("any_directory")
def test_any_entra_directory_may_sign_in(place: Place) -> None:
    for directory in (DIRECTORY, ELSEWHERE):
        claims = entra_claims(directory)
        assert tenant_and_user(place(claims)) == (directory, claims["oid"])


FOREIGN: dict[str, tuple[str, Json]] = {
    "another directory's iss": (DIRECTORY, {"tid": ELSEWHERE}),
    "another directory's tid": (ELSEWHERE, {"iss": ENTRA.issuer}),
    "no tid": (DIRECTORY, {"tid": None}),
    "no tid, and None in iss": ("None", {"tid": None}),
    "a list for tid": (DIRECTORY, {"tid": [DIRECTORY]}),
    "an object for tid": (DIRECTORY, {"tid": {DIRECTORY: 1}}),
    "a number for tid": ("5", {"tid": 5}),
    "an empty tid": ("", {}),
    "a domain name": ("contoso.example", {}),
    "common": ("common", {}),
    "organizations": ("organizations", {}),
    "the template for tid": ("{tenantid}", {}),
    "the template for iss": (DIRECTORY, {"iss": ANY_DIRECTORY}),
    "a path": (f"{DIRECTORY}/../{ELSEWHERE}", {}),
    "a newline": (f"{DIRECTORY}\n", {}),
    "upper case": (DIRECTORY.upper(), {}),
    "no hyphens": (DIRECTORY.replace("-", ""), {}),
    "version 1": (DIRECTORY, {"iss": STS}),
    "another host": (DIRECTORY, {"iss": f"https://attacker.example/{DIRECTORY}/v2.0"}),
    "a personal account": (PERSONAL, {}),
}


@pytest.mark.parametrize(("directory", "changes"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.usefixtures("any_directory")
def test_token_from_a_mismatched_directory_is_rejected(place: Place, directory: str, changes: Json) -> None:
    assert place(entra_claims(directory, **changes)).status == 401


def test_single_directory_api_rejects_other_directories(place: Place, keys: KeyServer) -> None:
    with accepted(ENTRA.variables(keys)):
        assert place(entra_claims(DIRECTORY)).status == 201
        assert place(entra_claims(ELSEWHERE)).status == 401
        assert place(entra_claims(ELSEWHERE, tid=DIRECTORY)).status == 401
        assert place(entra_claims(DIRECTORY, iss=ANY_DIRECTORY)).status == 401


@pytest.mark.parametrize("configured", [ANY_DIRECTORY, ENTRA.issuer])
@pytest.mark.parametrize(
    ("signs_for", "status"),
    [
        (ANY_DIRECTORY, 201),
        (ENTRA.issuer, 201),
        (ANY_DIRECTORY.replace("{tenantid}", ELSEWHERE), 401),
        (ANY_DIRECTORY.replace("{tenantid}", "common"), 401),
        (STS, 401),
        ("", 401),
        (5, 401),
        ([ENTRA.issuer], 401),
    ],
)
def test_key_bound_to_an_issuer_rejects_other_issuers(
    place: Place, keys: KeyServer, configured: str, signs_for: Any, status: int
) -> None:
    keys.publish(KEY.jwk(issuer=signs_for))
    with accepted(ENTRA.variables(keys, AUTH_ISSUER=configured)):
        assert place(entra_claims(DIRECTORY)).status == status


def test_version_1_tokens_are_accepted_under_their_issuer(place: Place, keys: KeyServer) -> None:
    with accepted(ENTRA.variables(keys, AUTH_ISSUER=STS)):
        assert tenant_and_user(place(entra_claims(DIRECTORY, iss=STS, ver="1.0")))[0] == DIRECTORY
        assert place(entra_claims(DIRECTORY)).status == 401


@pytest.mark.usefixtures("any_directory")
def test_other_providers_claims_in_entra_tokens_are_ignored(place: Place) -> None:
    foreign = {"custom:tenant_id": "victim", "tenant_id": "victim", "firebase": {"tenant": "victim"}}
    claims = entra_claims(DIRECTORY, **foreign)
    assert tenant_and_user(place(claims)) == (DIRECTORY, claims["oid"])


@pytest.mark.usefixtures("any_directory")
def test_entra_user_falls_back_to_the_subject(place: Place) -> None:
    claims = entra_claims(DIRECTORY, oid=None)
    assert tenant_and_user(place(claims)) == (DIRECTORY, claims["sub"])


# Firebase and Identity Platform


@pytest.fixture
def project(keys: KeyServer) -> Iterator[KeyServer]:
    with accepted(FIREBASE.variables(keys)):
        yield keys


@pytest.mark.parametrize(
    ("claims", "tenant"),
    [
        ({"firebase": {"tenant": "acme"}}, "acme"),
        ({"firebase": {"tenant": "acme"}, "tenant_id": "victim"}, "acme"),
        ({"firebase": {"sign_in_provider": "password"}, "tenant_id": "acme"}, "acme"),
        ({"firebase": None, "tenant_id": "acme"}, "acme"),
        ({"firebase": {"tenant": ""}, "tenant_id": "victim"}, None),
        ({"firebase": {"tenant": ["acme"]}, "tenant_id": "victim"}, None),
        ({"firebase": {"tenant": {"tenant": "acme"}}, "tenant_id": "victim"}, None),
        ({"firebase": "tenant"}, None),
        ({"firebase": [{"tenant": "acme"}]}, None),
        ({"firebase": [["tenant", "acme"]]}, None),
        ({"firebase": {"firebase": {"tenant": "acme"}}}, None),
        ({"firebase": {"tenant": "acme"}, "firebase.tenant": None, "tid": "victim"}, "acme"),
        ({"firebase": {}, "tid": "victim", "custom:tenant_id": "victim", "tenant": "victim"}, None),
    ],
    ids=str,
)
@pytest.mark.usefixtures("project")
def test_firebase_tenant_comes_from_its_claims(place: Place, claims: Json, tenant: str | None) -> None:
    answer = place(FIREBASE.claims(None, **claims))

    if tenant is None:
        assert (answer.status, answer.slug) == (403, "missing-tenant")
    else:
        assert tenant_and_user(answer)[0] == tenant


@pytest.mark.parametrize(
    "changes",
    [
        {"auth_time": None},
        {"auth_time": "0"},
        {"auth_time": True},
        {"auth_time": float("nan")},
        {"auth_time": 4_102_444_800},
        {"iss": f"https://session.firebase.google.com/{AUDIENCE}"},
        {"iss": "https://securetoken.google.com/another-project"},
        {"aud": "another-project"},
        {"iss": "https://securetoken.google.com/another-project", "aud": "another-project"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("project")
def test_firebase_rejects_anything_but_project_id_tokens(place: Place, changes: Json) -> None:
    assert place(FIREBASE.claims("acme", **changes)).status == 401


# Names of claims

URL = "https://shop.example/tenant"


@pytest.mark.parametrize(
    ("names", "claims", "tenant"),
    [
        (URL, {URL: "acme"}, "acme"),
        (URL, {"https://shop": {"example/tenant": "acme"}}, "acme"),
        (URL, {URL: "acme", "https://shop": {"example/tenant": "victim"}}, "acme"),
        (URL, {"tenant_id": "victim"}, None),
        ("org.shop.id", {"org": {"shop": {"id": "acme"}}}, "acme"),
        ("org.shop.id", {"org": {"shop.id": "victim"}}, None),
        ("org.shop.id", {"org": {"shop": [{"id": "victim"}]}}, None),
        ("org.shop.id", {"org": {"shop": "id"}}, None),
        ("org.0", {"org": ["victim"]}, None),
        ("org", {"org": {"org": "victim"}}, None),
        ("org, tenant_id", {"org": "acme", "tenant_id": "victim"}, "acme"),
        ("org, tenant_id", {"tenant_id": "acme"}, "acme"),
        ("org, tenant_id", {"org": "", "tenant_id": "victim"}, None),
        ("org, tenant_id", {"org": 5, "tenant_id": "victim"}, None),
        ("org, tenant_id", {"org": ["acme"], "tenant_id": "victim"}, None),
        ("org.id, tenant_id", {"org": "acme", "tenant_id": "acme"}, "acme"),
        ("ORG", {"org": "victim"}, None),
        ("__class__", {}, None),
    ],
    ids=str,
)
def test_tenant_claim_name_is_configurable(
    place: Place, keys: KeyServer, names: str, claims: Json, tenant: str | None
) -> None:
    with accepted(OIDC.variables(keys, AUTH_TENANT_CLAIM=names)):
        answer = place(OIDC.claims(None, **claims))

    if tenant is None:
        assert (answer.status, answer.slug) == (403, "missing-tenant")
    else:
        assert tenant_and_user(answer)[0] == tenant


def test_null_claim_is_invalid_rather_than_absent(http: Transport, keys: KeyServer, tenant: str) -> None:
    with accepted(OIDC.variables(keys, AUTH_TENANT_CLAIM="org,tenant_id")):
        claims = {**OIDC.claims(tenant), "org": None}
        assert Client(http, KEY.token(claims)).place().status == 403


def test_user_claim_name_is_configurable(place: Place, keys: KeyServer, tenant: str) -> None:
    with accepted(OIDC.variables(keys, AUTH_USER_CLAIM="account.id,sub")):
        assert tenant_and_user(place(OIDC.claims(tenant, account={"id": "a-1"}))) == (tenant, "a-1")
        assert tenant_and_user(place(OIDC.claims(tenant, sub="s-1"))) == (tenant, "s-1")
        assert place(OIDC.claims(tenant, account={"id": ["a-1"]})).status == 401


@pytest.mark.parametrize(
    ("claims", "email"),
    [
        ({"email": "a@b.example", "preferred_username": "c@d.example"}, "a@b.example"),
        ({"preferred_username": "c@d.example"}, "c@d.example"),
        ({"email": ["a@b.example"]}, None),
        ({}, None),
    ],
    ids=str,
)
def test_email_is_a_string_or_none(set_only: SetVariables, claims: Json, email: str | None) -> None:
    set_only(AUTH_PROVIDER="entra")

    caller = Caller.from_claims({"tid": DIRECTORY, "sub": "alice", **claims}, claim_names())

    assert caller.email == email


# Settings

PROJECTS_KEYS = "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com"


@pytest.mark.parametrize(
    ("variables", "issuer", "jwks_url"),
    [
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": ENTRA.issuer},
            ENTRA.issuer,
            f"https://login.microsoftonline.com/{DIRECTORY}/discovery/v2.0/keys",
        ),
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": ANY_DIRECTORY},
            ANY_DIRECTORY,
            "https://login.microsoftonline.com/common/discovery/v2.0/keys",
        ),
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": STS, "AUTH_JWKS_URL": "https://keys.example/v1"},
            STS,
            "https://keys.example/v1",
        ),
        ({"AUTH_PROVIDER": "firebase"}, FIREBASE.issuer, PROJECTS_KEYS),
        (
            {"AUTH_PROVIDER": "firebase", "AUTH_ISSUER": "https://a", "AUTH_JWKS_URL": "https://b"},
            "https://a",
            "https://b",
        ),
    ],
    ids=str,
)
def test_provider_issuer_and_key_urls_have_defaults(
    set_only: SetVariables, variables: Json, issuer: str, jwks_url: str
) -> None:
    set_only(**{"AUTH_AUDIENCE": AUDIENCE, **variables})

    tokens = accepted_tokens()

    assert (tokens.issuer, tokens.jwks_url, tokens.audience) == (issuer, jwks_url, (AUDIENCE,))


COMPLETE: Json = {
    "AUTH_PROVIDER": "oidc",
    "AUTH_AUDIENCE": AUDIENCE,
    "AUTH_ISSUER": "https://id.example",
    "AUTH_JWKS_URL": "https://id.example/keys",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AUTH_PROVIDER": "okta"}, "AUTH_PROVIDER is 'okta': use one of cognito, entra, firebase, oidc"),
        ({"AUTH_PROVIDER": "Entra"}, "AUTH_PROVIDER is 'Entra'"),
        ({"AUTH_AUDIENCE": ""}, "AUTH_AUDIENCE is not set"),
        ({"AUTH_AUDIENCE": " ,"}, "AUTH_AUDIENCE is not set"),
        ({"AUTH_ISSUER": ""}, "AUTH_ISSUER is not set"),
        ({"AUTH_JWKS_URL": ""}, "AUTH_JWKS_URL is not set: the jwks_uri in the issuer's document"),
        ({"AUTH_JWKS_URL": "file:///etc/keys"}, "AUTH_JWKS_URL is 'file:///etc/keys': use the https"),
        ({"AUTH_JWKS_URL": "id.example/keys"}, "AUTH_JWKS_URL is 'id.example/keys'"),
        ({"AUTH_JWKS_URL": "http://id.example/keys"}, "use the https address of the key set"),
        ({"AUTH_JWKS_URL": "http://127.0.0.1.id.example/keys"}, "use the https address of the key set"),
        ({"AUTH_JWKS_URL": "http://localhost@id.example/keys"}, "use the https address of the key set"),
        *(
            (
                {"AUTH_JWKS_URL": f"https://me:s3cret@id.example{path}"},
                "AUTH_JWKS_URL is 'https://...@id.example/keys': use the https address of the key set",
            )
            for path in ("/keys", "/keys?sig=s3cret")
        ),
        (
            {"AUTH_JWKS_URL": "https://me:s3cret/x@id.example/keys"},
            "AUTH_JWKS_URL is 'https://...@id.example/keys': use the https",
        ),
        (
            {"AUTH_JWKS_URL": "http://me:s3cret@id.example/keys"},
            "AUTH_JWKS_URL is 'http://...@id.example/keys': use the https",
        ),
        ({"AUTH_TENANT_CLAIM": ","}, "AUTH_TENANT_CLAIM is not set"),
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": ""},
            "AUTH_ISSUER is not set: the issuer of your directory",
        ),
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": ANY_DIRECTORY.replace("{tenantid}", "common")},
            "should hold the directory's GUID in lower case, https://login.microsoftonline.com/",
        ),
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": ANY_DIRECTORY, "AUTH_TENANT_CLAIM": "extn.tenant_id"},
            "AUTH_TENANT_CLAIM is set while AUTH_ISSUER takes any directory",
        ),
        (
            {"AUTH_PROVIDER": "entra", "AUTH_ISSUER": STS, "AUTH_JWKS_URL": ""},
            "AUTH_JWKS_URL is not set: the jwks_uri",
        ),
        ({"AUTH_PROVIDER": "entra", "AUTH_ISSUER": STS, "AUTH_AUDIENCE": ""}, "AUTH_AUDIENCE is not set"),
        ({"AUTH_PROVIDER": "firebase", "AUTH_AUDIENCE": ""}, "AUTH_AUDIENCE is not set: the id of the"),
        ({"AUTH_PROVIDER": "firebase", "AUTH_AUDIENCE": "a,b"}, "AUTH_AUDIENCE is 'a,b': use the id of one"),
        ({"AUTH_PROVIDER": "", "AUTH_TENANT_CLAIM": "tid"}, "AUTH_TENANT_CLAIM is set, but the names"),
        ({"AUTH_PROVIDER": "cognito", "AUTH_USER_CLAIM": "oid"}, "AUTH_USER_CLAIM is set"),
        ({"AUTH_PROVIDER": "cognito", "AUTH_EMAIL_CLAIM": "upn"}, "AUTH_EMAIL_CLAIM is set"),
    ],
    ids=str,
)
def test_invalid_provider_settings_are_explained(set_only: SetVariables, changes: Json, message: str) -> None:
    set_only(**COMPLETE)
    assert accepted_tokens().provider == "oidc"
    set_only(**{**COMPLETE, **changes})

    with pytest.raises(SettingsError) as error:
        accepted_tokens()

    assert message in str(error.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8001", "[::1]:8001"])
def test_key_url_on_localhost_may_use_http(set_only: SetVariables, host: str) -> None:
    set_only(**{**COMPLETE, "AUTH_JWKS_URL": f"http://{host}/keys"})

    assert accepted_tokens().jwks_url == f"http://{host}/keys"


def test_only_cognito_has_user_pools(set_only: SetVariables) -> None:
    set_only(**COMPLETE)
    assert user_pools() == []

    set_only(**COGNITO.settings)
    assert user_pools() == [COGNITO.settings["COGNITO_USER_POOL_ARN"]]


@pytest.mark.slow
def test_lambda_refuses_other_providers_at_import() -> None:
    """On Lambda API Gateway's authorizer verifies the tokens, and it supports Cognito only."""
    process = subprocess.run(
        [sys.executable, "-c", "import app"],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", "AWS_LAMBDA_FUNCTION_NAME": "order-api", **COMPLETE},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert process.returncode == 1
    assert "AUTH_PROVIDER is 'oidc', but on Lambda API Gateway verifies tokens" in process.stderr
