"""CORS_ORIGIN, BASE_PATH and DOCS: how requests reach the API."""

import re

from chalicelib.settings.environment import SettingsError, text

_BASE_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_ORIGIN = re.compile(r"\*|https?://[^\s/,*]+")


def cors_origin() -> str:
    """`*` or the one origin that browsers may call from."""
    origin = text("CORS_ORIGIN")
    if not _ORIGIN.fullmatch(origin):
        raise SettingsError(f"CORS_ORIGIN is {origin!r}: use * or one origin such as https://shop.example")
    return origin


def base_path() -> str:
    """The prefix that a gateway in front adds to every path, such as `/shop`; removed before routing."""
    path = text("BASE_PATH").rstrip("/")
    if not _BASE_PATH.fullmatch(path):
        raise SettingsError(f"BASE_PATH is {path!r}: use a path such as /shop, or leave it unset")
    return path


def docs_are_on() -> bool:
    """Whether GET /openapi.json is served."""
    return text("DOCS").lower() in ("on", "1", "true")
