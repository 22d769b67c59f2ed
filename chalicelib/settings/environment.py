"""Reads single environment variables; SettingsError names the one that is missing or malformed."""

import os
from collections.abc import Mapping


class SettingsError(ValueError):
    """A variable is missing or malformed; the text says which, and what it should look like.

    It quotes no variable that may hold a secret: it is logged, on Lambda at the first request.
    """

    says_no_values = True


def required(name: str, meaning: str, variables: Mapping[str, str] = os.environ) -> str:
    """The variable's value. Raises SettingsError with its meaning when it is unset or empty."""
    value = variables.get(name)
    if not value:
        raise SettingsError(f"{name} is not set: {meaning}")
    return value


def comma_separated(name: str, meaning: str) -> tuple[str, ...]:
    """The members of a comma-separated list, of which there must be one."""
    members = tuple(filter(None, (member.strip() for member in required(name, meaning).split(","))))
    if not members:
        raise SettingsError(f"{name} is not set: {meaning}")
    return members


def whole_number(name: str, default: int, *, least: int, most: int = 86_400) -> int:
    text = os.environ.get(name) or str(default)
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise SettingsError(f"{name} is {text!r}: use a whole number from {least} to {most}")
    return int(text)


def switch(name: str) -> bool | None:
    value = os.environ.get(name)
    if value and value not in ("on", "off"):
        raise SettingsError(f"{name} is {value!r}: use on or off")
    return value == "on" if value else None
