"""What the API takes and answers."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer


def rfc3339(moment: datetime) -> str:
    """With six decimals always; Pydantic leaves out those of a whole second."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# Pydantic writes a Decimal as a JSON string; the contract has JSON numbers.
Amount = Annotated[
    Decimal,
    Field(ge=0, le=Decimal("999999999999.999"), decimal_places=4),
    PlainSerializer(float, return_type=float, when_used="json"),
]
Timestamp = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
Text = Annotated[str, Field(min_length=1, max_length=255)]
Address = Annotated[str, Field(min_length=1, max_length=2000)]


class NewItem(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    product_name: Text
    product_sku: Text
    quantity: int = Field(ge=1, le=1_000_000)
    unit_price: Amount


class NewOrder(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    customer_name: Text
    customer_email: str = Field(max_length=254, pattern=r"^[^@\s]+@[^@\s]+$")
    customer_phone: Text | None = None
    shipping_address: Address | None = None
    billing_address: Address | None = None
    total_amount: Amount
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$")
    items: list[NewItem] = Field(min_length=1, max_length=500)


class Item(BaseModel):
    line_no: int
    product_name: str
    product_sku: str
    quantity: int
    unit_price: Amount


class Order(BaseModel):
    order_id: UUID
    tenant_id: str
    created_by: str
    status: str
    version: int
    customer_name: str
    customer_email: str
    customer_phone: str | None
    shipping_address: str | None
    billing_address: str | None
    total_amount: Amount
    currency: str
    items: list[Item]
    created_at: Timestamp
    updated_at: Timestamp


class Placed(BaseModel):
    message: str = "Order created successfully"
    order: Order


class Single(BaseModel):
    order: Order


class Page(BaseModel):
    orders: list[Order]
    limit: int
    offset: int | None
    next_cursor: str | None
