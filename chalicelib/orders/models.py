"""The JSON of answers about orders, for the OpenAPI document alone: no request builds these."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

Json = dict[str, Any]

SEED: Json = {
    "customer_name": "John Doe",
    "customer_email": "john@example.com",
    "customer_phone": "+1234567890",
    "shipping_address": "123 Main St",
    "billing_address": "123 Main St",
    "total_amount": 99.99,
    "currency": "USD",
    "items": [{"product_name": "Widget", "product_sku": "WDG-001", "quantity": 2, "unit_price": 49.99}],
}
PLACED: Json = {
    "order_id": "01a2027b-d6fb-7cc0-98c4-dc0c0c07398f",
    "tenant_id": "acme",
    "created_by": "5f0c6d9e-3c1b-5a57-9a53-1f3f6b0b7f4e",
    "status": "pending",
    "version": 1,
    **{name: value for name, value in SEED.items() if name != "items"},
    "items": [{"line_no": 1, **item} for item in SEED["items"]],
    "created_at": "2026-11-22T09:00:00.123000Z",
    "updated_at": "2026-11-22T09:00:00.123000Z",
}

Moment = Annotated[
    str,
    Field(
        pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
        json_schema_extra={"format": "date-time"},
    ),
]


class PlacedItem(BaseModel):
    """One line of a placed order."""

    line_no: int = Field(ge=1, le=500, description="1..n, in the order in which the lines were sent")
    product_name: str
    product_sku: str
    quantity: int = Field(ge=1, le=1_000_000)
    unit_price: float = Field(ge=0, description="Exactly the currency's decimals")


class PlacedOrder(BaseModel):
    """An order as every answer carries it."""

    order_id: str = Field(json_schema_extra={"format": "uuid"}, description="UUID version 7")
    tenant_id: str
    created_by: str = Field(description="The `sub` of the token that placed it")
    status: str = Field(json_schema_extra={"enum": ["pending"]})
    version: int = Field(ge=1, description="The ETag, without its quotes")
    customer_name: str
    customer_email: str
    customer_phone: str | None
    shipping_address: str | None
    billing_address: str | None
    total_amount: float = Field(ge=0, description="Exactly the currency's decimals: 99.99, 100.00, JPY 100")
    currency: str = Field(description="ISO 4217 code")
    items: list[PlacedItem] = Field(min_length=1, max_length=500)
    created_at: Moment
    updated_at: Moment


class OrderCreated(BaseModel):
    message: str
    order: PlacedOrder


class OneOrder(BaseModel):
    order: PlacedOrder


class OrderPage(BaseModel):
    orders: list[PlacedOrder] = Field(description="Newest first")
    limit: int
    offset: int | None = Field(description="null when a cursor led here")
    next_cursor: str | None = Field(description="null on the last page")
