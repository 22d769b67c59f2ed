"""Metrics for OpenTelemetry. Imported at the first request of a process that exports any.

Never earlier: the exporter has a thread, and a host may fork after it has imported the API. The SDK's own
variables, OTEL_..., configure the export: the endpoint, the interval, the headers.
"""

import atexit
import logging

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource

from chalicelib.observability import logs
from chalicelib.observability.record import Record
from chalicelib.settings.metrics import malformed_endpoint

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Bucket boundaries that the semantic conventions recommend for http.server.request.duration."""
QUERIES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
"""And for a database client's durations."""
POSTGRESQL = {"db.system.name": "postgresql"}
POOL = {"db.client.connection.pool.name": "order-api"}

SHUTDOWN_TIMEOUT = 2
"""Seconds that an ending process waits for its last export. The exporter's own limit is ten and more; Cloud
Run kills after ten, and a worker that is shutting down answers no requests."""

_log = logging.getLogger("order-api")


class Instruments:
    """Named as in the semantic conventions, where they have a name."""

    def __init__(self) -> None:
        logs.adopt("opentelemetry")
        if name := malformed_endpoint():
            _log.error("%s does not begin with http:// or https://: no metrics can be sent there", name)
        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        provider = MeterProvider([reader], resource=_resource(), shutdown_on_exit=False)
        atexit.register(provider.shutdown, SHUTDOWN_TIMEOUT * 1000)
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


def measure(record: Record, seconds: float) -> None:
    """Add a request to the figures; a thread of the SDK sends them periodically."""
    route = {"http.route": record.route} if record.route else {}
    request = {"http.request.method": record.method or "_OTHER", **route}
    error = {"error.type": str(record.status)} if record.is_server_error else {}
    # Without url.scheme: only the platform in front knows what the client used.
    _instruments.requests.record(seconds, {**request, "http.response.status_code": record.status, **error})
    for trip in record.trips:
        _instruments.trips.record(trip, POSTGRESQL)
    for wait in record.waits:
        _instruments.waits.record(wait, POOL)
    if record.cold_start:
        _instruments.cold_starts.add(1)
    if error:
        _instruments.server_errors.add(1, request)
    if record.is_rate_limited:
        _instruments.rate_limited.add(1, request)


def _resource() -> Resource:
    """The service's name and attributes: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, else `order-api`.

    The SDK gives each process an instance id: with one for all, their counters would overwrite each other.
    """
    resource = Resource.create()
    unnamed = str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service")
    return resource.merge(Resource({SERVICE_NAME: "order-api"})) if unnamed else resource


_instruments = Instruments()
"""One set per process: Python's import lock lets only one thread run this line."""
