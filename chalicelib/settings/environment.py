"""Reads single environment variables of the table; SettingsError names one that is missing or malformed."""

import os
from collections.abc import Mapping

from chalicelib.settings.table import SETTINGS

NO_SECRET: Mapping[str, str] = {}


class SettingsError(ValueError):
    """A variable is missing or malformed; the message names it and the expected form.

    It never quotes a variable that may hold a secret, because it is logged, on Lambda at the first request.
    """

    is_safe_to_log = True


def text(name: str, secret: Mapping[str, str] = NO_SECRET) -> str:
    """The secret's value, else the variable's, else the default. Raises KeyError outside the table."""
    default = SETTINGS[name].default
    return secret.get(name) or os.environ.get(name) or default


def is_present(name: str) -> bool:
    """Whether the variable is set, even to an empty text."""
    return SETTINGS[name].name in os.environ


def required(name: str, meaning: str, secret: Mapping[str, str] = NO_SECRET) -> str:
    """The variable's value. Raises SettingsError with `meaning` when there is none."""
    value = text(name, secret)
    if not value:
        raise SettingsError(f"{name} is not set: {meaning}")
    return value


def comma_separated(name: str, meaning: str) -> tuple[str, ...]:
    """The members of a comma-separated list, at least one. Raises SettingsError with `meaning`."""
    members = tuple(filter(None, (member.strip() for member in required(name, meaning).split(","))))
    if not members:
        raise SettingsError(f"{name} is not set: {meaning}")
    return members


def whole_number(name: str, *, minimum: int, maximum: int = 86_400) -> int:
    """The variable's value, or its default, raised to `minimum`. Raises SettingsError."""
    default = max(minimum, int(SETTINGS[name].default))
    number = os.environ.get(name) or str(default)
    if not (number.isascii() and number.isdigit() and minimum <= int(number) <= maximum):
        raise SettingsError(f"{name} is {number!r}: use a whole number from {minimum} to {maximum}")
    return int(number)


def switch(name: str) -> bool | None:
    """`on` or `off`; None when unset. Raises SettingsError."""
    value = text(name)
    if value not in ("", "on", "off"):
        raise SettingsError(f"{name} is {value!r}: use on or off")
    return value == "on" if value else None
