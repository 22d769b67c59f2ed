"""Claims inside an event are trusted on Lambda, where API Gateway verified them, and nowhere else."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.cognito import UserPool
from tools.client import SEED_BYTES, Answer

pytestmark = pytest.mark.slow

Json = dict[str, Any]
Handle = Callable[..., tuple[list[Answer], set[str]]]
Rows = Callable[..., list[tuple[Any, ...]]]

PROJECT = Path(__file__).parents[2]
ABSENT = object()
ON_LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "order-api-dev"}
PROGRAM = """
import json, sys
{first}
from app import app
answers = [app(event, None) for event in json.load(sys.stdin)]
print(json.dumps([answers, list(sys.modules)]))
"""


@pytest.fixture
def handle(environment: dict[str, str]) -> Handle:
    """Answers of app.py to these events, in a separate process, and the modules that it loaded."""

    def run(*events: Json, first: str = "", **variables: str) -> tuple[list[Answer], set[str]]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(first=first)],
            cwd=PROJECT,
            env={"PATH": "/usr/bin:/bin", **environment, **variables},
            input=json.dumps(events),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers, modules = json.loads(done.stdout.splitlines()[-1])
        return [read(answer) for answer in answers], set(modules)

    return run


def event(authorizer: Any = ABSENT, method: str = "POST", path: str = "/orders", **changes: Any) -> Json:
    """What API Gateway's Lambda proxy integration sends."""
    return {
        "resource": path,
        "path": path,
        "httpMethod": method,
        "headers": {"Content-Type": "application/json", "Host": "api.example"},
        "multiValueHeaders": {"Content-Type": ["application/json"], "Host": ["api.example"]},
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": path,
            "httpMethod": method,
            "path": f"/api{path}",
            "stage": "api",
            "requestId": str(uuid4()),
            "identity": {"sourceIp": "192.0.2.1"},
            **({} if authorizer is ABSENT else {"authorizer": authorizer}),
        },
        "body": SEED_BYTES.decode() if method == "POST" else None,
        "isBase64Encoded": False,
        **changes,
    }


def claims(tenant: str, **changes: Any) -> Json:
    """Every value is text, as API Gateway passes them; None omits a claim."""
    all_ = {
        "sub": "00000000-aaaa-bbbb-cccc-000000000001",
        "custom:tenant_id": tenant,
        "email": "alice@example.com",
        "token_use": "id",
        "exp": "Sun Nov 22 10:27:56 UTC 2026",
        **changes,
    }
    return {name: value for name, value in all_.items() if value is not None}


def read(answer: Json) -> Answer:
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    return Answer(answer["statusCode"], headers, answer["body"].encode())


def assert_unauthorized(answer: Answer) -> None:
    assert (answer.status, answer.slug) == (401, "unauthorized"), answer
    assert answer.headers["www-authenticate"] == "Bearer"


def test_lambda_authorizer_claims_identify_the_caller(handle: Handle, tenant: str) -> None:
    placing = event({"claims": claims(tenant)})

    answers, _ = handle(placing, event({"claims": claims(tenant)}, "GET"), **ON_LAMBDA)

    placed, listed = answers
    order = placed.json["order"]
    assert placed.status == 201
    assert (order["tenant_id"], order["created_by"]) == (tenant, claims(tenant)["sub"])
    assert listed.json["orders"] == [order]
    assert placed.headers["x-request-id"] == placing["requestContext"]["requestId"]


def test_lambda_loads_no_token_verification_modules(handle: Handle, tenant: str) -> None:
    answers, modules = handle(event({"claims": claims(tenant)}), event(), **ON_LAMBDA)

    assert [answer.status for answer in answers] == [201, 401]
    assert "chalicelib.orders.repository" in modules
    assert not modules & {"chalicelib.identity.tokens", "jose", "cognitojwt", "requests", "cryptography"}
    assert not modules & {"chalice.local", "chalice.config", "boto3", "botocore"}


def test_auth_audience_restricts_app_clients_on_lambda(handle: Handle, tenant: str) -> None:
    clients = (claims(tenant, aud="shop"), claims(tenant, aud="another"), claims(tenant, aud="sho"))
    asked = [event({"claims": each}, "GET") for each in clients]

    some, _ = handle(*asked, AUTH_AUDIENCE="web, shop", **ON_LAMBDA)
    any_, _ = handle(*asked, AUTH_AUDIENCE="", **ON_LAMBDA)

    assert [answer.status for answer in some] == [200, 401, 401]
    assert [answer.status for answer in any_] == [200, 200, 200]


def test_token_settings_are_optional_on_lambda(handle: Handle, tenant: str) -> None:
    answers, _ = handle(
        event({"claims": claims(tenant)}), AUTH_AUDIENCE="", AUTH_JWKS_URL="", AUTH_ISSUER="", **ON_LAMBDA
    )

    assert answers[0].status == 201


def test_on_lambda_missing_claims_are_unauthorized(handle: Handle) -> None:
    authorizers: list[Any] = [ABSENT, None, {}, {"claims": None}, {"claims": {}}, {"principalId": "alice"}]
    events = [event(authorizer) for authorizer in authorizers]

    answers, _ = handle(*events, **ON_LAMBDA)

    for sent, answer in zip(events, answers, strict=True):
        assert_unauthorized(answer)
        assert answer.headers["x-request-id"] == sent["requestContext"]["requestId"]
        assert answer.json["request_id"] == sent["requestContext"]["requestId"]


def test_header_token_on_lambda_does_not_replace_claims(
    handle: Handle, user_pool: UserPool, tenant: str
) -> None:
    headers = {"Content-Type": "application/json", "Authorization": user_pool.token("another-tenant")}

    answers, _ = handle(
        event(headers=headers), event({"claims": claims(tenant)}, headers=headers), **ON_LAMBDA
    )

    assert_unauthorized(answers[0])
    assert answers[1].json["order"]["tenant_id"] == tenant


def test_claims_on_lambda_need_tenant_and_user(handle: Handle, tenant: str) -> None:
    tenants = (None, "", " ", "x" * 256, "a\nb")
    subjects = (None, "", "x" * 256)

    answers, _ = handle(
        *(event({"claims": claims(tenant, **{"custom:tenant_id": each})}) for each in tenants),
        *(event({"claims": claims(tenant, sub=each)}) for each in subjects),
        **ON_LAMBDA,
    )

    for answer in answers[: len(tenants)]:
        assert (answer.status, answer.slug) == (403, "missing-tenant")
        assert answer.json["detail"] == "Missing tenant_id in claims"
    for answer in answers[len(tenants) :]:
        assert_unauthorized(answer)


@pytest.mark.parametrize(
    ("first", "variables"),
    [("", {}), ("import chalice.local", {}), ("import chalice.local", ON_LAMBDA)],
    ids=["no Lambda", "chalice local", "chalice local with Lambda's variable"],
)
def test_event_claims_are_ignored_outside_lambda(
    handle: Handle, rows: Rows, user_pool: UserPool, tenant: str, first: str, variables: dict[str, str]
) -> None:
    victim = f"victim-{tenant}"
    forged = {"claims": claims(victim), "principalId": "alice", **claims(victim)}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {user_pool.token(tenant)}"}

    answers, modules = handle(
        event(forged), event(forged, "GET"), event(forged, headers=headers), first=first, **variables
    )

    assert_unauthorized(answers[0])
    assert_unauthorized(answers[1])
    assert answers[2].json["order"]["tenant_id"] == tenant
    assert "chalicelib.identity.tokens" in modules
    assert rows("select count(*) from orders where tenant_id = %s", victim) == [(0,)]
