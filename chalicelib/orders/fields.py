"""The types of a new order's fields: how each is validated, and its JSON schema."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from chalicelib.money.amounts import MAX_AMOUNT, amount
from chalicelib.money.currencies import DECIMALS
from chalicelib.orders.members import MAX_QUANTITY

_FORBIDDEN = r"\x00-\x1f\x7f-\x9f\ufffd"
"""In a character class: control characters, and the replacement for broken Unicode."""
_FORBIDDEN_CHARACTER = re.compile(rf"[{_FORBIDDEN}\ud800-\udfff]")
_TEXT_PATTERN = rf"^[^{_FORBIDDEN}]*[^\s{_FORBIDDEN}][^{_FORBIDDEN}]*$"
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_EMAIL_PATTERN = rf"^[^@\s{_FORBIDDEN}]+@[^@\s{_FORBIDDEN}]+$"


def _text(max_length: int) -> Callable[[Any], str]:
    def validate(value: Any) -> str:
        if not isinstance(value, str):
            raise PydanticCustomError("text_type", "must be a string")
        if not (value.isascii() and value.isprintable()) and _FORBIDDEN_CHARACTER.search(value):
            raise PydanticCustomError(
                "text_characters",
                "must not hold control characters (NUL, tab, newline, ...) or broken Unicode",
            )
        trimmed = value.strip()
        if not 1 <= len(trimmed) <= max_length:
            raise PydanticCustomError("text_length", f"must have 1 to {max_length:,} characters")
        return trimmed

    return validate


def _email(value: Any) -> str:
    address = _text(254)(value)
    if not _EMAIL.fullmatch(address):
        raise PydanticCustomError("email", "must be an e-mail address with one @, such as john@example.com")
    return address


def _currency(value: Any) -> str:
    if not isinstance(value, str) or value not in DECIMALS:
        raise PydanticCustomError("currency", "must be an ISO 4217 code such as USD, EUR or JPY")
    return value


def _quantity(value: Any) -> int:
    # 2.0 is the same JSON number as 2 (RFC 8259, section 6).
    is_number = isinstance(value, int | Decimal) and not isinstance(value, bool)
    if not is_number or not 1 <= value <= MAX_QUANTITY or value % 1:
        raise PydanticCustomError("quantity", f"must be a whole number from 1 to {MAX_QUANTITY:,}")
    return int(value)


def _text_schema(max_length: int) -> WithJsonSchema:
    return WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": max_length, "pattern": _TEXT_PATTERN}
    )


Name = Annotated[str, PlainValidator(_text(255)), _text_schema(255)]
Address = Annotated[str, PlainValidator(_text(2000)), _text_schema(2000)]
Email = Annotated[
    str,
    PlainValidator(_email),
    WithJsonSchema({"type": "string", "maxLength": 254, "pattern": _EMAIL_PATTERN}),
]
Currency = Annotated[
    str,
    PlainValidator(_currency),
    WithJsonSchema({"type": "string", "enum": sorted(DECIMALS), "description": "ISO 4217 code"}),
]
Quantity = Annotated[
    int,
    PlainValidator(_quantity),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_QUANTITY}),
]
Amount = Annotated[
    Decimal,
    PlainValidator(amount),
    WithJsonSchema(
        {
            "description": "Exact; at most the currency's decimals. A decimal string is accepted too.",
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": float(MAX_AMOUNT)},
                {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,4}0*)?$"},
            ],
        }
    ),
]
