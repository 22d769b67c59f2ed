"""The JSON of answers about orders, for the OpenAPI document alone: no request builds these."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field, create_model

from chalicelib.orders.members import CONTENT, ITEM, ITEM_CONTENT, MAX_ITEMS, ORDER, Kind, Member

Json = dict[str, Any]


def _example(members: Sequence[Member], items: Sequence[Member]) -> Json:
    item = {member.name: member.example for member in items}
    return {member.name: [item] if member.kind == "items" else member.example for member in members}


SEED = _example(CONTENT, ITEM_CONTENT)
"""A new order."""
PLACED = _example(ORDER, ITEM)

_SCHEMAS: dict[Kind, tuple[type, Json]] = {
    "text": (str, {}),
    "code": (str, {}),
    "uuid": (str, {"json_schema_extra": {"format": "uuid"}}),
    "integer": (int, {}),
    "amount": (float, {"ge": 0}),
    "timestamp": (
        str,
        {
            "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{6}Z$",
            "json_schema_extra": {"format": "date-time"},
        },
    ),
}


def _model(name: str, doc: str, members: Sequence[Member]) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for member in members:
        python_type, schema = _SCHEMAS[member.kind]
        annotation = python_type | None if member.is_optional else python_type
        fields[member.name] = (annotation, Field(**{**schema, **member.schema}))
    model: type[BaseModel] = create_model(name, __doc__=doc, **fields)
    return model


PlacedItem = _model("PlacedItem", "One line of a placed order.", ITEM)
_SCHEMAS["items"] = (list[PlacedItem], {"min_length": 1, "max_length": MAX_ITEMS})  # type: ignore[valid-type] # made above
PlacedOrder = _model("PlacedOrder", "An order as every answer carries it.", ORDER)


class OrderCreated(BaseModel):
    message: str
    order: PlacedOrder  # type: ignore[valid-type] # made above


class OneOrder(BaseModel):
    order: PlacedOrder  # type: ignore[valid-type] # made above


class OrderPage(BaseModel):
    orders: list[PlacedOrder] = Field(description="Newest first")  # type: ignore[valid-type] # made above
    limit: int
    offset: int | None = Field(description="null when a cursor led here")
    next_cursor: str | None = Field(description="null on the last page")
