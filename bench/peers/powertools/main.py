"""The order API as Powertools for AWS Lambda documents it: the REST resolver with validation, on psycopg2."""

import hashlib
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import psycopg2
from aws_lambda_powertools.event_handler import APIGatewayRestResolver, Response, content_types
from aws_lambda_powertools.event_handler.exceptions import BadRequestError, NotFoundError, ServiceError
from aws_lambda_powertools.event_handler.openapi.params import Header, Query
from aws_lambda_powertools.utilities.typing import LambdaContext
from models import NewOrder, Page, Placed, Single
from psycopg2.errors import UniqueViolation
from psycopg2.extras import RealDictCursor, execute_values, register_uuid
from uuid_utils.compat import uuid7

Row = dict[str, Any]

app = APIGatewayRestResolver(enable_validation=True)
register_uuid()
_connection: Any = None


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return app.resolve(event, context)


@app.post("/orders")
def place_order(
    new: NewOrder,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> Response[Placed]:
    tenant_id, user_id = caller()
    fingerprint = hashlib.sha256(new.model_dump_json().encode()).hexdigest()
    order_id, now = uuid7(), datetime.now(UTC)
    order = {
        **new.model_dump(exclude={"items"}),
        "tenant_id": tenant_id,
        "order_id": order_id,
        "created_by": user_id,
        "status": "pending",
        "version": 1,
        "created_at": now,
        "updated_at": now,
    }
    items = [
        {"tenant_id": tenant_id, "order_id": order_id, "line_no": number, **item.model_dump()}
        for number, item in enumerate(new.items, 1)
    ]
    key = {
        "tenant_id": tenant_id,
        "created_by": user_id,
        "idempotency_key": idempotency_key,
        "fingerprint": fingerprint,
        "order_id": order_id,
        "created_at": now,
    }
    with connection() as transaction, transaction.cursor() as cursor:
        if idempotency_key:
            if stored := order_placed_with(cursor, key):
                return created(stored, {"Idempotent-Replayed": "true"})
            try:
                cursor.execute(INSERT_KEY, key)
            except UniqueViolation:
                raise ServiceError(409, "A request with this Idempotency-Key is still running") from None
        cursor.execute(INSERT_ORDER, order)
        execute_values(cursor, INSERT_ITEMS, items, ITEM)
    return created({**order, "items": items}, {})


@app.get("/orders/<order_id>")
def get_order(order_id: UUID) -> Single:
    tenant_id, _ = caller()
    with connection() as transaction, transaction.cursor() as cursor:
        order = order_by_id(cursor, tenant_id, order_id)
    if order is None:
        raise NotFoundError("There is no such order")
    return {"order": order}


@app.get("/orders")
def list_orders(
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0)] = 0,
    cursor: Annotated[str | None, Query()] = None,
    my_orders: Annotated[bool, Query()] = False,
) -> Page:
    tenant_id, user_id = caller()
    condition = "tenant_id = %(tenant_id)s"
    if my_orders:
        condition += " and created_by = %(user_id)s"
    if cursor:
        condition += " and order_id < %(after)s"
    values = {
        "tenant_id": tenant_id,
        "user_id": user_id,
        "after": place_in(cursor) if cursor else None,
        "offset": 0 if cursor else offset,
        # One more than asked: it tells whether there is a next page.
        "limit": limit + 1,
    }
    with connection() as transaction, transaction.cursor() as rows:
        rows.execute(SELECT_PAGE.format(condition=condition), values)
        found = rows.fetchall()
        orders = with_items(rows, tenant_id, found[:limit])
    return {
        "orders": orders,
        "limit": limit,
        "offset": None if cursor else offset,
        "next_cursor": cursor_after(orders[-1]) if len(found) > limit else None,
    }


def caller() -> tuple[str, str]:
    """The tenant and the user of the claims that API Gateway verified."""
    claims = app.current_event.request_context.authorizer.claims
    if not claims.get("custom:tenant_id"):
        raise ServiceError(403, "Missing tenant_id in claims")
    return claims["custom:tenant_id"], claims["sub"]


def connection() -> Any:
    """The one connection of this execution environment, kept between invocations."""
    global _connection  # noqa: PLW0603
    if _connection is None or _connection.closed:
        _connection = psycopg2.connect(
            os.environ["DATABASE_URL"], cursor_factory=RealDictCursor, options="-c timezone=utc"
        )
    return _connection


def created(order: Row, headers: dict[str, str]) -> Response[Placed]:
    return Response(201, content_types.APPLICATION_JSON, {"order": order}, headers)


def order_by_id(cursor: Any, tenant_id: str, order_id: UUID) -> Row | None:
    cursor.execute(SELECT_ORDER, {"tenant_id": tenant_id, "order_id": order_id})
    found = cursor.fetchall()
    return with_items(cursor, tenant_id, found)[0] if found else None


def order_placed_with(cursor: Any, key: Row) -> Row | None:
    cursor.execute(SELECT_KEY, key)
    used = cursor.fetchone()
    if used is None:
        return None
    if used["fingerprint"] != key["fingerprint"]:
        raise ServiceError(422, "This Idempotency-Key belongs to another order")
    return order_by_id(cursor, key["tenant_id"], used["order_id"])


def with_items(cursor: Any, tenant_id: str, orders: list[Row]) -> list[Row]:
    """The orders with their items, which one query reads for all of them."""
    ids = [order["order_id"] for order in orders]
    cursor.execute(SELECT_ITEMS, {"tenant_id": tenant_id, "order_ids": ids})
    items = defaultdict(list)
    for item in cursor:
        items[item["order_id"]].append(item)
    return [{**order, "items": items[order["order_id"]]} for order in orders]


def cursor_after(order: Row) -> str:
    return urlsafe_b64encode(order["order_id"].bytes).decode()


def place_in(cursor: str) -> UUID:
    try:
        return UUID(bytes=urlsafe_b64decode(cursor))
    except ValueError:
        raise BadRequestError("cursor must be the next_cursor of a page") from None


INSERT_KEY = """
    insert into idempotency_keys (tenant_id, created_by, idempotency_key, fingerprint, order_id, created_at)
    values (%(tenant_id)s, %(created_by)s, %(idempotency_key)s, %(fingerprint)s, %(order_id)s, %(created_at)s)
"""
INSERT_ORDER = """
    insert into orders (
        tenant_id, order_id, created_by, status, version, customer_name, customer_email, customer_phone,
        shipping_address, billing_address, total_amount, currency, created_at, updated_at
    ) values (
        %(tenant_id)s, %(order_id)s, %(created_by)s, %(status)s, %(version)s, %(customer_name)s,
        %(customer_email)s, %(customer_phone)s, %(shipping_address)s, %(billing_address)s, %(total_amount)s,
        %(currency)s, %(created_at)s, %(updated_at)s
    )
"""
INSERT_ITEMS = """
    insert into order_items (tenant_id, order_id, line_no, product_name, product_sku, quantity, unit_price)
    values %s
"""
ITEM = """(
    %(tenant_id)s, %(order_id)s, %(line_no)s, %(product_name)s, %(product_sku)s, %(quantity)s, %(unit_price)s
)"""
SELECT_KEY = """
    select fingerprint, order_id from idempotency_keys
    where tenant_id = %(tenant_id)s and created_by = %(created_by)s and idempotency_key = %(idempotency_key)s
"""
SELECT_ORDER = "select * from orders where tenant_id = %(tenant_id)s and order_id = %(order_id)s"
SELECT_PAGE = """
    select * from orders where {condition} order by order_id desc limit %(limit)s offset %(offset)s
"""
SELECT_ITEMS = """
    select * from order_items
    where tenant_id = %(tenant_id)s and order_id = any(%(order_ids)s) order by order_id, line_no
"""
