"""What each host's own runtime writes: one line a request, raw, where that host collects it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema_rs
import pytest

from local import hosts
from tests.support.cognito import UserPool
from tests.support.log_lines import OF_A_REQUEST, TIME, Line, lines, of_requests
from tools.client import SEED_BYTES, Answer, Client, free_port, over_http

pytestmark = pytest.mark.slow

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OF_CLOUDWATCH = {"_aws", "function", "server_errors", "rate_limited", "cold_starts"}
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
"""CloudWatch's specification of the Embedded Metric Format, narrowed to the units that we use."""


Heard = Callable[[list[Answer]], tuple[str, str]]


@pytest.fixture
def heard(capfd: pytest.CaptureFixture[str]) -> Heard:
    """What was written to both streams, once there is a line for each of these answers."""

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
    """What CloudWatch makes of a line: each metric's value, for the one set of dimensions."""
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
    heard: Heard,
) -> None:
    port = free_port()
    with hosts.serving(cloud, built(cloud), environment, "127.0.0.1", port):
        alice = Client(over_http("127.0.0.1", port), user_pool.token(tenant))
        headers = {"idempotency-key": uuid4().hex, "traceparent": f"00-{TRACE}-{PARENT}-01"}
        placed = alice.send("POST", "/orders", SEED_BYTES, headers)
        replayed = alice.send("POST", "/orders", SEED_BYTES, headers)
        invalid = alice.place({})
        health = alice.get("/health")
        out, err = heard([placed, replayed, invalid, health])

    said = out + err
    found = of_requests(said)
    first, second, third, fourth = (
        found[answer.headers["x-request-id"]] for answer in (placed, replayed, invalid, health)
    )
    for line in (first, second, third, fourth):
        own = {"lambda": OF_CLOUDWATCH, "gcp": {"severity"}}.get(cloud, set())
        assert line.keys() - {"problem", "trace_id", "span_id"} == OF_A_REQUEST | own
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
    assert len(lines(said)) == said.count('"request_id"') == len(found), "each once, and each raw"
    # Azure's worker collects what its root logger says, which local/azure_host.py writes to stderr; on this
    # machine the function of the zip has one stream for both.
    assert lines(out if cloud in ("azure", "lambda") else err) == []
    if cloud == "lambda":
        assert metrics(first)["cold_starts"] == 1
        assert metrics(second).keys() >= {"ms", "database_ms", "pool_ms", "server_errors", "rate_limited"}
        assert metrics(second)["database_ms"] > 0
        assert metrics(fourth).keys() == {"ms", "server_errors", "rate_limited", "cold_starts"}


@pytest.mark.parametrize("cloud", ["lambda", "azure", "gcp", "oci"])
def test_error_is_logged_once_in_the_same_format(
    cloud: str, built: Callable[[str], Path], environment: dict[str, str], heard: Heard
) -> None:
    """Hosts give the root logger handlers of their own, which would say it a second time, as free text."""
    port = free_port()
    nowhere = {**environment, "DATABASE_URL": "postgresql://orders_app@127.0.0.1:1/orders"}
    with hosts.serving(cloud, built(cloud), nowhere, "127.0.0.1", port):
        failed = Client(over_http("127.0.0.1", port), None).get("/health/ready")
        said = "".join(heard([failed]))

    cause, line = lines(said)
    assert cause["message"].startswith("database unavailable: ")
    severity = "ERROR" if cloud == "gcp" else None
    assert (cause.get("severity"), line.get("severity")) == (severity, severity), "Cloud Logging's `level`"
    assert said.count("database unavailable: ") == 1
    assert cause["request_id"] == line["request_id"] == failed.headers["x-request-id"]
    assert (failed.status, line["status"]) == (503, 503)
    if cloud == "lambda":
        assert metrics(line)["server_errors"] == 1
