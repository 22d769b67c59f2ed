"""The tables of schema.sql, for statements.py. Constraints are in schema.sql, requests in new_order.py."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import DateTime, Numeric
from sqlmodel import Field, SQLModel

from chalicelib.orders.members import ITEM, ORDER, Kind, Member

_TYPES: dict[Kind, tuple[type, dict[str, Any]]] = {
    "text": (str, {}),
    "code": (str, {}),
    "uuid": (UUID, {}),
    "integer": (int, {}),
    "amount": (Decimal, {"sa_type": Numeric}),
    "timestamp": (datetime, {"sa_type": DateTime(timezone=True)}),
}
_KEY = [member for name in ("tenant_id", "order_id") for member in ORDER if member.name == name]


def _table(name: str, table: str, members: Sequence[Member], keys: Sequence[str]) -> type[SQLModel]:
    """The key's columns, then one for each other member except `items`, which is a table."""
    annotations, fields = {}, {}
    for member in (*_KEY, *members):
        if member.kind != "items":
            python_type, arguments = _TYPES[member.kind]
            annotations[member.name] = python_type | None if member.is_optional else python_type
            fields[member.name] = Field(primary_key=member.name in keys, **arguments)
    namespace = {"__module__": __name__, "__tablename__": table, "__annotations__": annotations, **fields}
    metaclass: Any = type(SQLModel)
    model: type[SQLModel] = metaclass(name, (SQLModel,), namespace, table=True)
    return model


Order = _table("Order", "orders", ORDER, ["tenant_id", "order_id"])
OrderItem = _table("OrderItem", "order_items", ITEM, ["tenant_id", "order_id", "line_no"])


class IdempotencyKey(SQLModel, table=True):
    __tablename__ = "idempotency_keys"

    tenant_id: str = Field(primary_key=True)
    created_by: str = Field(primary_key=True)
    idempotency_key: str = Field(primary_key=True)
    fingerprint: str
    order_id: UUID
    created_at: datetime = Field(sa_type=DateTime(timezone=True))
