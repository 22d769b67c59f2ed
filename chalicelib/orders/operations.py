"""The routes under /orders, as the OpenAPI document describes them."""

from chalicelib.errors import (
    IdempotencyInFlight,
    IdempotencyMismatch,
    Invalid,
    MalformedRequest,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from chalicelib.openapi.operation import Operation, Parameter, Tag
from chalicelib.openapi.response import Content, Header, Link, Response
from chalicelib.orders.models import PLACED, SEED, OneOrder, OrderCreated, OrderPage
from chalicelib.orders.new_order import NewOrder
from chalicelib.orders.pages import MAX_LIMIT, MAX_OFFSET

TAG = Tag("orders", "Placing and reading orders")
ETAG = Header(
    "ETag",
    "The order's version, quoted",
    {"type": "string", "pattern": '^"[1-9][0-9]*"$'},
    always=True,
)
LOCATION = Header(
    "Location",
    "The order, relative to the request's own URI",
    {"type": "string", "format": "uri-reference"},
    always=True,
)
IDEMPOTENT_REPLAYED = Header(
    "Idempotent-Replayed",
    "An earlier answer is repeated: this key placed the order before",
    {"type": "string", "enum": ["true"]},
)

PLACE_ORDER = Operation(
    path="/orders",
    method="POST",
    operation_id="placeOrder",
    tag=TAG,
    summary="Place an order",
    description="With an `Idempotency-Key` the same order can be sent again and is placed once. "
    "Without a `Content-Type` the body is taken for JSON.",
    parameters=[
        Parameter(
            "Idempotency-Key",
            "header",
            {
                "type": "string",
                "pattern": r'^([!#-~][!-~]{0,254}|"([!#-\[\]-~]|\\["\\]){1,255}")$',
            },
            "1 to 255 visible ASCII characters, bare or as a quoted string. "
            "Kept for at least 24 hours, per tenant and user.",
        )
    ],
    request=Content(NewOrder, SEED),
    responses=[
        Response(
            201,
            "The order",
            headers=[LOCATION, ETAG, IDEMPOTENT_REPLAYED],
            content=Content(OrderCreated, {"message": "Order created successfully", "order": PLACED}),
            links=[Link("order", "getOrder", {"order_id": "$response.body#/order/order_id"})],
        )
    ],
    problems=[
        MalformedRequest(errors=[("items", "appears more than once: send it once")]),
        IdempotencyInFlight(),
        PayloadTooLarge(),
        UnsupportedMediaType(),
        Invalid(errors=[("items[0].quantity", "must be a whole number from 1 to 1,000,000")]),
        IdempotencyMismatch(),
    ],
)
LIST_ORDERS = Operation(
    path="/orders",
    operation_id="listOrders",
    tag=TAG,
    summary="List orders, newest first",
    description="`next_cursor` costs the same on every page; `offset` costs what it skips. "
    "A page of very large orders ends early, at 1.5 MiB: `next_cursor` goes on behind it; with `offset`, "
    "go on by the number of orders received.",
    parameters=[
        Parameter(
            "limit",
            "query",
            {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 50},
            "Orders on a page",
        ),
        Parameter(
            "offset",
            "query",
            {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0},
            "Orders to skip; not together with `cursor`",
        ),
        Parameter(
            "my_orders",
            "query",
            {"type": "boolean", "default": False},
            "Only those that this user placed",
        ),
        Parameter(
            "cursor", "query", {"type": "string"}, "`next_cursor` of the page before, of the same list"
        ),
    ],
    responses=[
        Response(
            200,
            "A page",
            content=Content(OrderPage, {"orders": [PLACED], "limit": 50, "offset": 0, "next_cursor": None}),
            links=[Link("next", "listOrders", {"cursor": "$response.body#/next_cursor"})],
        )
    ],
    problems=[MalformedRequest(errors=[("limit", "must be a whole number from 1 to 100")])],
)
GET_ORDER = Operation(
    path="/orders/{order_id}",
    operation_id="getOrder",
    tag=TAG,
    summary="Read an order",
    description="Another tenant's, an absent and a malformed id are the same 404.",
    parameters=[
        Parameter("order_id", "path", {"type": "string"}, example=PLACED["order_id"]),
        Parameter(
            "If-None-Match",
            "header",
            {"type": "string"},
            "ETags that are known already; a match answers 304",
        ),
    ],
    responses=[
        Response(200, "The order", headers=[ETAG], content=Content(OneOrder, {"order": PLACED})),
        Response(304, "The known version is the newest", headers=[ETAG]),
    ],
    problems=[MalformedRequest(), NotFound()],
)
OPERATIONS = (PLACE_ORDER, LIST_ORDERS, GET_ORDER)
