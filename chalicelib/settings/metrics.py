"""OTEL_METRICS_EXPORTER and the endpoints: whether OpenTelemetry sends metrics."""

import os

from chalicelib.settings.aws_lambda import on_lambda
from chalicelib.settings.environment import SettingsError


def metrics_are_exported() -> bool:
    """Whether OpenTelemetry is to send metrics; where to, its SDK reads by itself. Never on Lambda."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    has_endpoint = any(os.environ.get(name) for name in endpoints)
    exporter = os.environ.get("OTEL_METRICS_EXPORTER") or ("otlp" if has_endpoint else "none")
    if exporter not in ("otlp", "none"):
        raise SettingsError(f"OTEL_METRICS_EXPORTER is {exporter!r}: use otlp or none")
    return exporter == "otlp" and not on_lambda()
