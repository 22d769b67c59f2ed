"""Turns pydantic's errors into the 422 that names each wrong field of an order."""

from pydantic import ValidationError

from chalicelib.errors import Invalid
from chalicelib.http import exact_json
from chalicelib.orders.members import MAX_ITEMS, SERVER_OWNED

MAX_LISTED = 100
_MESSAGES = {
    "missing": "is required",
    "model_type": "must be an object",
    "list_type": "must be an array",
    "too_short": f"must have 1 to {MAX_ITEMS} items",
    "too_long": f"must have 1 to {MAX_ITEMS} items",
    "string_unicode": "holds a member name with broken Unicode",
}
"""By pydantic's error type, in place of its own message."""


def invalid(error: ValidationError) -> Invalid:
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    listed = [
        (_path(detail["loc"]), _message(detail["type"], detail["loc"], detail["msg"]))
        for detail in errors[:MAX_LISTED]
    ]
    unlisted = len(errors) - len(listed)
    return Invalid(f"{Invalid.detail} {unlisted} more are not listed." if unlisted else None, listed)


def _path(location: tuple[int | str, ...]) -> str:
    """`items[0].unit_price`; `body` for the whole."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{exact_json.nameable(step)}" for step in location)
    return "".join(steps).removeprefix(".") or "body"


def _message(error_type: str, location: tuple[int | str, ...], default: str) -> str:
    if error_type == "extra_forbidden":
        owner = "set by the server" if location[-1] in SERVER_OWNED else "not a field of an order"
        return f"is {owner}: leave it out"
    return _MESSAGES.get(error_type, default)
