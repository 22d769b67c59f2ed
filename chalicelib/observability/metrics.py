"""Counts and times requests, for whichever service collects metrics.

On Lambda a request's log line is also a CloudWatch metric document (Embedded Metric Format). On other hosts
OpenTelemetry's SDK exports the same figures if its variables are set; only then is it imported.
"""

import json
import logging
import time
from functools import cache

from chalicelib.observability.record import Record
from chalicelib.settings.aws_lambda import function_name
from chalicelib.settings.metrics import metrics_are_exported

NAMESPACE = "OrderApi"
DIMENSION = "function"
COUNTED, TIMED = ("server_errors", "rate_limited", "cold_starts"), ("ms",)
DATABASE_TIMES = ("database_ms", "pool_ms")

_log = logging.getLogger("order-api")


def _directive(*timed: str) -> str:
    """The members of a line that CloudWatch makes metrics of, as JSON."""
    metrics = [{"Name": name, "Unit": "Count"} for name in COUNTED]
    metrics += [{"Name": name, "Unit": "Milliseconds"} for name in timed]
    directives = [{"Namespace": NAMESPACE, "Dimensions": [[DIMENSION]], "Metrics": metrics}]
    return json.dumps(directives, separators=(",", ":"))


_WITHOUT_DATABASE, _WITH_DATABASE = _directive(*TIMED), _directive(*TIMED, *DATABASE_TIMES)
_exported = cache(metrics_are_exported)
"""Read once, at the first request."""


def measure(record: Record, seconds: float) -> str:
    """Count a request that took `seconds`. Returns JSON text to append to its log line. Never raises."""
    if record.host == "aws":
        return _embedded(record)
    try:
        if _exported():
            from chalicelib.observability import otel

            otel.measure(record, seconds)
    except Exception:
        _log.exception("the metrics of this request are lost")
    return ""


def _embedded(record: Record) -> str:
    """The members that make the line an Embedded Metric Format document."""
    directive = _WITH_DATABASE if record.waits else _WITHOUT_DATABASE
    return (
        f',"{DIMENSION}":{json.dumps(function_name())}'
        f',"server_errors":{int(record.is_server_error)}'
        f',"rate_limited":{int(record.is_rate_limited)},"cold_starts":{int(record.cold_start)}'
        f',"_aws":{{"Timestamp":{int(time.time() * 1000)},"CloudWatchMetrics":{directive}}}'
    )
