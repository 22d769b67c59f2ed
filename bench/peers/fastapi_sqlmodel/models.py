"""The tables, and what the API takes and answers: SQLModel's "Models with Relationships in FastAPI"."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, PlainSerializer, StringConstraints
from sqlalchemy import DateTime, ForeignKeyConstraint, Numeric
from sqlmodel import Field, Relationship, SQLModel


def rfc3339(moment: datetime) -> str:
    """With six decimals always; Pydantic leaves out those of a whole second."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


# Pydantic writes a Decimal as a JSON string; the contract has JSON numbers.
AsNumber = PlainSerializer(float, return_type=float, when_used="json")
Timestamp = Annotated[datetime, PlainSerializer(rfc3339, return_type=str, when_used="json")]
# SQLModel's Field(regex=...) is not enforced with Pydantic 2.
Email = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$")]
Currency = Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")]
GREATEST = Decimal("999999999999.999")


class ItemBase(SQLModel):
    product_name: str = Field(min_length=1, max_length=255)
    product_sku: str = Field(min_length=1, max_length=255)
    quantity: int = Field(ge=1, le=1_000_000)
    unit_price: Annotated[Decimal, AsNumber] = Field(ge=0, le=GREATEST, decimal_places=4, sa_type=Numeric)


class OrderItem(ItemBase, table=True):
    __tablename__ = "order_items"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "order_id"], ["orders.tenant_id", "orders.order_id"]),
    )

    tenant_id: str = Field(primary_key=True)
    order_id: UUID = Field(primary_key=True)
    line_no: int = Field(primary_key=True)
    order: "Order" = Relationship(back_populates="items")


class ItemCreate(ItemBase):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class ItemPublic(ItemBase):
    line_no: int


class OrderBase(SQLModel):
    customer_name: str = Field(min_length=1, max_length=255)
    customer_email: Email = Field(max_length=254)
    customer_phone: str | None = Field(default=None, min_length=1, max_length=255)
    shipping_address: str | None = Field(default=None, min_length=1, max_length=2000)
    billing_address: str | None = Field(default=None, min_length=1, max_length=2000)
    total_amount: Annotated[Decimal, AsNumber] = Field(ge=0, le=GREATEST, decimal_places=4, sa_type=Numeric)
    currency: Currency = "USD"


class Order(OrderBase, table=True):
    __tablename__ = "orders"

    tenant_id: str = Field(primary_key=True)
    order_id: UUID = Field(primary_key=True)
    created_by: str
    status: str = "pending"
    version: int = 1
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(sa_type=DateTime(timezone=True))
    items: list[OrderItem] = Relationship(
        back_populates="order", sa_relationship_kwargs={"order_by": "OrderItem.line_no"}
    )


class OrderCreate(OrderBase):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)

    items: list[ItemCreate] = Field(min_length=1, max_length=500)


class PageQuery(SQLModel):
    limit: int = Field(default=50, ge=1, le=100)
    offset: int = Field(default=0, ge=0)
    cursor: str | None = None
    my_orders: bool = False


class OrderPublic(OrderBase):
    tenant_id: str
    order_id: UUID
    created_by: str
    status: str
    version: int
    items: list[ItemPublic]
    created_at: Timestamp
    updated_at: Timestamp


class IdempotencyKey(SQLModel, table=True):
    __tablename__ = "idempotency_keys"

    tenant_id: str = Field(primary_key=True)
    created_by: str = Field(primary_key=True)
    idempotency_key: str = Field(primary_key=True)
    fingerprint: str
    order_id: UUID
    created_at: datetime = Field(sa_type=DateTime(timezone=True))


class Placed(SQLModel):
    message: str = "Order created successfully"
    order: OrderPublic


class Single(SQLModel):
    order: OrderPublic


class Page(SQLModel):
    orders: list[OrderPublic]
    limit: int
    offset: int | None
    next_cursor: str | None
