"""What is counted and timed: one function, whatever collects it.

On Lambda a request's log line is a CloudWatch metric document too (Embedded Metric Format). Elsewhere
OpenTelemetry sends the same figures, where its variables say so; its SDK is imported only then.
"""

import json
import logging
import time
from functools import cache
from typing import TYPE_CHECKING

from chalicelib.settings.aws_lambda import function_name
from chalicelib.settings.metrics import metrics_are_exported

if TYPE_CHECKING:
    from chalicelib.observability.record import Record

NAMESPACE = "OrderApi"
DIMENSION = "function"
RATE_LIMITED, SERVER_ERROR = 429, 500
COUNTED, TIMED = ("server_errors", "rate_limited", "cold_starts"), ("ms",)
OF_THE_DATABASE = ("database_ms", "pool_ms")

_log = logging.getLogger("order-api")


def _directive(*timed: str) -> str:
    """What CloudWatch is to take from a line, as JSON."""
    metrics = [{"Name": name, "Unit": "Count"} for name in COUNTED]
    metrics += [{"Name": name, "Unit": "Milliseconds"} for name in timed]
    found = [{"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": metrics}]
    return json.dumps(found, separators=(",", ":"))


_WITHOUT_DATABASE, _WITH_DATABASE = _directive(*TIMED), _directive(*TIMED, *OF_THE_DATABASE)
_exported = cache(metrics_are_exported)
"""Read once, at the first request."""


def measure(record: "Record", seconds: float) -> str:
    """Count this request, which took so long. Says what its log line is to end with. Never raises."""
    if record.host == "aws":
        return _embedded(record)
    try:
        if _exported():
            from chalicelib.observability import otel

            otel.measure(record, seconds)
    except Exception:
        _log.exception("the metrics of this request are lost")
    return ""


def _embedded(record: "Record") -> str:
    """What makes the line a document of CloudWatch's Embedded Metric Format."""
    directive = _WITH_DATABASE if record.waits else _WITHOUT_DATABASE
    return (
        f',"{DIMENSION}":{json.dumps(function_name())}'
        f',"server_errors":{int(record.status >= SERVER_ERROR)}'
        f',"rate_limited":{int(record.status == RATE_LIMITED)},"cold_starts":{int(record.cold_start)}'
        f',"_aws":{{"Timestamp":{int(time.time() * 1000)},"CloudWatchMetrics":{directive}}}'
    )
