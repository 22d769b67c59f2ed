"""Decodes the parts of a JSON Web Token strictly: what two parsers could read differently is refused."""

import json
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, NoReturn

from chalicelib.identity.refusal_log import TokenRefused

CLOCK_SKEW = 30
"""Seconds that this clock and the issuer's may differ."""


def base64url(part: str) -> bytes:
    """Without other characters (RFC 7515, 5.2), and exactly as an encoder writes it (RFC 4648, 3.5)."""
    decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part.encode():
        raise TokenRefused("malformed")
    return decoded


def json_object(text: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8 (RFC 8725, 3.7) without repeated members (RFC 7515, 4)."""
    value = _DECODER.decode(text.decode())
    if not isinstance(value, dict):
        raise TokenRefused("malformed")
    return value


def numeric_date(value: Any) -> float:
    """Seconds since 1970 (RFC 7519, 2). Raises ValueError for anything but a finite number."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a number")
    return float(value)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise TokenRefused("malformed")
    return members


def _refuse_constant(_constant: str) -> NoReturn:
    """NaN and Infinity are not JSON; Python's decoder accepts them."""
    raise TokenRefused("malformed")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_members, parse_constant=_refuse_constant)
