"""The floor: raw psycopg2 on this schema, answering the same bytes.

One autocommit connection, one minimal statement string per operation, no validation, no row-level security
(it logs in as bench_peer), neither prepared statements nor pipelining. Each operation builds the JSON in the
faster way: for one order in Python from rows, for a page in PostgreSQL.
"""

import json
import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from json.encoder import encode_basestring as quoted
from typing import Any
from uuid import UUID

import psycopg2
from psycopg2.extensions import UNICODE, new_type, register_type

Json = dict[str, Any]

_TIMESTAMP = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
_ANSWERED = f"""
    o.order_id, o.tenant_id, o.created_by, o.status, o.version, o.customer_name, o.customer_email,
    o.customer_phone, o.shipping_address, o.billing_address, o.total_amount, o.currency,
    array_to_json(array(
        select row_to_json(item) from (
            select line_no, product_name, product_sku, quantity, unit_price from order_items
            where tenant_id = %(tenant_id)s and order_id = o.order_id order by line_no
        ) item
    )) as items,
    to_char(o.created_at at time zone 'UTC', {_TIMESTAMP}) as created_at,
    to_char(o.updated_at at time zone 'UTC', {_TIMESTAMP}) as updated_at
    from orders o"""
INSERT = """insert into orders values (%(tenant_id)s, %(order_id)s, %(created_by)s, 'pending', 1,
    %(customer_name)s, %(customer_email)s, %(customer_phone)s, %(shipping_address)s, %(billing_address)s,
    %(total_amount)s, %(currency)s, %(created_at)s, %(created_at)s);
insert into order_items values """
ITEM = """(%(tenant_id)s, %(order_id)s, %(line_no)s, %(product_name)s, %(product_sku)s, %(quantity)s,
    %(unit_price)s)"""
INSERT_KEY = """insert into idempotency_keys values
    (%(tenant_id)s, %(created_by)s, %(key)s, '', %(order_id)s, %(created_at)s);
"""
ROWS = """select o.*, i.* from orders o, order_items i where o.tenant_id = %(tenant_id)s
    and i.tenant_id = %(tenant_id)s and i.order_id = o.order_id and """
GET = f"{ROWS} o.order_id = %(order_id)s order by i.line_no"
REPLAY = f"""{ROWS} o.order_id = (
        select order_id from idempotency_keys
        where tenant_id = %(tenant_id)s and created_by = %(created_by)s and idempotency_key = %(key)s
    ) order by i.line_no"""
PAGE = f"""select order_id, row_to_json(answered)::text from (select {_ANSWERED}
    where o.tenant_id = %(tenant_id)s order by o.order_id desc limit %(limit)s) answered"""
PAGE_AFTER = f"""select order_id, row_to_json(answered)::text from (select {_ANSWERED}
    where o.tenant_id = %(tenant_id)s and o.order_id < %(after)s
    order by o.order_id desc limit %(limit)s) answered"""

NUMBERS_AND_TIMES = (23, 1700, 1184)
"""Their type ids: their values stay text."""

_connection: Any = None


def handler(event: Json, _context: Any) -> Json:
    claims = event["requestContext"]["authorizer"]["claims"]
    tenant_id, user = claims["custom:tenant_id"], claims["sub"]
    if event["httpMethod"] == "POST":
        return _create(tenant_id, user, json.loads(event["body"]), event["headers"].get("Idempotency-Key"))
    if event["pathParameters"]:
        order_id = event["pathParameters"]["order_id"]
        order = _order(_rows(GET, {"tenant_id": tenant_id, "order_id": order_id}))
        return _answered(200, f'{{"order":{order}}}')
    return _page(tenant_id, event["queryStringParameters"])


def _create(tenant_id: str, user: str, order: Json, key: str | None) -> Json:
    if key and (stored := _rows(REPLAY, {"tenant_id": tenant_id, "created_by": user, "key": key})):
        return _created(_order(stored))
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10)) & ~(0xF << 76) & ~(0x3 << 62)
    order_id = str(UUID(int=milliseconds << 80 | 7 << 76 | noise | 2 << 62))  # RFC 9562, version 7
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    items = [{"line_no": line_no, **item} for line_no, item in enumerate(order["items"], start=1)]
    ids = {"tenant_id": tenant_id, "order_id": order_id, "created_by": user, "created_at": moment, "key": key}
    with _connected().cursor() as cursor:
        lines = b",".join(cursor.mogrify(ITEM, {**ids, **item}) for item in items)
        cursor.execute(cursor.mogrify((INSERT_KEY if key else "") + INSERT, {**ids, **order}) + lines)
    answered = {
        **{
            "order_id": order_id,
            "tenant_id": tenant_id,
            "created_by": user,
            "status": "pending",
            "version": 1,
        },
        **{**order, "items": items},
        **{"created_at": moment, "updated_at": moment},
    }
    return _created(json.dumps(answered, separators=(",", ":")))


def _page(tenant_id: str, query: dict[str, str]) -> Json:
    limit, cursor = int(query["limit"]), query.get("cursor")
    values = {"tenant_id": tenant_id, "limit": limit + 1}
    if cursor:
        rows = _rows(PAGE_AFTER, {**values, "after": urlsafe_b64decode(cursor).decode()})
    else:
        rows = _rows(PAGE, values)
    following = (
        f'"{urlsafe_b64encode(rows[limit - 1][0].encode()).decode()}"' if len(rows) > limit else "null"
    )
    orders = ",".join(text for _, text in rows[:limit])
    offset = "null" if cursor else "0"
    return _answered(
        200, f'{{"orders":[{orders}],"limit":{limit},"offset":{offset},"next_cursor":{following}}}'
    )


def _created(order: str) -> Json:
    return _answered(201, f'{{"message":"Order created successfully","order":{order}}}')


def _answered(status: int, body: str) -> Json:
    return {"statusCode": status, "headers": {"Content-Type": "application/json"}, "body": body}


def _order(rows: list[tuple[Any, ...]]) -> str:
    tenant, order_id, by, status, version, name, email, phone, shipping, billing, amount, currency = rows[0][
        :12
    ]
    created_at, updated_at = map(_timestamp, rows[0][12:14])
    items = ",".join(
        f'{{"line_no":{row[16]},"product_name":{quoted(row[17])},"product_sku":{quoted(row[18])},'
        f'"quantity":{row[19]},"unit_price":{row[20]}}}'
        for row in rows
    )
    return (
        f'{{"order_id":"{order_id}","tenant_id":{quoted(tenant)},"created_by":{quoted(by)},"status":"{status}",'
        f'"version":{version},"customer_name":{quoted(name)},"customer_email":{quoted(email)},'
        f'"customer_phone":{_optional(phone)},"shipping_address":{_optional(shipping)},'
        f'"billing_address":{_optional(billing)},"total_amount":{amount},"currency":"{currency}",'
        f'"items":[{items}],"created_at":"{created_at}","updated_at":"{updated_at}"}}'
    )


def _timestamp(text: str) -> str:
    """PostgreSQL's 2026-11-22 09:00:00.123+00."""
    return f"{text[:10]}T{text[11:19]}.{text[20:-3]:0<6}Z"


def _optional(text: str | None) -> str:
    return "null" if text is None else quoted(text)


def _rows(statement: str, values: Json) -> list[tuple[Any, ...]]:
    with _connected().cursor() as cursor:
        cursor.execute(statement, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


def _connected() -> Any:
    global _connection  # noqa: PLW0603 (one connection a process)
    if _connection is None:
        _connection = psycopg2.connect(os.environ["DATABASE_URL"], options="-c timezone=UTC")
        _connection.autocommit = True
        register_type(new_type(NUMBERS_AND_TIMES, "AS_IT_COMES", UNICODE), _connection)
    return _connection
