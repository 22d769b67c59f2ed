"""Records of OpenTelemetry's loggers are logged as JSON lines too, without values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[3]
PROGRAM = """
from chalicelib.observability import logs
from chalicelib.observability import request_log
logs.start()
for _ in range(2):
    record = request_log.open_record("some-request", "local")
    request_log.close_record(record, 200)
"""


def run_and_read_log(**variables: str) -> tuple[list[dict[str, str]], str]:
    """Runs a process that records two requests; returns its other log lines and its stderr."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    return [line for line in lines if "message" in line], process.stderr


def test_export_failure_is_logged_as_json_without_values() -> None:
    lines, stderr = run_and_read_log(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_HEADERS="authorization s3cret"
    )

    assert stderr == ""
    assert {line["level"] for line in lines} <= {"WARNING", "ERROR"}
    assert any("Header format invalid" in line["message"] for line in lines)
    assert any("export" in line["message"] for line in lines)
    assert "s3cret" not in json.dumps(lines)


def test_endpoint_without_a_scheme_is_reported_once() -> None:
    lines, stderr = run_and_read_log(OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318")

    (report,) = [line for line in lines if "OTEL_EXPORTER_OTLP_ENDPOINT" in line["message"]]
    assert report["message"] == (
        "OTEL_EXPORTER_OTLP_ENDPOINT does not begin with http:// or https://: no metrics can be sent there"
    )
    assert stderr == ""
