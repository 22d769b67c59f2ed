"""OTEL_METRICS_EXPORTER and the endpoints: whether OpenTelemetry sends metrics."""

from chalicelib.settings.aws_lambda import on_lambda
from chalicelib.settings.environment import SettingsError, text


def metrics_are_exported() -> bool:
    """Whether OpenTelemetry sends metrics; its SDK reads the endpoint itself. Never on Lambda."""
    exporter = text("OTEL_METRICS_EXPORTER") or ("otlp" if _endpoint_variable() else "none")
    if exporter not in ("otlp", "none"):
        raise SettingsError(f"OTEL_METRICS_EXPORTER is {exporter!r}: use otlp or none")
    return exporter == "otlp" and not on_lambda()


def malformed_endpoint() -> str:
    """The variable in use when its value is not an http address, to which no metrics can be sent; or ""."""
    name = _endpoint_variable()
    return name if name and not text(name).startswith(("http://", "https://")) else ""


def _endpoint_variable() -> str:
    """The endpoint variable that counts: the first that is set."""
    endpoints = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return next((name for name in endpoints if text(name)), "")
