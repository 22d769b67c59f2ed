"""The Lambda zip under AWS's runtime client, behind a local API Gateway made from its template."""

import http.client
import json
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import psutil
import pytest

from local import hosts
from local.api_gateway import ApiGateway, Refused, Request, of_type
from local.lambda_host import MAX_INSTANCES
from tests.support.builds import ARCHITECTURE, AwsBuild
from tests.support.cognito import UserPool
from tools.client import SEED_BYTES, Client, Transport, free_port, over_http

pytestmark = pytest.mark.slow

Json = dict[str, Any]
Rows = Callable[..., list[tuple[Any, ...]]]
ChangeMember = Callable[[str, bytes], bytes | None]
"""Maps a zip member's name and content to its new content; None removes it."""

TIMEOUT = 3
SCRIPTED_FUNCTION = """
import json, os, sys, time
from pathlib import Path

def answer(**body):
    return {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": json.dumps(body)}

def app(event, context):
    what = (event["queryStringParameters"] or {}).get("do")
    if what == "die":
        os._exit(3)
    if what == "fail":
        raise ValueError("on purpose")
    if what == "hang":
        time.sleep(60)
    if what == "nap":
        time.sleep(0.5)
    if what == "write":
        try:
            Path(os.environ["LAMBDA_TASK_ROOT"], "new").touch()
            (Path(__file__).parent / "app.py").open("a").close()
        except OSError as error:
            return answer(error=type(error).__name__)
    if what == "result":
        return json.loads(event["body"])
    if what == "swell":
        return answer(x="x" * (6 * 1024 * 1024 + 100))
    return answer(event=event, pid=os.getpid(), environment=dict(os.environ), cwd=os.getcwd(),
        id=context.aws_request_id, arn=context.invoked_function_arn,
        left=context.get_remaining_time_in_millis())
"""


@pytest.fixture(scope="module")
def serve(environment: dict[str, str]) -> Iterator[Callable[..., Transport]]:
    """serve(folder) serves a build until the end of the module; keyword arguments override variables."""
    running = []

    def start(built: Path, **variables: str) -> Transport:
        port = free_port()
        host = hosts.serving("lambda", built, {**environment, **variables}, "127.0.0.1", port)
        host.__enter__()
        running.append(host)
        return over_http("127.0.0.1", port)

    yield start
    for host in running:
        host.__exit__(None, None, None)


@pytest.fixture(scope="module")
def orders(serve: Callable[..., Transport], aws_build: AwsBuild) -> Transport:
    """The API from the Lambda zip."""
    return serve(aws_build.folder)


@pytest.fixture(scope="module")
def scripted(
    serve: Callable[..., Transport], aws_build: AwsBuild, tmp_path_factory: pytest.TempPathFactory
) -> Transport:
    """A function that does what the query parameter `do` says, with a timeout of TIMEOUT seconds."""
    return serve(
        build_with_source(tmp_path_factory.mktemp("odd"), aws_build, SCRIPTED_FUNCTION, Timeout=TIMEOUT),
        SPECIAL="yes",
    )


@pytest.fixture
def gateway(aws_build: AwsBuild, app: Any) -> ApiGateway:  # noqa: ARG001 (it sets the variables for tokens)
    def never(_: bytes) -> bytes:
        raise AssertionError("the function was called")

    return ApiGateway(json.loads(aws_build.template.read_text()), never)


def build_with_source(folder: Path, build: AwsBuild, source: str, **properties: Any) -> Path:
    """A build whose zip has only this source as app.py."""
    package = folder / "package"
    package.mkdir()
    template = json.loads(build.template.read_text())
    of_type(template, "AWS::Serverless::Function").update(properties)
    (package / "sam.json").write_text(json.dumps(template))
    with ZipFile(package / "deployment.zip", "w") as zipped:
        zipped.writestr("app.py", source)
    return folder


def build_with_changed_zip(folder: Path, build: AwsBuild, changed: ChangeMember) -> Path:
    """A copy of a build with changed members in its zip."""
    package = folder / "package"
    package.mkdir()
    (package / "sam.json").write_text(build.template.read_text())
    with ZipFile(build.zip) as old, ZipFile(package / "deployment.zip", "w") as new:
        for name in old.namelist():
            content = changed(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return folder


def assert_orders_work(transport: Transport, user_pool: UserPool, tenant: str) -> None:
    alice = Client(transport, user_pool.token(tenant))
    placed = alice.place()
    order = placed.json["order"]
    read = alice.get(f"/orders/{order['order_id']}")
    listed = alice.get("/orders?limit=10&my_orders=true")
    assert (placed.status, read.status, listed.status) == (201, 200, 200)
    assert order["tenant_id"] == tenant
    assert read.json["order"] == order
    assert listed.json["orders"] == [order]


def call(transport: Transport, action: str = "", body: bytes = b"", **headers: str) -> Any:
    return transport("GET", f"/health?do={action}" if action else "/health", headers, body)


# The zip


def test_zip_places_and_reads_orders(orders: Transport, user_pool: UserPool, tenant: str) -> None:
    assert_orders_work(orders, user_pool, tenant)


def test_function_start_compiles_no_module(
    serve: Callable[..., Transport], aws_build: AwsBuild, tmp_path: Path, user_pool: UserPool, tenant: str
) -> None:
    """Every source file raises an error, so that only modules loaded from bytecode work."""

    def break_source(name: str, content: bytes) -> bytes:
        return b"raise RuntimeError('compiled on Lambda')" if name.endswith(".py") else content

    assert_orders_work(serve(build_with_changed_zip(tmp_path, aws_build, break_source)), user_pool, tenant)


def test_zip_works_without_token_verification_modules(
    serve: Callable[..., Transport], aws_build: AwsBuild, tmp_path: Path, user_pool: UserPool, tenant: str
) -> None:
    with ZipFile(aws_build.zip) as zipped:
        packages = {name.partition("/")[0] for name in zipped.namelist()}

    def without(name: str, content: bytes) -> bytes | None:
        return None if name.startswith("chalicelib/") and "token" in name else content

    host = serve(build_with_changed_zip(tmp_path, aws_build, without))

    assert not packages & {"jwt", "cognitojwt", "jose", "requests", "cryptography", "boto3", "shims", "local"}
    assert_orders_work(host, user_pool, tenant)
    assert host("GET", "/orders", {}, b"").status == 401


# The function on Lambda


def test_function_environment_has_lambdas_but_no_token_variables(scripted: Transport) -> None:
    result = call(scripted).json

    variables = result["environment"]
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] in result["arn"]
    assert variables["_HANDLER"] == "app.app"
    assert variables["SPECIAL"] == "yes"
    assert variables["LAMBDA_TASK_ROOT"] == result["cwd"]
    assert variables["AWS_REGION"] == variables["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert variables["DATABASE_URL"]
    assert [name for name in variables if name.startswith(("AUTH_", "PYTHON"))] == ["AUTH_AUDIENCE"]
    assert 0 < result["left"] <= TIMEOUT * 1000


def test_the_function_cannot_write_its_own_folder(scripted: Transport) -> None:
    assert call(scripted, "write").json == {"error": "PermissionError"}


def test_sequential_requests_reuse_one_process(scripted: Transport) -> None:
    results = [call(scripted).json for _ in range(3)]

    assert len({entry["pid"] for entry in results}) == 1
    assert len({entry["id"] for entry in results}) == 3


def test_concurrent_requests_get_separate_processes(scripted: Transport) -> None:
    call(scripted)
    with ThreadPoolExecutor(2 * MAX_INSTANCES) as threads:
        results = [
            entry.json for entry in threads.map(lambda _: call(scripted, "nap"), range(2 * MAX_INSTANCES))
        ]

    by_process = [entry["pid"] for entry in results]
    assert len({entry["id"] for entry in results}) == 2 * MAX_INSTANCES
    assert len(set(by_process)) == MAX_INSTANCES


@pytest.mark.parametrize("action", ["die", "fail", "hang", "swell"])
def test_failing_function_is_a_500_and_recovers(scripted: Transport, action: str) -> None:
    before = time.monotonic()
    answer = call(scripted, action)

    assert (answer.status, answer.slug) == (500, "internal")
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert (time.monotonic() - before < TIMEOUT) == (action != "hang")
    assert call(scripted).status == 200


def test_gateway_timeout_is_a_contract_503(
    aws_build: AwsBuild,
    app: Any,  # noqa: ARG001
) -> None:
    def late(_: bytes) -> bytes:
        raise TimeoutError

    gateway = ApiGateway(json.loads(aws_build.template.read_text()), late)

    status, _, body = gateway.exchange("GET", "/health", [], b"")

    assert (status, json.loads(body)["type"]) == (503, "urn:order-api:problem:unavailable")


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        "text",
        {},
        {"body": "no status"},
        {"statusCode": "many"},
        {"statusCode": None},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "headers": ["Content-Type"]},
        {"statusCode": 200, "cookies": []},
        {"statusCode": 200, "errorMessage": "x"},
    ],
)
def test_malformed_function_result_is_a_contract_500(scripted: Transport, result: Any) -> None:
    answer = call(scripted, "result", json.dumps(result).encode())

    assert (answer.status, answer.slug) == (500, "internal")


def test_function_result_needs_only_a_status(scripted: Transport) -> None:
    answer = call(scripted, "result", b'{"statusCode": 204}')

    assert (answer.status, answer.body) == (204, b"")


def test_function_result_may_repeat_headers(scripted: Transport) -> None:
    result = {"statusCode": 200, "headers": {"A": "1", "B": 2}, "multiValueHeaders": {"B": ["3", "4"]}}

    answer = call(scripted, "result", json.dumps(result).encode())

    assert (answer.headers["a"], answer.headers["b"]) == ("1", "4")


# The gateway


def test_gateway_errors_follow_the_contract(orders: Transport) -> None:
    expected = {
        ("GET", "/nowhere"): (404, "not-found"),
        ("GET", "/"): (404, "not-found"),
        ("GET", "//orders"): (404, "not-found"),
        ("TRACE", "/orders"): (404, "not-found"),
        ("GET", "/orders"): (401, "unauthorized"),
        ("PUT", "/orders"): (405, "method-not-allowed"),
    }

    for (method, target), error in expected.items():
        answer = orders(method, target, {}, b"")
        assert (answer.status, answer.slug) == error, answer
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert ("www-authenticate" in answer.headers) == (answer.status == 401)


@pytest.mark.parametrize(
    ("sent", "body"), [(10 * 1024 * 1024 + 1, b"x"), (6 * 1024 * 1024, b"x" * 6 * 1024 * 1024)]
)
def test_payload_over_lambdas_limit_is_a_contract_413(gateway: ApiGateway, sent: int, body: bytes) -> None:
    """API Gateway refuses by Content-Length; below its limit Lambda refuses the size of the event."""
    status, _, answer = gateway.exchange("POST", "/health", [("Content-Length", str(sent))], body)

    assert (status, json.loads(answer)["type"]) == (413, "urn:order-api:problem:payload-too-large")


def test_head_has_no_body_and_preflight_skips_function(orders: Transport, gateway: ApiGateway) -> None:
    head = orders("HEAD", "/health", {}, b"")
    status, headers, body = gateway.exchange("OPTIONS", "/orders", [], b"")

    preflight = dict(headers)
    assert (head.status, head.body, status, body) == (200, b"", 200, b"")
    assert set(preflight["Access-Control-Allow-Methods"].split(",")) >= {"GET", "POST", "OPTIONS"}
    assert preflight["Access-Control-Allow-Origin"] == "*"
    assert "'" not in "".join(preflight.values())
    assert len(preflight["X-Request-Id"]) == 36


def test_claims_in_headers_or_query_are_ignored(
    orders: Transport, user_pool: UserPool, rows: Rows, tenant: str
) -> None:
    victim = f"victim-{tenant}"
    claims = json.dumps({"custom:tenant_id": victim, "sub": "mallory"})
    forged = {
        "tenant_id": victim,
        "claims": claims,
        "authorizer": json.dumps({"claims": {"custom:tenant_id": victim}}),
        "requestContext": json.dumps({"authorizer": {"claims": {"custom:tenant_id": victim}}}),
        "x-amzn-oidc-data": claims,
        "x-apigateway-event": claims,
        "x-amz-client-context": claims,
        "lambda-runtime-cognito-identity": claims,
    }
    headers = {**forged, "content-type": "application/json"}
    token = {"authorization": user_pool.token(tenant)}

    unsigned = orders("POST", "/orders", headers, SEED_BYTES)
    placed = orders("POST", "/orders", {**headers, **token}, SEED_BYTES)
    listed = orders("GET", f"/orders?custom:tenant_id={victim}", {**headers, **token}, b"")

    assert (unsigned.status, listed.status) == (401, 400)
    assert placed.json["order"]["tenant_id"] == tenant
    assert rows("select count(*) from orders where tenant_id = %s", victim) == [(0,)]


def test_claims_reach_the_function_as_text(gateway: ApiGateway, user_pool: UserPool, tenant: str) -> None:
    event = gateway.event(Request("GET", "/orders", [("Authorization", user_pool.token(tenant))]))

    claims = event["requestContext"]["authorizer"]["claims"]
    assert claims["custom:tenant_id"] == tenant
    assert all(isinstance(value, str) for value in claims.values())
    assert claims["auth_time"].isdigit()
    time.strptime(claims["exp"], "%a %b %d %H:%M:%S UTC %Y")


def test_last_of_repeated_authorization_headers_is_used(gateway: ApiGateway, user_pool: UserPool) -> None:
    valid, invalid = ("Authorization", user_pool.token("t")), ("authorization", "Bearer a.b.c")

    assert gateway.event(Request("GET", "/orders", [invalid, valid]))["requestContext"]["authorizer"]
    with pytest.raises(Refused, match="UNAUTHORIZED"):
        gateway.event(Request("GET", "/orders", [valid, invalid]))


# The event


def test_empty_request_makes_an_event_of_nulls(gateway: ApiGateway) -> None:
    event = gateway.event(Request("GET", "/health", [], id="an-id"))

    assert event == {
        "resource": "/health",
        "path": "/health",
        "httpMethod": "GET",
        "headers": None,
        "multiValueHeaders": None,
        "queryStringParameters": None,
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/health",
            "httpMethod": "GET",
            "path": "/api/health",
            "stage": "api",
            "requestId": "an-id",
            "identity": {"sourceIp": "127.0.0.1"},
        },
        "body": None,
        "isBase64Encoded": False,
    }


def test_repeated_values_fill_the_multi_value_members(gateway: ApiGateway) -> None:
    headers = [("X-One", "1"), ("x-one", "2"), ("Y", "3")]

    event = gateway.event(Request("GET", "/health?a=1&a=%C3%A9+b&empty=&bare&n%26=%26", headers))

    assert event["headers"] == {"X-One": "2", "Y": "3"}
    assert event["multiValueHeaders"] == {"X-One": ["1", "2"], "Y": ["3"]}
    assert event["queryStringParameters"] == {"a": "é b", "empty": "", "bare": "", "n&": "&"}
    assert event["multiValueQueryStringParameters"] == {
        "a": ["1", "é b"],
        "empty": [""],
        "bare": [""],
        "n&": ["&"],
    }


@pytest.mark.parametrize("sent", ["a%2Fb", "%C3%A9", "a.b", "%", "..", "{order_id}"])
def test_a_path_and_its_parameters_stay_percent_encoded(gateway: ApiGateway, sent: str) -> None:
    event = gateway.event(Request("PUT", f"/orders/{sent}?x=1", []))

    assert (event["resource"], event["path"]) == ("/orders/{order_id}", f"/orders/{sent}")
    assert event["pathParameters"] == {"order_id": sent}
    assert event["requestContext"]["resourcePath"] == "/orders/{order_id}"
    assert event["requestContext"]["path"] == f"/api/orders/{sent}"


def test_literal_path_takes_precedence_over_a_parameter(aws_build: AwsBuild, app: Any) -> None:  # noqa: ARG001
    template = json.loads(aws_build.template.read_text())
    paths = of_type(template, "AWS::Serverless::Api")["DefinitionBody"]["paths"]
    paths["/orders/zebra"] = paths["/health"]
    gateway = ApiGateway(template, lambda _: b"")

    assert gateway.event(Request("GET", "/orders/zebra", []))["resource"] == "/orders/zebra"
    assert gateway.event(Request("PUT", "/orders/zebr", []))["resource"] == "/orders/{order_id}"


def test_trailing_slash_matches_the_resource_and_is_kept(
    gateway: ApiGateway,
) -> None:
    event = gateway.event(Request("GET", "/health/", []))

    assert (event["resource"], event["path"]) == ("/health", "/health/")
    with pytest.raises(Refused, match="MISSING_AUTHENTICATION_TOKEN"):
        gateway.event(Request("GET", "/health//", []))


@pytest.mark.parametrize(
    ("body", "encoded", "is_base64"),
    [
        ("🧁 é".encode(), False, False),
        ("🧁 é".encode(), True, True),
        (b"\x00\xff\xfe", False, True),
        (b"\xed\xa0\x80", False, True),
    ],
    ids=["text", "text, asked for in base64", "bytes", "a lone surrogate"],
)
def test_a_body_is_text_or_base64(
    gateway: ApiGateway, scripted: Transport, body: bytes, encoded: bool, is_base64: bool
) -> None:
    event = gateway.event(Request("POST", "/health", [], body), encoded)

    assert event["isBase64Encoded"] == is_base64
    assert (b64decode(event["body"]) if is_base64 else event["body"].encode()) == body
    if not encoded:
        received = scripted("POST", "/health", {}, body).json["event"]
        assert (received["body"], received["isBase64Encoded"]) == (event["body"], is_base64)


# Starting and stopping


@pytest.mark.parametrize(
    ("properties", "variables", "message"),
    [
        ({"Runtime": "python3.9"}, {}, "The zip is for python3.9"),
        ({"Architectures": ["x86_64" if ARCHITECTURE == "arm64" else "arm64"]}, {}, "this machine is"),
        ({"Handler": "nothing.app"}, {}, "The function did not start"),
        ({}, {"AUTH_PROVIDER": "entra"}, "AUTH_PROVIDER is 'entra'"),
        ({}, {"AUTH_AUDIENCE": ""}, "AUTH_AUDIENCE is not set"),
    ],
)
def test_unsupported_build_is_refused_with_a_reason(
    aws_build: AwsBuild,
    environment: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    properties: Json,
    variables: dict[str, str],
    message: str,
) -> None:
    built = build_with_source(tmp_path, aws_build, SCRIPTED_FUNCTION, **properties)

    with (
        pytest.raises(SystemExit),
        hosts.serving("lambda", built, {**environment, **variables}, "127.0.0.1", free_port()),
    ):
        pass

    assert message in capfd.readouterr().err


def test_stopped_host_leaves_no_process_or_file(
    aws_build: AwsBuild, environment: dict[str, str], tmp_path: Path
) -> None:
    built, port = build_with_source(tmp_path, aws_build, SCRIPTED_FUNCTION), free_port()
    with hosts.serving("lambda", built, environment, "127.0.0.1", port):
        result = call(over_http("127.0.0.1", port)).json
        assert psutil.pid_exists(result["pid"])
        busy = threading.Thread(target=_call_until_stopped, args=[port], daemon=True)
        busy.start()
        time.sleep(0.3)

    busy.join(5)
    assert not busy.is_alive()
    assert not psutil.pid_exists(result["pid"])
    assert not Path(result["cwd"]).exists()


def _call_until_stopped(port: int) -> None:
    with suppress(OSError, http.client.HTTPException):
        assert call(over_http("127.0.0.1", port), "hang").status == 500
