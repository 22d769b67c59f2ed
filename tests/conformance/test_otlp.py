"""OpenTelemetry metrics: the GCP host under gunicorn sends them to a collector that decodes them."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from local import hosts
from local.environments import environment as environment_of
from tests.support.cognito import UserPool
from tools.client import Client, free_port, over_http

pytestmark = pytest.mark.slow


class Collector:
    """Receives OTLP over HTTP and keeps the newest value of each series, as they are cumulative."""

    def __init__(self) -> None:
        self.points: dict[str, dict[tuple[tuple[str, Any], ...], Any]] = {}
        self.services: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == ("/v1/metrics", "application/x-protobuf")
                assert self.headers["x-key"] == "s3cret"
                collector.take(ExportMetricsServiceRequest.FromString(body))
                answer = ExportMetricsServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, request: ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            attributes = {
                attribute.key: attribute.value.string_value for attribute in resource.resource.attributes
            }
            self.services.add(attributes["service.name"])
            instance = ("service.instance.id", attributes["service.instance.id"])
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    data = getattr(metric, metric.WhichOneof("data"))
                    series = self.points.setdefault(f"{metric.name} [{metric.unit}]", {})
                    for point in data.data_points:
                        key = sorted((attribute.key, value(attribute)) for attribute in point.attributes)
                        series[instance, *key] = point

    def count(self, name: str, attributes: Mapping[str, Any] = {}) -> int:
        """The sum over all series that have these attributes."""
        series = self.points.get(name, {})
        points = [point for key, point in series.items() if attributes.items() <= dict(key).items()]
        return sum(point.count if hasattr(point, "count") else point.as_int for point in points)


def value(attribute: Any) -> Any:
    return getattr(attribute.value, attribute.value.WhichOneof("value"))


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, args=[0.05], daemon=True).start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def exporting(environment: dict[str, str], port: int, **more: str) -> dict[str, str]:
    return {
        **environment,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-key=s3cret",
        "OTEL_METRIC_EXPORT_INTERVAL": "200",
        **more,
    }


REQUESTS = "http.server.request.duration [s]"


def test_otlp_metrics_count_and_time_requests(
    collector: Collector,
    built: Callable[[str], Path],
    environment: dict[str, str],
    user_pool: UserPool,
    tenant: str,
) -> None:
    port = free_port()
    variables = exporting(environment, collector.server.server_port)
    with hosts.serving("gcp", built("gcp"), variables, "127.0.0.1", port):
        alice = Client(over_http("127.0.0.1", port), user_pool.token(tenant))
        key = uuid4().hex
        answers = [alice.place(key=key), alice.place(key=key), alice.get("/orders"), alice.get("/nothing")]
        deadline = time.monotonic() + 20
        while collector.count(REQUESTS) < len(answers):
            assert time.monotonic() < deadline, collector.points
            time.sleep(0.05)
        last = alice.get(f"/orders/{uuid4()}")

    # The metrics of the last request were sent when the host stopped.
    assert [answer.status for answer in [*answers, last]] == [201, 201, 200, 404, 404]
    assert collector.services == {"order-api"}
    assert collector.count(REQUESTS) == 5
    for method, route, status, times in (
        ("POST", "/orders", 201, 2),
        ("GET", "/orders", 200, 1),
        ("GET", "/orders/{order_id}", 404, 1),
    ):
        attributes = {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        assert collector.count(REQUESTS, attributes) == times, attributes
    assert "url.scheme" not in str(collector.points.keys() | collector.points[REQUESTS].keys())
    assert collector.count("db.client.operation.duration [s]", {"db.system.name": "postgresql"}) == 5
    assert collector.count("db.client.connection.wait_time [s]") == 5
    assert collector.count("faas.coldstarts [{coldstart}]") == 1
    assert collector.count("order_api.server_errors [{request}]") == 0
    assert tenant not in str(collector.points)


def test_every_forked_worker_exports_its_metrics(
    collector: Collector, built: Callable[[str], Path], environment: dict[str, str]
) -> None:
    """gunicorn imports the app and then forks: a thread started at import would not exist in the workers."""
    port = free_port()
    unreachable = {"DATABASE_URL": "postgresql://orders_app@127.0.0.1:1/orders", "WORKERS": "2"}
    variables = exporting(
        {**environment, **unreachable}, collector.server.server_port, OTEL_SERVICE_NAME="shop"
    )
    with hosts.serving("gcp", built("gcp"), variables, "127.0.0.1", port):
        client = Client(over_http("127.0.0.1", port), None)
        statuses: list[int] = []
        deadline = time.monotonic() + 20
        with ThreadPoolExecutor(8) as threads:
            while collector.count("faas.coldstarts [{coldstart}]") < 2:
                assert time.monotonic() < deadline, "the workers' metrics overwrite each other"
                statuses += threads.map(lambda _: client.get("/health/ready").status, range(8))

    assert set(statuses) == {503}
    assert collector.services == {"shop"}
    for name, attributes in (
        (REQUESTS, {"error.type": "503"}),
        ("order_api.server_errors [{request}]", {"http.route": "/health/ready"}),
    ):
        assert collector.count(name, attributes) == len(statuses)
    assert collector.count("faas.coldstarts [{coldstart}]") == 2


def test_otlp_metrics_count_rate_limited_requests(
    collector: Collector,
    built: Callable[[str], Path],
    environment: dict[str, str],
    user_pool: UserPool,
    tenant: str,
) -> None:
    port = free_port()
    variables = exporting(environment, free_port(), RATE_LIMIT="1/m")
    variables["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"] = (
        f"http://127.0.0.1:{collector.server.server_port}/v1/metrics"
    )
    del variables["OTEL_EXPORTER_OTLP_ENDPOINT"]
    with hosts.serving("gcp", built("gcp"), variables, "127.0.0.1", port):
        alice = Client(over_http("127.0.0.1", port), user_pool.token(tenant))
        statuses = [alice.get("/orders").status for _ in range(4)]

    assert statuses == [200, 429, 429, 429]
    assert collector.count("order_api.rate_limited [{request}]", {"http.route": "/orders"}) == 3


def test_opentelemetry_is_not_imported_without_its_variables(
    built: Callable[[str], Path], environment: dict[str, str]
) -> None:
    script = (
        "import functions_framework, sys; app = functions_framework.create_app('orders_api', 'main.py');"
        "from app import app; from shims.gateway import Gateway, Request;"
        "Gateway(app).handle(Request('GET', '/health', {}, b''));"
        "print([name for name in sys.modules if 'opentelemetry' in name or name.endswith('.otel')])"
    )
    for variables, expected in (
        ({}, "[]"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_METRICS_EXPORTER": "none"}, "[]"),
    ):
        result = subprocess.run(
            [environment_of("gcp"), "-c", script],
            cwd=built("gcp"),
            env={**environment, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout.splitlines()[-1:] == [expected], result.stderr


@pytest.fixture(params=["down", "silent"])
def dead_collector(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a collector that does not listen, or accepts connections and never answers."""
    if request.param == "down":
        yield 1
        return
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def test_unresponsive_collector_delays_neither_requests_nor_shutdown(
    dead_collector: int,
    built: Callable[[str], Path],
    environment: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    variables = exporting(environment, dead_collector)
    with hosts.serving("gcp", built("gcp"), variables, "127.0.0.1", port) as door:
        client = Client(over_http("127.0.0.1", port), None)
        start = time.monotonic()
        statuses = [client.get("/health").status for _ in range(20)]
        request_seconds = time.monotonic() - start
        stop = time.monotonic()
        door.terminate()
        assert door.wait(20) == 0
        shutdown_seconds = time.monotonic() - stop

    assert statuses == [200] * 20
    assert request_seconds < 10, "requests waited for the collector"
    assert shutdown_seconds < 5, "expected about 2 s; 5 s on a busy machine, as platforms kill after 10 s"
    assert "s3cret" not in str(capfd.readouterr())
