"""Money: exact from the request's text to the response's text."""

import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Any

from pydantic_core import PydanticCustomError

from chalicelib.money.currencies import DECIMALS

GREATEST = Decimal("999999999999.999")
_DECIMAL_STRING = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_LEAST = {decimals: Decimal(1).scaleb(-decimals) for decimals in set(DECIMALS.values())}
"""The smallest amount with so many decimals."""
_EXACT = Context(prec=28, traps=[Inexact, InvalidOperation])


def amount(value: Any) -> Decimal:
    """A JSON number, or the same as a decimal string, from 0 to GREATEST."""
    if isinstance(value, str) and _DECIMAL_STRING.fullmatch(value):
        value = Decimal(value)
    elif isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("amount_type", "must be a number such as 99.99")
    if not 0 <= value <= GREATEST:
        raise PydanticCustomError("amount_range", f"must be from 0 to {GREATEST}")
    return Decimal(value)


def in_currency(value: Decimal, currency: str) -> Decimal | None:
    """The amount with exactly the currency's decimals; None when it has more that are not zero."""
    try:
        return abs(value.quantize(_LEAST[DECIMALS[currency]], context=_EXACT))
    except (Inexact, InvalidOperation):
        return None
