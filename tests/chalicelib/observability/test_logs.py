"""The log: one JSON line per request, errors as JSON lines too, and no client values in any line."""

import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn
from uuid import uuid4

import pytest

from chalicelib.http.current_request import Invocation
from chalicelib.http.parallel_chalice import ParallelChalice
from chalicelib.observability import logs, metrics, request_log
from tests.support.log_lines import REQUEST_MEMBERS, TIME, Line, lines, of_requests
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Answer, Client, Transport
from tools.postgres_server import connected

NewClient = Callable[..., Client]
ReadLog = Callable[[], list[Line]]
Send = Callable[[Client], Answer]
EMAIL = json.loads(SEED_BYTES)["customer_email"]
CALLER = {"custom:tenant_id": "acme", "sub": "alice"}


@pytest.fixture
def read_log(capsys: pytest.CaptureFixture[str]) -> ReadLog:
    """Returns the lines logged since the last call."""
    return lambda: lines(capsys.readouterr().out)


def event(path: str = "/orders", method: str = "GET", **members: Any) -> dict[str, Any]:
    return {
        "path": path,
        "httpMethod": method,
        "headers": {},
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {"resourcePath": path, "httpMethod": method, "requestId": uuid4().hex},
        "body": None,
        "isBase64Encoded": False,
        **members,
    }


class LambdaContext:
    """The part of Lambda's context that the app reads."""

    def get_remaining_time_in_millis(self) -> int:
        return 28_000


def replay(alice: Client) -> Answer:
    key = uuid4().hex
    alice.place(key=key)
    return alice.place(key=key)


@pytest.mark.parametrize(
    ("send", "route", "status", "trips"),
    [
        pytest.param(lambda alice: alice.place(), "POST /orders", 201, 1, id="create"),
        pytest.param(replay, "POST /orders", 201, 2, id="replay"),
        pytest.param(lambda alice: alice.get("/orders?limit=1"), "GET /orders", 200, 1, id="list"),
        pytest.param(lambda alice: alice.get(f"/orders/{EMAIL}"), "GET /orders/{order_id}", 404, 0, id="id"),
        pytest.param(lambda alice: alice.place({}), "POST /orders", 422, 0, id="invalid"),
        pytest.param(lambda alice: alice.get("/health/ready"), "GET /health/ready", 200, 1, id="ready"),
        pytest.param(lambda alice: alice.get("/health"), "GET /health", 200, 0, id="health"),
        pytest.param(lambda alice: alice.send("HEAD", "/health"), "HEAD /health", 200, 0, id="head"),
        pytest.param(
            lambda alice: alice.send("OPTIONS", "/orders"), "OPTIONS /orders", 200, 0, id="preflight"
        ),
        pytest.param(lambda alice: alice.get(f"/{EMAIL}"), "GET", 404, 0, id="unknown path"),
        pytest.param(
            lambda alice: alice.send(EMAIL, "/orders"), "_OTHER /orders", 405, 0, id="unknown method"
        ),
    ],
)
def test_each_request_logs_one_line(
    alice: Client, tenant: str, read_log: ReadLog, send: Send, route: str, status: int, trips: int
) -> None:
    alice.get("/health/ready")
    read_log()

    answer = send(alice)

    (line,) = [line for line in read_log() if line["request_id"] == answer.headers["x-request-id"]]
    assert line.keys() - {"problem"} == REQUEST_MEMBERS
    assert TIME.fullmatch(line["time"])
    assert (line["level"], line["host"], line["cold_start"]) == ("INFO", "local", False)
    assert (line["route"], line["status"], line["database_trips"]) == (route, status, trips)
    assert line.get("problem") == (answer.slug if status >= 400 else None)
    assert line["ms"] >= line["database_ms"] + line["pool_ms"]
    assert (line["database_ms"] > 0) == (trips > 0)
    has_caller = "orders" in route and route.startswith(("GET", "POST"))
    assert line["tenant"] == (tenant if has_caller else None)
    assert (line["user"] is None) == (line["tenant"] is None)


def test_request_rejected_before_the_app_is_logged(anonymous: Client, read_log: ReadLog) -> None:
    answer = anonymous.get("/orders")

    *causes, line = read_log()
    assert all(cause["request_id"] == line["request_id"] for cause in causes)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert (line["status"], line["problem"], line["tenant"]) == (401, "unauthorized", None)


def test_concurrent_requests_log_separate_lines(
    client: NewClient, capsys: pytest.CaptureFixture[str]
) -> None:
    tenants = [f"tenant-{number}-{uuid4().hex[:8]}" for number in range(8)]
    callers = {tenant: client(tenant=tenant) for tenant in tenants}

    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda tenant: (tenant, callers[tenant].place()), tenants * 10))

    request_lines = of_requests(capsys.readouterr().out)
    for tenant, answer in answers:
        line = request_lines[answer.headers["x-request-id"]]
        assert (line["tenant"], line["status"], line["database_trips"]) == (tenant, 201, 1)


def test_broken_log_stream_does_not_fail_requests(
    alice: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    closed = (tmp_path / "log").open("w")
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)

    assert alice.get("/health").status == 200


def test_error_is_logged_under_its_request_id(anonymous: Client, read_log: ReadLog) -> None:
    with api_on("postgresql://orders_app@127.0.0.1:1/orders"):
        answer = anonymous.get("/health/ready")

    cause, line = read_log()
    assert cause["message"].startswith("database unavailable: connection to server at")
    assert (line["status"], line["problem"]) == (503, "unavailable")
    assert cause["level"] == line["level"] == "ERROR"
    for member in ("request_id", "route", "host", "tenant", "user"):
        assert cause[member] == line[member]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["pool_ms"] > 0


def test_rejected_statement_is_logged_without_its_values(
    alice: Client, read_log: ReadLog, admin_url: str
) -> None:
    """PostgreSQL's message would quote the whole row."""
    with connected(admin_url) as admin, admin.cursor() as cursor:
        cursor.execute(
            "alter table orders add constraint no_john check (customer_name <> 'John Doe') not valid"
        )
        try:
            answer = alice.place()
        finally:
            cursor.execute("alter table orders drop constraint no_john")

    cause, line = read_log()
    assert (answer.status, line["status"], line["problem"]) == (500, 500, "internal")
    assert cause["errors"] == ["Refused: SQLSTATE 23514: no_john"]
    assert cause["stack"][-1].endswith(" send")
    assert cause["request_id"] == answer.headers["x-request-id"]
    assert EMAIL not in json.dumps([cause, line])


def test_invalid_setting_on_lambda_is_logged_and_explained(
    app: Any, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other hosts refuse to start; on Lambda the first request reads the setting."""
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "order-api-dev")
    monkeypatch.delitem(sys.modules, "chalice.local", raising=False)  # an earlier test may have imported it

    with api_on("postgresql://orders_app:s3cret@127.0.0.1:1/orders", DB_POOL_MAX="lots"):
        request = event("/health/ready")
        answer = app(request, LambdaContext())

    cause, line = read_log()
    assert (answer["statusCode"], line["status"], line["host"]) == (500, 500, "aws")
    assert cause["errors"] == ["SettingsError: DB_POOL_MAX is 'lots': use a whole number from 5 to 86400"]
    assert cause["request_id"] == line["request_id"] == request["requestContext"]["requestId"]
    assert "lots" not in answer["body"]
    assert "s3cret" not in json.dumps([cause, line])


def test_unexpected_error_logs_type_and_place_only(
    app: Any,  # noqa: ARG001 (its logger is set up)
    read_log: ReadLog,
) -> None:
    failing_app = ParallelChalice("order-api")

    @failing_app.route("/orders", methods=["POST"])
    def fails() -> NoReturn:
        try:
            raise KeyError(EMAIL)
        except KeyError:
            raise ValueError(SEED_BYTES.decode())  # noqa: B904 (the context is logged too)

    failing_app(event(method="POST"), None)

    (cause,) = read_log()
    assert cause["errors"] == ["ValueError", "KeyError"]
    assert cause["stack"][-1].endswith(" fails")
    assert EMAIL not in json.dumps(cause)
    assert cause["level"] == "ERROR"


def test_unformattable_log_record_does_not_leak_its_values(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("alone")
    logger.addHandler(logs.Handler())

    logger.error("%d orders", EMAIL)

    out, err = capfd.readouterr()
    (line,) = lines(out)
    assert (line["level"], line["message"]) == ("ERROR", "a record of the log could not be written")
    assert TIME.fullmatch(line["time"])
    assert EMAIL not in out + err


def test_metrics_failure_does_not_fail_the_request(
    in_process: Transport, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "prometheus")
    metrics._exported.cache_clear()
    try:
        answer = in_process("GET", "/health", {}, b"")
    finally:
        metrics._exported.cache_clear()

    cause, line = read_log()
    assert (answer.status, line["status"]) == (200, 200)
    assert cause["message"] == "the metrics of this request are lost"
    assert cause["errors"] == ["SettingsError: OTEL_METRICS_EXPORTER is 'prometheus': use otlp or none"]


def test_email_used_as_user_id_is_logged_hashed(app: Any, read_log: ReadLog) -> None:
    for user in (EMAIL, EMAIL, f"other-{EMAIL}"):
        app(event(), Invocation(claims={**CALLER, "sub": user}))

    first, second, other = (line["user"] for line in read_log())
    assert first.startswith("sha256:")
    assert first == second != other


def test_first_request_of_process_is_a_cold_start(in_process: Transport, read_log: ReadLog) -> None:
    request_log.reset()
    for _ in range(2):
        in_process("GET", "/health", {}, b"")

    assert [line["cold_start"] for line in read_log()] == [True, False]
