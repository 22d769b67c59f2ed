"""The zip for Lambda under AWS's own runtime client, behind what its template makes of API Gateway."""

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
Changed = Callable[[str, bytes], bytes | None]
"""A member of the zip to what takes its place; None leaves it out."""

SECONDS = 3
ODD = """
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
    """serve(folder) serves a build until the end of the module; more variables replace those of the tests."""
    stopping = []

    def start(built: Path, **variables: str) -> Transport:
        port = free_port()
        host = hosts.serving("lambda", built, {**environment, **variables}, "127.0.0.1", port)
        host.__enter__()
        stopping.append(host)
        return over_http("127.0.0.1", port)

    yield start
    for host in stopping:
        host.__exit__(None, None, None)


@pytest.fixture(scope="module")
def orders(serve: Callable[..., Transport], aws_build: AwsBuild) -> Transport:
    """The API as it goes to Lambda."""
    return serve(aws_build.folder)


@pytest.fixture(scope="module")
def odd(
    serve: Callable[..., Transport], aws_build: AwsBuild, tmp_path_factory: pytest.TempPathFactory
) -> Transport:
    """A function that does what a query asks for, with SECONDS to do it in, behind the same gateway."""
    return serve(written(tmp_path_factory.mktemp("odd"), aws_build, ODD, Timeout=SECONDS), SPECIAL="yes")


@pytest.fixture
def gateway(aws_build: AwsBuild, app: Any) -> ApiGateway:  # noqa: ARG001 (its variables are set for tokens)
    def never(_: bytes) -> bytes:
        raise AssertionError("the function was called")

    return ApiGateway(json.loads(aws_build.template.read_text()), never)


def written(folder: Path, build: AwsBuild, source: str, **properties: Any) -> Path:
    """A build whose function is this source."""
    package = folder / "package"
    package.mkdir()
    template = json.loads(build.template.read_text())
    of_type(template, "AWS::Serverless::Function").update(properties)
    (package / "sam.json").write_text(json.dumps(template))
    with ZipFile(package / "deployment.zip", "w") as zipped:
        zipped.writestr("app.py", source)
    return folder


def rezipped(folder: Path, build: AwsBuild, changed: Changed) -> Path:
    """A build with other members in its zip."""
    package = folder / "package"
    package.mkdir()
    (package / "sam.json").write_text(build.template.read_text())
    with ZipFile(build.zip) as old, ZipFile(package / "deployment.zip", "w") as new:
        for name in old.namelist():
            content = changed(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return folder


def places_and_reads(transport: Transport, user_pool: UserPool, tenant: str) -> None:
    alice = Client(transport, user_pool.token(tenant))
    placed = alice.place()
    order = placed.json["order"]
    read = alice.get(f"/orders/{order['order_id']}")
    listed = alice.get("/orders?limit=10&my_orders=true")
    assert (placed.status, read.status, listed.status) == (201, 200, 200)
    assert order["tenant_id"] == tenant
    assert read.json["order"] == order
    assert listed.json["orders"] == [order]


def ask(transport: Transport, what: str = "", body: bytes = b"", **headers: str) -> Any:
    return transport("GET", f"/health?do={what}" if what else "/health", headers, body)


# The zip


def test_zip_places_and_reads_orders(orders: Transport, user_pool: UserPool, tenant: str) -> None:
    places_and_reads(orders, user_pool, tenant)


def test_function_start_compiles_no_module(
    serve: Callable[..., Transport], aws_build: AwsBuild, tmp_path: Path, user_pool: UserPool, tenant: str
) -> None:
    """Whatever is not loaded from its bytecode fails: its source does."""

    def ruined(name: str, content: bytes) -> bytes:
        return b"raise RuntimeError('compiled on Lambda')" if name.endswith(".py") else content

    places_and_reads(serve(rezipped(tmp_path, aws_build, ruined)), user_pool, tenant)


def test_zip_works_without_token_verification_modules(
    serve: Callable[..., Transport], aws_build: AwsBuild, tmp_path: Path, user_pool: UserPool, tenant: str
) -> None:
    with ZipFile(aws_build.zip) as zipped:
        shipped = {name.partition("/")[0] for name in zipped.namelist()}

    def without(name: str, content: bytes) -> bytes | None:
        return None if name.startswith("chalicelib/") and "token" in name else content

    bare = serve(rezipped(tmp_path, aws_build, without))

    assert not shipped & {"jwt", "cognitojwt", "jose", "requests", "cryptography", "boto3", "shims", "local"}
    places_and_reads(bare, user_pool, tenant)
    assert bare("GET", "/orders", {}, b"").status == 401


# The function on Lambda


def test_function_environment_has_lambdas_but_no_token_variables(odd: Transport) -> None:
    seen = ask(odd).json

    variables = seen["environment"]
    assert variables["AWS_LAMBDA_FUNCTION_NAME"] in seen["arn"]
    assert variables["_HANDLER"] == "app.app"
    assert variables["SPECIAL"] == "yes"
    assert variables["LAMBDA_TASK_ROOT"] == seen["cwd"]
    assert variables["AWS_REGION"] == variables["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert variables["DATABASE_URL"]
    assert [name for name in variables if name.startswith(("AUTH_", "PYTHON"))] == ["AUTH_AUDIENCE"]
    assert 0 < seen["left"] <= SECONDS * 1000


def test_the_function_cannot_write_its_own_folder(odd: Transport) -> None:
    assert ask(odd, "write").json == {"error": "PermissionError"}


def test_sequential_requests_reuse_one_process(odd: Transport) -> None:
    seen = [ask(odd).json for _ in range(3)]

    assert len({each["pid"] for each in seen}) == 1
    assert len({each["id"] for each in seen}) == 3


def test_concurrent_requests_get_separate_processes(odd: Transport) -> None:
    ask(odd)
    with ThreadPoolExecutor(2 * MAX_INSTANCES) as threads:
        seen = [each.json for each in threads.map(lambda _: ask(odd, "nap"), range(2 * MAX_INSTANCES))]

    by_process = [each["pid"] for each in seen]
    assert len({each["id"] for each in seen}) == 2 * MAX_INSTANCES
    assert len(set(by_process)) == MAX_INSTANCES


@pytest.mark.parametrize("what", ["die", "fail", "hang", "swell"])
def test_failing_function_is_a_500_and_recovers(odd: Transport, what: str) -> None:
    before = time.monotonic()
    answer = ask(odd, what)

    assert (answer.status, answer.slug) == (500, "internal")
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert (time.monotonic() - before < SECONDS) == (what != "hang")
    assert ask(odd).status == 200


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
def test_malformed_function_result_is_a_contract_500(odd: Transport, result: Any) -> None:
    answer = ask(odd, "result", json.dumps(result).encode())

    assert (answer.status, answer.slug) == (500, "internal")


def test_function_result_needs_only_a_status(odd: Transport) -> None:
    answer = ask(odd, "result", b'{"statusCode": 204}')

    assert (answer.status, answer.body) == (204, b"")


def test_function_result_may_repeat_headers(odd: Transport) -> None:
    result = {"statusCode": 200, "headers": {"A": "1", "B": 2}, "multiValueHeaders": {"B": ["3", "4"]}}

    answer = ask(odd, "result", json.dumps(result).encode())

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

    for (method, target), said in expected.items():
        answer = orders(method, target, {}, b"")
        assert (answer.status, answer.slug) == said, answer
        assert answer.headers["access-control-allow-origin"] == "*"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert ("www-authenticate" in answer.headers) == (answer.status == 401)


@pytest.mark.parametrize(
    ("sent", "body"), [(10 * 1024 * 1024 + 1, b"x"), (6 * 1024 * 1024, b"x" * 6 * 1024 * 1024)]
)
def test_payload_over_lambdas_limit_is_a_contract_413(gateway: ApiGateway, sent: int, body: bytes) -> None:
    """Only its beginning, when API Gateway itself refuses it; as an event, when Lambda would."""
    status, _, answer = gateway.exchange("POST", "/health", [("Content-Length", str(sent))], body)

    assert (status, json.loads(answer)["type"]) == (413, "urn:order-api:problem:payload-too-large")


def test_head_has_no_body_and_preflight_skips_function(orders: Transport, gateway: ApiGateway) -> None:
    head = orders("HEAD", "/health", {}, b"")
    status, headers, body = gateway.exchange("OPTIONS", "/orders", [], b"")

    found = dict(headers)
    assert (head.status, head.body, status, body) == (200, b"", 200, b"")
    assert set(found["Access-Control-Allow-Methods"].split(",")) >= {"GET", "POST", "OPTIONS"}
    assert found["Access-Control-Allow-Origin"] == "*"
    assert "'" not in "".join(found.values())
    assert len(found["X-Request-Id"]) == 36


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
    asked = orders("GET", f"/orders?custom:tenant_id={victim}", {**headers, **token}, b"")

    assert (unsigned.status, asked.status) == (401, 400)
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
    good, bad = ("Authorization", user_pool.token("t")), ("authorization", "Bearer a.b.c")

    assert gateway.event(Request("GET", "/orders", [bad, good]))["requestContext"]["authorizer"]
    with pytest.raises(Refused, match="UNAUTHORIZED"):
        gateway.event(Request("GET", "/orders", [good, bad]))


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
    gateway: ApiGateway, odd: Transport, body: bytes, encoded: bool, is_base64: bool
) -> None:
    event = gateway.event(Request("POST", "/health", [], body), encoded)

    assert event["isBase64Encoded"] == is_base64
    assert (b64decode(event["body"]) if is_base64 else event["body"].encode()) == body
    if not encoded:
        received = odd("POST", "/health", {}, body).json["event"]
        assert (received["body"], received["isBase64Encoded"]) == (event["body"], is_base64)


# Starting and stopping


@pytest.mark.parametrize(
    ("properties", "variables", "words"),
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
    words: str,
) -> None:
    built = written(tmp_path, aws_build, ODD, **properties)

    with (
        pytest.raises(SystemExit),
        hosts.serving("lambda", built, {**environment, **variables}, "127.0.0.1", free_port()),
    ):
        pass

    assert words in capfd.readouterr().err


def test_stopped_host_leaves_no_process_or_file(
    aws_build: AwsBuild, environment: dict[str, str], tmp_path: Path
) -> None:
    built, port = written(tmp_path, aws_build, ODD), free_port()
    with hosts.serving("lambda", built, environment, "127.0.0.1", port):
        seen = ask(over_http("127.0.0.1", port)).json
        assert psutil.pid_exists(seen["pid"])
        busy = threading.Thread(target=_ask_in_vain, args=[port], daemon=True)
        busy.start()
        time.sleep(0.3)

    busy.join(5)
    assert not busy.is_alive()
    assert not psutil.pid_exists(seen["pid"])
    assert not Path(seen["cwd"]).exists()


def _ask_in_vain(port: int) -> None:
    with suppress(OSError, http.client.HTTPException):
        assert ask(over_http("127.0.0.1", port), "hang").status == 500
