"""Metrics for OpenTelemetry. Imported at the first request of a process that is to export any.

Never earlier: the exporter has a thread, and a host may fork after it has imported us. What the SDK does
with them (where to, how often, with which headers) its own variables say, OTEL_...
"""

import atexit
import logging
import os
import threading
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from chalicelib.observability import logs
from chalicelib.observability.metrics import RATE_LIMITED, SERVER_ERROR

if TYPE_CHECKING:
    from chalicelib.observability.record import Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""The buckets that the semantic conventions advise for http.server.request.duration."""
QUERIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""And for durations of a database client."""
POSTGRESQL = {"db.system.name": "postgresql"}
ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Of which the first that is set counts."""
POOL = {"db.client.connection.pool.name": "order-api"}

LONGEST_END = 2
"""Seconds that the end of a process waits for its last figures to leave. Left to itself the exporter tries
for ten and more; Cloud Run kills after ten, and a worker that ends answers nobody."""

_log = logging.getLogger("order-api")
_lock = threading.Lock()
_instruments: "Instruments | None" = None


class Instruments:
    """By the semantic conventions' names, where there are any."""

    def __init__(self) -> None:
        logs.adopt("opentelemetry")
        for name in [each for each in ENDPOINTS if os.environ.get(each)][:1]:
            if not os.environ[name].startswith(("http://", "https://")):
                _log.error("%s does not begin with http:// or https://: no metrics can be sent there", name)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        provider = MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)
        atexit.register(provider.shutdown, LONGEST_END * 1000)
        meter = provider.get_meter("order-api")
        self.requests = meter.create_histogram(
            "http.server.request.duration", "s", explicit_bucket_boundaries_advisory=SECONDS
        )
        self.trips = meter.create_histogram(
            "db.client.operation.duration", "s", explicit_bucket_boundaries_advisory=QUERIES
        )
        self.waits = meter.create_histogram(
            "db.client.connection.wait_time", "s", explicit_bucket_boundaries_advisory=QUERIES
        )
        self.cold_starts = meter.create_counter("faas.coldstarts", "{coldstart}")
        self.server_errors = meter.create_counter("order_api.server_errors", "{request}")
        self.rate_limited = meter.create_counter("order_api.rate_limited", "{request}")


def measure(record: "Record", seconds: float) -> None:
    """Add a request to the figures; a thread of the SDK's sends them now and then."""
    to = _the_instruments()
    route = {"http.route": record.route} if record.route else {}
    of_the_request = {"http.request.method": record.method or "_OTHER", **route}
    error = {"error.type": str(record.status)} if record.status >= SERVER_ERROR else {}
    # Without url.scheme: only the platform in front knows what the client used.
    to.requests.record(seconds, {**of_the_request, "http.response.status_code": record.status, **error})
    for each in record.trips:
        to.trips.record(each, POSTGRESQL)
    for each in record.waits:
        to.waits.record(each, POOL)
    if record.cold_start:
        to.cold_starts.add(1)
    if error:
        to.server_errors.add(1, of_the_request)
    if record.status == RATE_LIMITED:
        to.rate_limited.add(1, of_the_request)


def _the_instruments() -> Instruments:
    global _instruments  # noqa: PLW0603 (one set a process)
    if _instruments is None:
        with _lock:
            _instruments = _instruments or Instruments()
    return _instruments


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say; else the service has our name.

    The SDK gives each process an instance id: with one for all, their counters would overwrite each other.
    """
    found = Resource.create()
    unnamed = str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return found.merge(Resource({SERVICE_NAME: "order-api"})) if unnamed else found
