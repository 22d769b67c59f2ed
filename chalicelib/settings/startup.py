"""Checks all settings before a host without API Gateway serves."""

from chalicelib.settings.currency import default_currency
from chalicelib.settings.database import database_settings
from chalicelib.settings.http import base_path
from chalicelib.settings.metrics import metrics_are_exported
from chalicelib.settings.rate_limit import rate_limit
from chalicelib.settings.tokens import accepted_tokens


def check_settings() -> None:
    """Read everything that a host without API Gateway needs. Raises SettingsError."""
    accepted_tokens()
    database_settings()
    default_currency()
    base_path()
    rate_limit()
    metrics_are_exported()
