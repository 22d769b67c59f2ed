"""An order as a client sends it. The stored order is in tables.py."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from chalicelib.http import exact_json
from chalicelib.money.amounts import in_currency
from chalicelib.money.currencies import DECIMALS
from chalicelib.orders.field_errors import invalid
from chalicelib.orders.fields import Address, Amount, Currency, Email, Name, Quantity
from chalicelib.orders.members import MAX_ITEMS
from chalicelib.settings.currency import default_currency


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
    items: list[NewItem] = Field(min_length=1, max_length=MAX_ITEMS)

    @model_validator(mode="after")
    def quantize_amounts(self) -> "NewOrder":
        """Give each amount exactly the currency's decimals."""
        total = in_currency(self.total_amount, self.currency)
        prices = [in_currency(item.unit_price, self.currency) for item in self.items]
        if total is None or None in prices:
            wrong: list[tuple[str | int, ...]] = [("total_amount",)] if total is None else []
            wrong += [("items", index, "unit_price") for index, price in enumerate(prices) if price is None]
            raise _too_many_decimals(self.currency, wrong)
        # vars() bypasses pydantic's own setter, which would look up each field.
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
            # A valid order nests 3 levels deep: only the depth of invalid bodies has to be measured.
            raise (exact_json.too_deep() if exact_json.is_too_deep(value) else invalid(error)) from None


def _too_many_decimals(currency: str, fields: list[tuple[str | int, ...]]) -> ValidationError:
    error = PydanticCustomError("decimals", f"{currency} amounts carry at most {DECIMALS[currency]} decimals")
    details: list[InitErrorDetails] = [{"type": error, "loc": field, "input": None} for field in fields]
    return ValidationError.from_exception_data("NewOrder", details)
