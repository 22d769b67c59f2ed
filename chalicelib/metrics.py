"""What is counted and timed: one function, whatever collects it.

On Lambda a request's log line is a CloudWatch metric document too (Embedded Metric Format). Elsewhere
OpenTelemetry sends the same figures, where its variables say so; its SDK is imported only then.
"""

import logging
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from chalicelib import settings

if TYPE_CHECKING:
    from chalicelib.telemetry import Record

NAMESPACE = "OrderApi"
DIMENSION = "function"
RATE_LIMITED, SERVER_ERROR = 429, 500
_COUNTED = [{"Name": name, "Unit": "Count"} for name in ("server_errors", "rate_limited", "cold_starts")]
_TIMED = [{"Name": "ms", "Unit": "Milliseconds"}]
_OF_THE_DATABASE = [{"Name": name, "Unit": "Milliseconds"} for name in ("database_ms", "pool_ms")]

_log = logging.getLogger("order-api")
_exported = cache(settings.metrics_are_exported)
"""Read once, at the first request."""


def measure(record: "Record", seconds: float, line: dict[str, Any]) -> None:
    """Count this request, which took so long. May add members to its log line. Never raises."""
    if record.host == "aws":
        line.update(_embedded(record))
    elif _exported():
        try:
            from chalicelib import otel

            otel.measure(record, seconds)
        except Exception:
            _log.exception("the metrics of this request are lost")


def _embedded(record: "Record") -> dict[str, Any]:
    """What makes the line a document of CloudWatch's Embedded Metric Format."""
    metrics = _COUNTED + _TIMED + (_OF_THE_DATABASE if record.waits else [])
    return {
        DIMENSION: settings.function_name(),
        "server_errors": int(record.status >= SERVER_ERROR),
        "rate_limited": int(record.status == RATE_LIMITED),
        "cold_starts": int(record.cold_start),
        "_aws": {
            "Timestamp": int(time.time() * 1000),
            "CloudWatchMetrics": [
                {"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": metrics},
            ],
        },
    }
