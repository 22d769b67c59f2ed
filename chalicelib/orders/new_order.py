"""What arrives: an order as a client sends it. What rests is in tables.py."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from chalicelib.errors import Invalid, Problem
from chalicelib.http import exact_json
from chalicelib.money.amounts import GREATEST, amount, in_currency
from chalicelib.money.currencies import DECIMALS
from chalicelib.settings.currency import default_currency

_REFUSED = r"\x00-\x1f\x7f-\x9f\ufffd"
_UNSAFE = re.compile(rf"[{_REFUSED}\ud800-\udfff]")
_PATTERN = rf"^[^{_REFUSED}]*[^\s{_REFUSED}][^{_REFUSED}]*$"
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_EMAIL_PATTERN = rf"^[^@\s{_REFUSED}]+@[^@\s{_REFUSED}]+$"
_MOST_ERRORS = 100
SERVER_OWNED = {
    "tenant_id",
    "order_id",
    "created_by",
    "status",
    "version",
    "created_at",
    "updated_at",
    "line_no",
}


def _text(most: int) -> Callable[[Any], str]:
    def trimmed(value: Any) -> str:
        if not isinstance(value, str):
            raise PydanticCustomError("text_type", "must be a string")
        if not (value.isascii() and value.isprintable()) and _UNSAFE.search(value):
            raise PydanticCustomError(
                "text_characters",
                "must not hold control characters (NUL, tab, newline, ...) or broken Unicode",
            )
        text = value.strip()
        if not 1 <= len(text) <= most:
            raise PydanticCustomError("text_length", f"must have 1 to {most:,} characters")
        return text

    return trimmed


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
    if not is_number or not 1 <= value <= 1_000_000 or value % 1:
        raise PydanticCustomError("quantity", "must be a whole number from 1 to 1,000,000")
    return int(value)


def _text_schema(most: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "minLength": 1, "maxLength": most, "pattern": _PATTERN})


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
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 1_000_000}),
]
Amount = Annotated[
    Decimal,
    PlainValidator(amount),
    WithJsonSchema(
        {
            "description": "Exact; at most the currency's decimals. A decimal string is accepted too.",
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": float(GREATEST)},
                {"type": "string", "pattern": r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,4}0*)?$"},
            ],
        }
    ),
]


class NewItem(BaseModel):
    """One line of a new order."""

    model_config = ConfigDict(extra="forbid")

    product_name: Name
    product_sku: Name
    quantity: Quantity
    unit_price: Amount


class NewOrder(BaseModel):
    """A new order. Its total is the caller's own: it carries tax, shipping and discounts.

    Spaces around text are trimmed; control characters, tabs and newlines too, are refused.
    """

    model_config = ConfigDict(extra="forbid")

    customer_name: Name
    customer_email: Email
    customer_phone: Name | None = None
    shipping_address: Address | None = None
    billing_address: Address | None = None
    total_amount: Amount
    currency: Currency = Field(default_factory=default_currency)
    items: list[NewItem] = Field(min_length=1, max_length=500)

    @model_validator(mode="after")
    def in_the_currencys_decimals(self) -> "NewOrder":
        total = in_currency(self.total_amount, self.currency)
        prices = [in_currency(item.unit_price, self.currency) for item in self.items]
        if total is None or None in prices:
            message = f"{self.currency} amounts carry at most {DECIMALS[self.currency]} decimals"
            wrong: list[tuple[str | int, ...]] = [("total_amount",)] if total is None else []
            wrong += [("items", index, "unit_price") for index, price in enumerate(prices) if price is None]
            kind = PydanticCustomError("decimals", message)
            details: list[InitErrorDetails] = [{"type": kind, "loc": field, "input": None} for field in wrong]
            raise ValidationError.from_exception_data("NewOrder", details)
        # Past pydantic's own setter, which would look each field up.
        vars(self)["total_amount"] = total
        for item, price in zip(self.items, prices, strict=True):
            vars(item)["unit_price"] = price
        return self

    @classmethod
    def from_json(cls, body: bytes) -> "NewOrder":
        """Read a request's body. Raises MalformedRequest (syntax) or Invalid (fields)."""
        value = exact_json.parse(body)
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            # No valid order nests deeper than 3, so that only refused ones need to be measured.
            raise (exact_json.too_deep() if exact_json.is_too_deep(value) else _invalid(error)) from None


def _invalid(error: ValidationError) -> Problem:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    listed = found[:_MOST_ERRORS]
    fields = [(_path(each["loc"]), _message(each["type"], each["loc"], each["msg"])) for each in listed]
    more = len(found) - len(listed)
    return Invalid(f"{Invalid.detail} {more} more are not listed." if more else None, fields)


def _path(location: tuple[int | str, ...]) -> str:
    """`items[0].unit_price`; `body` for the whole."""
    steps = (f"[{each}]" if isinstance(each, int) else f".{exact_json.nameable(each)}" for each in location)
    path = "".join(steps)
    return path.removeprefix(".") or "body"


def _message(kind: str, location: tuple[int | str, ...], otherwise: str) -> str:
    if kind == "extra_forbidden":
        owner = "set by the server" if location[-1] in SERVER_OWNED else "not a field of an order"
        return f"is {owner}: leave it out"
    return _MESSAGES.get(kind, otherwise)


_MESSAGES = {
    "missing": "is required",
    "model_type": "must be an object",
    "list_type": "must be an array",
    "too_short": "must have 1 to 500 items",
    "too_long": "must have 1 to 500 items",
    "string_unicode": "holds a member name with broken Unicode",
}
