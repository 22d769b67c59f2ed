"""The shims' gateway: translates a host's request for the app and the app's answer back."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from chalice.app import CognitoUserPoolAuthorizer, Response

from chalicelib.http.current_request import Invocation
from chalicelib.http.parallel_chalice import ParallelChalice
from chalicelib.settings.environment import SettingsError
from tests.support.cognito import UserPool
from tools.client import SEED_BYTES, seed

if TYPE_CHECKING:
    from shims.gateway import Answer

Send = Callable[..., Any]
OUTSIDE_BASE_PATH = (
    "/health",
    "/shop/v1",
    "/shop/v1health",
    "/shop/v1//health",
    "/shop/v2/health",
    "/shop%2Fv1/health",
)
customers = CognitoUserPoolAuthorizer("customers", provider_arns=[])


def dispatch(
    app: ParallelChalice, target: str, method: str = "GET", body: bytes = b"", id: Any = "", **headers: str
) -> "Answer":
    """Sends one request through a new gateway to `app`."""
    from shims.gateway import Gateway, Request

    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    return Gateway(app).handle(Request(method, target, dashed, body, id))


@pytest.fixture
def send(app: Any) -> Send:
    """Sends one request through a gateway to the real app."""

    def send_to_app(target: str = "/health", *arguments: Any, **options: Any) -> "Answer":
        return dispatch(app, target, *arguments, **options)

    return send_to_app


@pytest.fixture
def bare_app(environment: dict[str, str]) -> ParallelChalice:  # noqa: ARG001 (the gateway reads it)
    """An app without the API's middleware, whose routes check nothing."""
    app = ParallelChalice("unguarded")
    app.route("/open", methods=["GET"])(lambda: Response("open"))
    app.route("/closed", methods=["GET"], authorizer=customers)(lambda: Response("closed"))

    @app.middleware("http")
    def inject_line_break(event: Any, get_response: Any) -> Response:
        response: Response = get_response(event)
        if event.path == "/split":
            response.headers["X-Name"] = "a\r\nX-Injected: yes"
        return response

    app.route("/split", methods=["GET"])(lambda: Response(""))
    return app


# Tokens


def test_route_with_an_authorizer_always_requires_a_token(
    bare_app: ParallelChalice, user_pool: UserPool
) -> None:
    assert dispatch(bare_app, "/closed").status == 401
    assert dispatch(bare_app, "/closed", authorization="Bearer a.b.c").status == 401
    assert dispatch(bare_app, "/closed", authorization=user_pool.token("acme")).body == b"closed"
    assert dispatch(bare_app, "/open").body == b"open"


def test_token_is_verified_once_per_gateway_request(
    send: Send, user_pool: UserPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chalicelib.identity import tokens

    calls = []
    verify = tokens.claims

    def count_call(header: str | None) -> Any:
        calls.append(header)
        return verify(header)

    monkeypatch.setattr(tokens, "claims", count_call)

    assert send("/orders", authorization=user_pool.token("acme")).status == 200
    assert len(calls) == 1


@pytest.mark.parametrize(
    "context",
    [{"claims": {"custom:tenant_id": "victim", "sub": "x"}}, None, object(), Invocation(deadline=None)],
    ids=lambda context: type(context).__name__,
)
def test_only_the_gateway_can_pass_verified_claims(app: Any, context: Any) -> None:
    event = {
        "requestContext": {"resourcePath": "/orders", "httpMethod": "GET"},
        "headers": {"claims": '{"custom:tenant_id": "victim"}'},
        "pathParameters": {},
        "multiValueQueryStringParameters": None,
        "stageVariables": None,
        "body": b"",
    }

    assert app(event, context)["statusCode"] == 401


def test_gateway_refuses_to_start_on_lambda(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "orders")

    with pytest.raises(SettingsError, match="AWS_LAMBDA_FUNCTION_NAME"):
        dispatch(app, "/health")


@pytest.mark.parametrize("name", ["DATABASE_URL", "AUTH_AUDIENCE", "COGNITO_USER_POOL_ARN"])
def test_gateway_refuses_to_start_without_its_settings(
    app: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)

    with pytest.raises(SettingsError, match="DB_HOST" if name == "DATABASE_URL" else name):
        dispatch(app, "/health")


# The base path


def test_base_path_is_stripped_and_required(
    app: Any, user_pool: UserPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_PATH", "/shop/v1/")
    headers = {"authorization": user_pool.token("acme"), "content_type": "application/json"}

    placed = dispatch(app, "/shop/v1/orders", "POST", SEED_BYTES, **headers)

    assert placed.status == 201
    assert placed.headers["Location"].startswith("orders/")
    assert dispatch(app, "/shop/v1/health").status == 200
    for target in OUTSIDE_BASE_PATH:
        assert dispatch(app, target).status == 404


@pytest.mark.parametrize("path", ["shop", "/shop?x", "/a//b", "/a b", "/ü", "/{x}", "https://x"])
def test_malformed_base_path_is_rejected(app: Any, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("BASE_PATH", path)

    with pytest.raises(SettingsError, match="BASE_PATH"):
        dispatch(app, "/health")


# The host's request


def test_host_request_id_is_the_responses_id(send: Send) -> None:
    assert send(id="0f1e-host").headers["X-Request-Id"] == "0f1e-host"


@pytest.mark.parametrize(
    "host_id", ["", None, "a\r\nX-Injected: yes", "a b", "x" * 129, "ü", 5.5, ["a"]], ids=repr
)
def test_malformed_host_request_id_is_replaced(send: Send, host_id: Any) -> None:
    request_id = send(id=host_id).headers["X-Request-Id"]

    assert len(request_id) == 36
    assert request_id.isascii()


@pytest.mark.parametrize(
    "fault",
    [
        {"target": None},
        {"method": None},
        {"body": None, "method": "POST", "target": "/orders"},
        {"headers": None},
        {"headers": {"authorization": ["a", "b"]}, "target": "/orders"},
    ],
    ids=str,
)
def test_malformed_host_request_gets_a_problem_response(app: Any, fault: dict[str, Any]) -> None:
    from shims.gateway import Gateway, Request

    request = {"method": "GET", "target": "/health", "headers": {}, "body": b"", **fault}

    answer = Gateway(app).handle(Request(**request))

    assert answer.status in (401, 405, 500)
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_line_break_in_a_response_header_is_500(bare_app: ParallelChalice) -> None:
    answer = dispatch(bare_app, "/split")

    assert (answer.status, answer.headers["Content-Type"]) == (500, "application/problem+json")
    assert "X-Injected" not in str(answer.headers)


def test_request_header_names_are_case_insensitive(send: Send, user_pool: UserPool) -> None:
    answer = send(
        "/orders", "POST", SEED_BYTES, AUTHORIZATION=user_pool.token("acme"), cOnTeNt_TyPe="text/plain"
    )

    assert answer.status == 415


def test_unknown_path_does_not_add_a_route(app: Any, send: Send) -> None:
    """Chalice's routes are a defaultdict: looking up an unknown path would add it."""
    before = sorted(app.routes)

    for method in ("GET", "OPTIONS", "POST"):
        assert send("/nowhere", method).status == 404

    assert sorted(app.routes) == before


# Preflight


def test_preflight_lists_allowed_methods_and_headers(send: Send) -> None:
    answer = send("/orders/5", "OPTIONS")

    assert (answer.status, answer.body) == (200, b"")
    allowed = answer.headers["Access-Control-Allow-Methods"].split(",")
    assert {"GET", "HEAD", "OPTIONS"} <= set(allowed)
    assert {"Authorization", "Content-Type", "Idempotency-Key", "If-None-Match"} <= set(
        answer.headers["Access-Control-Allow-Headers"].split(",")
    )
    assert answer.headers["Access-Control-Allow-Origin"] == "*"


def test_order_placed_through_gateway_belongs_to_its_tenant(
    send: Send, user_pool: UserPool, tenant: str
) -> None:
    headers = {"authorization": user_pool.token(tenant), "content_type": "application/json"}
    placed = json.loads(
        send("/orders", "POST", json.dumps(seed(customer_name="Ada")).encode(), **headers).body
    )

    assert (placed["order"]["tenant_id"], placed["order"]["customer_name"]) == (tenant, "Ada")
