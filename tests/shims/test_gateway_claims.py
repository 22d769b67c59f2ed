"""Claims in an event are trusted only on Lambda, where API Gateway has verified them."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
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
NO_AUTHORIZER = object()
ON_LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "order-api-dev"}
WITHOUT_TOKEN_SETTINGS = {"AUTH_AUDIENCE": "", "AUTH_JWKS_URL": "", "AUTH_ISSUER": "", **ON_LAMBDA}
PROGRAM = """
import json, sys
{first}
from app import app
output, sys.stdout = sys.stdout, sys.stderr  # the API logs there
for line in sys.stdin:
    answers = [app(event, None) for event in json.loads(line)]
    print(json.dumps([answers, list(sys.modules)]), file=output, flush=True)
"""
"""Each line of its input is a list of events; each of its output the answers and the loaded modules."""


@pytest.fixture(scope="module")
def handle(environment: dict[str, str]) -> Iterator[Handle]:
    """Runs app.py on these events in a process that is started once for equal variables.

    Returns the answers and the loaded modules.
    """
    with ExitStack() as processes:

        @cache
        def start(first: str, variables: frozenset[tuple[str, str]]) -> subprocess.Popen[str]:
            return processes.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM.format(first=first)],
                    cwd=PROJECT,
                    env={"PATH": "/usr/bin:/bin", **environment, **dict(variables)},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

        def run(*events: Json, first: str = "", **variables: str) -> tuple[list[Answer], set[str]]:
            process = start(first, frozenset(variables.items()))
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(events) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, "the process ended"
            answers, modules = json.loads(line)
            return [read(answer) for answer in answers], set(modules)

        yield run


def event(
    authorizer: Any = NO_AUTHORIZER, method: str = "POST", path: str = "/orders", **changes: Any
) -> Json:
    """An event of API Gateway's Lambda proxy integration."""
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
            **({} if authorizer is NO_AUTHORIZER else {"authorizer": authorizer}),
        },
        "body": SEED_BYTES.decode() if method == "POST" else None,
        "isBase64Encoded": False,
        **changes,
    }


def claims(tenant: str, **changes: Any) -> Json:
    """Claims as API Gateway passes them, all text; None omits a claim."""
    all_claims = {
        "sub": "00000000-aaaa-bbbb-cccc-000000000001",
        "custom:tenant_id": tenant,
        "email": "alice@example.com",
        "token_use": "id",
        "exp": "Sun Nov 22 10:27:56 UTC 2026",
        **changes,
    }
    return {name: value for name, value in all_claims.items() if value is not None}


def read(answer: Json) -> Answer:
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    return Answer(answer["statusCode"], headers, answer["body"].encode())


def assert_unauthorized(answer: Answer) -> None:
    assert (answer.status, answer.slug) == (401, "unauthorized"), answer
    assert answer.headers["www-authenticate"] == "Bearer"


def test_lambda_authorizer_claims_identify_the_caller(handle: Handle, tenant: str) -> None:
    order_event = event({"claims": claims(tenant)})

    answers, _ = handle(order_event, event({"claims": claims(tenant)}, "GET"), **ON_LAMBDA)

    placed, listed = answers
    order = placed.json["order"]
    assert placed.status == 201
    assert (order["tenant_id"], order["created_by"]) == (tenant, claims(tenant)["sub"])
    assert listed.json["orders"] == [order]
    assert placed.headers["x-request-id"] == order_event["requestContext"]["requestId"]


def test_lambda_loads_no_token_verification_modules(handle: Handle, tenant: str) -> None:
    answers, modules = handle(event({"claims": claims(tenant)}), event(), **ON_LAMBDA)

    assert [answer.status for answer in answers] == [201, 401]
    assert "chalicelib.orders.repository" in modules
    assert not modules & {"chalicelib.identity.tokens", "jose", "cognitojwt", "requests", "cryptography"}
    assert not modules & {"chalice.local", "chalice.config", "boto3", "botocore"}


def test_auth_audience_restricts_app_clients_on_lambda(handle: Handle, tenant: str) -> None:
    clients = (claims(tenant, aud="shop"), claims(tenant, aud="another"), claims(tenant, aud="sho"))
    events = [event({"claims": client_claims}, "GET") for client_claims in clients]

    restricted, _ = handle(*events, AUTH_AUDIENCE="web, shop", **ON_LAMBDA)
    unrestricted, _ = handle(*events, **WITHOUT_TOKEN_SETTINGS)

    assert [answer.status for answer in restricted] == [200, 401, 401]
    assert [answer.status for answer in unrestricted] == [200, 200, 200]


def test_token_settings_are_optional_on_lambda(handle: Handle, tenant: str) -> None:
    answers, _ = handle(event({"claims": claims(tenant)}), **WITHOUT_TOKEN_SETTINGS)

    assert answers[0].status == 201


def test_on_lambda_missing_claims_are_unauthorized(handle: Handle) -> None:
    authorizers: list[Any] = [
        NO_AUTHORIZER,
        None,
        {},
        {"claims": None},
        {"claims": {}},
        {"principalId": "alice"},
    ]
    events = [event(authorizer) for authorizer in authorizers]

    answers, _ = handle(*events, **ON_LAMBDA)

    for sent_event, answer in zip(events, answers, strict=True):
        assert_unauthorized(answer)
        assert answer.headers["x-request-id"] == sent_event["requestContext"]["requestId"]
        assert answer.json["request_id"] == sent_event["requestContext"]["requestId"]


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
        *(event({"claims": claims(tenant, **{"custom:tenant_id": value})}) for value in tenants),
        *(event({"claims": claims(tenant, sub=value)}) for value in subjects),
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
