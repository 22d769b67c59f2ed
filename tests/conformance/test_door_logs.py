"""The log output of each host's runtime: one raw line per request, on the stream that is collected."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema_rs
import pytest

from local import hosts
from tests.support.cognito import UserPool
from tests.support.log_lines import REQUEST_MEMBERS, TIME, Line, lines, of_requests
from tools.client import SEED_BYTES, Answer, Client, free_port, over_http

pytestmark = pytest.mark.slow

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CLOUDWATCH_MEMBERS = {"_aws", "function", "server_errors", "rate_limited", "cold_starts"}
EMF: Any = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "additionalProperties": False,
            "properties": {
                "Timestamp": {"type": "integer", "minimum": 10**12},
                "CloudWatchMetrics": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "additionalProperties": False,
                        "properties": {
                            "Namespace": {"type": "string", "minLength": 1, "maxLength": 1024},
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "array",
                                    "maxItems": 30,
                                    "items": {"type": "string", "minLength": 1, "maxLength": 250},
                                },
                            },
                            "Metrics": {
                                "type": "array",
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "additionalProperties": False,
                                    "properties": {
                                        "Name": {"type": "string", "minLength": 1, "maxLength": 1024},
                                        "Unit": {"enum": ["Count", "Milliseconds"]},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}
"""CloudWatch's specification of the Embedded Metric Format, restricted to the units that we use."""


WaitForLogs = Callable[[list[Answer]], tuple[str, str]]


@pytest.fixture
def wait_for_logs(capfd: pytest.CaptureFixture[str]) -> WaitForLogs:
    """Waits until each of these answers has a log line, and returns stdout and stderr."""

    def wait(answers: list[Answer]) -> tuple[str, str]:
        out, err, deadline = "", "", time.monotonic() + 10
        while not all(f'"{answer.headers["x-request-id"]}"' in out + err for answer in answers):
            assert time.monotonic() < deadline, out + err
            time.sleep(0.05)
            captured = capfd.readouterr()
            out, err = out + captured.out, err + captured.err
        return out, err

    return wait


def metrics(line: Line) -> dict[str, Any]:
    """The metrics that CloudWatch extracts from a line, for the one set of dimensions."""
    jsonschema_rs.validator_for(EMF).validate(line)
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert (directive["Namespace"], directive["Dimensions"]) == ("OrderApi", [["function"]])
    assert line["function"] == "order-api"
    values = {metric["Name"]: line[metric["Name"]] for metric in directive["Metrics"]}
    assert all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values())
    return values


@pytest.mark.parametrize("cloud", ["lambda", "azure", "gcp", "oci"])
def test_every_request_logs_one_raw_line(
    cloud: str,
    built: Callable[[str], Path],
    environment: dict[str, str],
    user_pool: UserPool,
    tenant: str,
    wait_for_logs: WaitForLogs,
) -> None:
    port = free_port()
    with hosts.serving(cloud, built(cloud), environment, "127.0.0.1", port):
        alice = Client(over_http("127.0.0.1", port), user_pool.token(tenant))
        headers = {"idempotency-key": uuid4().hex, "traceparent": f"00-{TRACE}-{PARENT}-01"}
        placed = alice.send("POST", "/orders", SEED_BYTES, headers)
        replayed = alice.send("POST", "/orders", SEED_BYTES, headers)
        invalid = alice.place({})
        health = alice.get("/health")
        out, err = wait_for_logs([placed, replayed, invalid, health])

    output = out + err
    lines_by_request = of_requests(output)
    first, second, third, fourth = (
        lines_by_request[answer.headers["x-request-id"]] for answer in (placed, replayed, invalid, health)
    )
    for line in (first, second, third, fourth):
        extra = {"lambda": CLOUDWATCH_MEMBERS, "gcp": {"severity"}}.get(cloud, set())
        assert line.keys() - {"problem", "trace_id", "span_id"} == REQUEST_MEMBERS | extra
        assert line["host"] == {"lambda": "aws"}.get(cloud, cloud)
        assert TIME.fullmatch(line["time"])
    assert [line["status"] for line in (first, second, third, fourth)] == [201, 201, 422, 200]
    assert [line["cold_start"] for line in (first, second, third, fourth)] == [True, False, False, False]
    assert [line["database_trips"] for line in (first, second, third, fourth)] == [1, 2, 0, 0]
    assert [line["route"] for line in (first, fourth)] == ["POST /orders", "GET /health"]
    assert [line["tenant"] for line in (first, second, third, fourth)] == [tenant, tenant, tenant, None]
    assert first["trace_id"] == second["trace_id"] == TRACE
    assert len({PARENT, first["span_id"], second["span_id"]}) == 3
    assert "trace_id" not in third
    assert len(lines(output)) == output.count('"request_id"') == len(lines_by_request), (
        "one raw line per request"
    )
    # Azure's worker collects the root logger, which local/azure_host.py writes to stderr; the local Lambda
    # host has one stream for both.
    assert lines(out if cloud in ("azure", "lambda") else err) == []
    if cloud == "lambda":
        assert metrics(first)["cold_starts"] == 1
        assert metrics(second).keys() >= {"ms", "database_ms", "pool_ms", "server_errors", "rate_limited"}
        assert metrics(second)["database_ms"] > 0
        assert metrics(fourth).keys() == {"ms", "server_errors", "rate_limited", "cold_starts"}


@pytest.mark.parametrize("cloud", ["lambda", "azure", "gcp", "oci"])
def test_error_is_logged_once_in_the_same_format(
    cloud: str, built: Callable[[str], Path], environment: dict[str, str], wait_for_logs: WaitForLogs
) -> None:
    """Hosts add handlers to the root logger, which would log the error a second time, as free text."""
    port = free_port()
    unreachable = {**environment, "DATABASE_URL": "postgresql://orders_app@127.0.0.1:1/orders"}
    with hosts.serving(cloud, built(cloud), unreachable, "127.0.0.1", port):
        response = Client(over_http("127.0.0.1", port), None).get("/health/ready")
        output = "".join(wait_for_logs([response]))

    cause, line = lines(output)
    assert cause["message"].startswith("database unavailable: ")
    severity = "ERROR" if cloud == "gcp" else None
    assert (cause.get("severity"), line.get("severity")) == (severity, severity), "Cloud Logging's `level`"
    assert output.count("database unavailable: ") == 1
    assert cause["request_id"] == line["request_id"] == response.headers["x-request-id"]
    assert (response.status, line["status"]) == (503, 503)
    if cloud == "lambda":
        assert metrics(line)["server_errors"] == 1
