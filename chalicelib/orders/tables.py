"""What rests: the rows of schema.sql, which is where their rules are. What arrives is in messages.py."""

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from sqlalchemy import DateTime, Numeric
from sqlmodel import Field, SQLModel


class Order(SQLModel, table=True):
    __tablename__ = "orders"

    tenant_id: str = Field(primary_key=True)
    order_id: UUID = Field(primary_key=True)
    created_by: str
    status: str
    version: int
    customer_name: str
    customer_email: str
    customer_phone: str | None
    shipping_address: str | None
    billing_address: str | None
    total_amount: Decimal = Field(sa_type=Numeric)
    currency: str
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
    updated_at: datetime = Field(sa_type=DateTime(timezone=True))


class OrderItem(SQLModel, table=True):
    __tablename__ = "order_items"

    tenant_id: str = Field(primary_key=True)
    order_id: UUID = Field(primary_key=True)
    line_no: int = Field(primary_key=True)
    product_name: str
    product_sku: str
    quantity: int
    unit_price: Decimal = Field(sa_type=Numeric)


class IdempotencyKey(SQLModel, table=True):
    __tablename__ = "idempotency_keys"

    tenant_id: str = Field(primary_key=True)
    created_by: str = Field(primary_key=True)
    idempotency_key: str = Field(primary_key=True)
    fingerprint: str
    order_id: UUID
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
