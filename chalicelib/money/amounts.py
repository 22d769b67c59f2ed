"""Amounts of money: exact decimals from the request's text to the response's text."""

import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

from pydantic_core import PydanticCustomError

from chalicelib.money.currencies import DECIMALS

MAX_AMOUNT = Decimal("999999999999.999")
_DECIMAL_STRING = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_SMALLEST_UNIT = {decimals: Decimal(1).scaleb(-decimals) for decimals in set(DECIMALS.values())}
"""By number of decimals: 0.01 for 2."""
_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])


def amount(value: Any) -> Decimal:
    """A JSON number, or the same as a decimal string, from 0 to MAX_AMOUNT."""
    if isinstance(value, str) and _DECIMAL_STRING.fullmatch(value):
        value = Decimal(value)
    elif isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("amount_type", "must be a number such as 99.99")
    if not 0 <= value <= MAX_AMOUNT:
        raise PydanticCustomError("amount_range", f"must be from 0 to {MAX_AMOUNT}")
    return Decimal(value)


def in_currency(value: Decimal, currency: str) -> Decimal | None:
    """The amount with exactly the currency's decimals; None when further decimals are not zero."""
    try:
        return abs(value.quantize(_SMALLEST_UNIT[DECIMALS[currency]], context=_EXACT))
    except (Inexact, InvalidOperation):
        return None
