"""The members of an order, as its JSON has them: the one list for tables, SQL, JSON and OpenAPI models.

To add a column: schema.sql, a line here, and its field in new_order.py if clients send it, else its value in
repository.py.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Kind = Literal["text", "code", "uuid", "integer", "amount", "timestamp", "items"]
"""`code`: text without characters that JSON escapes. `amount`: exact decimal. `items`: the order's lines."""
MAX_ITEMS, MAX_QUANTITY = 500, 1_000_000
INITIAL: Mapping[str, Any] = MappingProxyType({"status": "pending", "version": 1})
"""What the server gives a new order, the same for each."""


class Member(NamedTuple):
    """A member of the JSON, and the column of the same name."""

    name: str
    kind: Kind
    example: Any = None
    is_optional: bool = False
    """Whether it may be null."""
    schema: Mapping[str, Any] = MappingProxyType({})
    """More arguments of pydantic.Field, for the OpenAPI document."""


# An item: the server sets line_no, clients send the rest.
LINE_NO = Member(
    "line_no",
    "integer",
    1,
    schema={"ge": 1, "le": MAX_ITEMS, "description": "1..n, in the order in which the lines were sent"},
)
ITEM_CONTENT = (
    Member("product_name", "text", "Widget"),
    Member("product_sku", "text", "WDG-001"),
    Member("quantity", "integer", 2, schema={"ge": 1, "le": MAX_QUANTITY}),
    Member("unit_price", "amount", 49.99, schema={"description": "Exactly the currency's decimals"}),
)
ITEM = (LINE_NO, *ITEM_CONTENT)

# An order: the server sets what comes before its content and after it.
BEFORE_CONTENT = (
    Member(
        "order_id",
        "uuid",
        "01a2027b-d6fb-7cc0-98c4-dc0c0c07398f",
        schema={"description": "UUID version 7"},
    ),
    Member("tenant_id", "text", "acme"),
    Member(
        "created_by",
        "text",
        "5f0c6d9e-3c1b-5a57-9a53-1f3f6b0b7f4e",
        schema={"description": "The `sub` of the token that placed it"},
    ),
    Member("status", "code", INITIAL["status"], schema={"json_schema_extra": {"enum": ["pending"]}}),
    Member(
        "version",
        "integer",
        INITIAL["version"],
        schema={"ge": 1, "description": "The ETag, without its quotes"},
    ),
)
CONTENT = (
    Member("customer_name", "text", "John Doe"),
    Member("customer_email", "text", "john@example.com"),
    Member("customer_phone", "text", "+1234567890", is_optional=True),
    Member("shipping_address", "text", "123 Main St", is_optional=True),
    Member("billing_address", "text", "123 Main St", is_optional=True),
    Member(
        "total_amount",
        "amount",
        99.99,
        schema={"description": "Exactly the currency's decimals: 99.99, 100.00, JPY 100"},
    ),
    Member("currency", "code", "USD", schema={"description": "ISO 4217 code"}),
    Member("items", "items"),
)
AFTER_CONTENT = (
    Member("created_at", "timestamp", "2026-11-22T09:00:00.123000Z"),
    Member("updated_at", "timestamp", "2026-11-22T09:00:00.123000Z"),
)
ORDER = (*BEFORE_CONTENT, *CONTENT, *AFTER_CONTENT)

SERVER_OWNED = frozenset(member.name for member in (*BEFORE_CONTENT, *AFTER_CONTENT, LINE_NO))
"""Members that a client may not send."""


def amounts(members: tuple[Member, ...]) -> tuple[str, ...]:
    """The names of those that are amounts."""
    return tuple(member.name for member in members if member.kind == "amount")
