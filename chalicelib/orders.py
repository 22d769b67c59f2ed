"""One tenant's orders: placing, reading, listing. Every method is one round trip."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from json.encoder import encode_basestring as quoted
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    select,
)
from sqlmodel import col
from uuid_utils.compat import uuid7

from chalicelib.callers import Caller
from chalicelib.database import UNIQUE_VIOLATION, Locked, Refused, Row, Statement, TenantScope, Values
from chalicelib.errors import IdempotencyInFlight, IdempotencyMismatch, NotFound
from chalicelib.messages import NewOrder
from chalicelib.pages import Page, cursor_after
from chalicelib.tables import IdempotencyKey, Order, OrderItem

_ORDER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class StoredOrder:
    """An order as it is answered: `json` is the text of the response's member `order`."""

    order_id: str
    version: int
    json: str
    replayed: bool = False


class OrderRepository:
    """One tenant's orders; nobody else's can be reached from here."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._scope = TenantScope(caller.tenant_id)

    def add(self, new: NewOrder, key: str | None = None) -> StoredOrder:
        """Place an order. With an idempotency key: once, however often it is asked.

        Raises IdempotencyMismatch when the key placed another order, IdempotencyInFlight while
        the first request with it still runs.
        """
        order_id, created_at = _new_id()
        order = {
            **new.model_dump(exclude={"items"}),
            "order_id": order_id,
            "created_by": self._caller.user_id,
            "status": "pending",
            "version": 1,
            "created_at": created_at,
            "updated_at": created_at,
        }
        items = [
            {**item.model_dump(), "order_id": order_id, "line_no": line_no}
            for line_no, item in enumerate(new.items, start=1)
        ]
        steps: list[tuple[Statement, Values | Sequence[Values]]] = [
            (INSERT_ORDER, order),
            (INSERT_ITEMS, items),
        ]
        content = _content_json(order, items)
        if key is None:
            self._scope.write(*steps)
        else:
            claim = {
                "created_by": self._caller.user_id,
                "idempotency_key": key,
                "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
                "order_id": order_id,
                "created_at": created_at,
            }
            try:
                self._scope.write((INSERT_KEY, claim), *steps, repeatable=True)
            except Locked:
                raise IdempotencyInFlight from None
            except Refused as refused:
                if refused.sqlstate != UNIQUE_VIOLATION:
                    raise
                return self._replay(claim)
        return StoredOrder(order_id, 1, _order_json(order, self._caller.tenant_id, content))

    def get(self, order_id: str) -> StoredOrder:
        """The order. Raises NotFound: absent, malformed and another tenant's look the same."""
        rows = self._scope.read(ORDER_BY_ID, order_id=order_id) if _ORDER_ID.fullmatch(order_id) else []
        if not rows:
            raise NotFound("There is no such order.")
        return StoredOrder(*rows[0])

    def page(self, page: Page) -> str:
        """The JSON text of a page, newest first."""
        rows = self._scope.read(
            _orders_page(page.my_orders, page.after is not None),
            created_by=self._caller.user_id,
            after=page.after and str(page.after),
            offset=page.offset or 0,
            # One more than asked: it tells whether there is a next page.
            limit=page.limit + 1,
        )
        return _page_json(rows, page, self._caller)

    def _replay(self, claim: Values) -> StoredOrder:
        rows = self._scope.read(ORDER_BY_KEY, **claim)
        if not rows:
            raise IdempotencyInFlight
        fingerprint, order_id, version, json = rows[0]
        if fingerprint != claim["fingerprint"]:
            raise IdempotencyMismatch
        return StoredOrder(order_id, version, json, replayed=True)


# Statements: the tenant is named on every table, so that each one stays on one shard, and JSON is
# built inside, so that no row becomes a Python object.


def _order_by_id() -> Select[Any]:
    order = select(Order).where(_OWN_ORDERS, col(Order.order_id) == bindparam("order_id"))
    return _as_answered(order.subquery())


def _order_by_key() -> Select[Any]:
    """The order that an idempotency key placed, behind the key's fingerprint."""
    key = select(IdempotencyKey).where(
        col(IdempotencyKey.tenant_id) == bindparam("tenant_id"),
        col(IdempotencyKey.created_by) == bindparam("created_by"),
        col(IdempotencyKey.idempotency_key) == bindparam("idempotency_key"),
    )
    order_id = key.with_only_columns(col(IdempotencyKey.order_id)).scalar_subquery()
    fingerprint = key.with_only_columns(col(IdempotencyKey.fingerprint)).scalar_subquery()
    order = select(Order).where(_OWN_ORDERS, col(Order.order_id) == order_id).subquery()
    return _as_answered(order, fingerprint)


@cache
def _orders_page(my_orders: bool, after_cursor: bool) -> Statement:
    """A page of orders. It is cut before items are looked up: skipped rows cost no items."""

    def page() -> Select[Any]:
        rows = select(Order).where(_OWN_ORDERS)
        if my_orders:
            rows = rows.where(col(Order.created_by) == bindparam("created_by"))
        if after_cursor:
            rows = rows.where(col(Order.order_id) < bindparam("after"))
        newest_first = rows.order_by(col(Order.order_id).desc())
        return _as_answered(newest_first.limit(bindparam("limit")).offset(bindparam("offset")).subquery())

    return Statement(page)


def _as_answered(orders: Subquery, *before: ColumnElement[Any]) -> Select[Any]:
    """Columns order_id, version and the order's JSON text, newest first."""
    order = orders.c
    item = (
        select(
            col(OrderItem.line_no),
            col(OrderItem.product_name),
            col(OrderItem.product_sku),
            col(OrderItem.quantity),
            col(OrderItem.unit_price),
        )
        .where(col(OrderItem.tenant_id) == bindparam("tenant_id"), col(OrderItem.order_id) == order.order_id)
        .order_by(col(OrderItem.line_no))
        .correlate(orders)
        .subquery("item")
    )
    items = select(func.row_to_json(item.table_valued())).correlate(orders).scalar_subquery()
    answered = select(
        order.order_id,
        order.tenant_id,
        order.created_by,
        order.status,
        order.version,
        order.customer_name,
        order.customer_email,
        order.customer_phone,
        order.shipping_address,
        order.billing_address,
        order.total_amount,
        order.currency,
        func.array_to_json(func.array(items)).label("items"),
        _utc(order.created_at).label("created_at"),
        _utc(order.updated_at).label("updated_at"),
    ).subquery("answered")
    text = cast(func.row_to_json(answered.table_valued()), Text)
    return select(*before, answered.c.order_id, answered.c.version, text).order_by(answered.c.order_id.desc())


def _utc(moment: ColumnElement[Any]) -> ColumnElement[str]:
    in_utc = func.timezone(literal_column("'UTC'"), moment)
    return func.to_char(in_utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""))


_OWN_ORDERS = col(Order.tenant_id) == bindparam("tenant_id")
INSERT_KEY = Statement(lambda: insert(IdempotencyKey))
INSERT_ORDER = Statement(lambda: insert(Order))
INSERT_ITEMS = Statement(lambda: insert(OrderItem))
ORDER_BY_ID = Statement(_order_by_id)
ORDER_BY_KEY = Statement(_order_by_key)


# The answer to a create is written here, from the values just stored, and not read back: the same
# bytes as PostgreSQL's row_to_json makes of them.


def _new_id() -> tuple[str, str]:
    """A new UUID version 7 and the moment inside it, as RFC 3339 with six decimals."""
    order_id = uuid7()
    seconds, milliseconds = divmod(order_id.int >> 80, 1000)
    moment = datetime.fromtimestamp(seconds, UTC)
    return str(order_id), f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds:03}000Z"


def _content_json(order: Values, items: Sequence[Values]) -> str:
    """The members that the client sent, validated: what an idempotency key is good for."""
    lines = ",".join(
        f'{{"line_no":{item["line_no"]},"product_name":{quoted(item["product_name"])},'
        f'"product_sku":{quoted(item["product_sku"])},"quantity":{item["quantity"]},'
        f'"unit_price":{item["unit_price"]}}}'
        for item in items
    )
    return (
        f'"customer_name":{quoted(order["customer_name"])},"customer_email":{quoted(order["customer_email"])},'
        f'"customer_phone":{_optional(order["customer_phone"])},'
        f'"shipping_address":{_optional(order["shipping_address"])},'
        f'"billing_address":{_optional(order["billing_address"])},'
        f'"total_amount":{order["total_amount"]},"currency":"{order["currency"]}","items":[{lines}]'
    )


def _order_json(order: Values, tenant_id: str, content: str) -> str:
    return (
        f'{{"order_id":"{order["order_id"]}","tenant_id":{quoted(tenant_id)},'
        f'"created_by":{quoted(order["created_by"])},"status":"{order["status"]}","version":{order["version"]},'
        f'{content},"created_at":"{order["created_at"]}","updated_at":"{order["updated_at"]}"}}'
    )


def _optional(text: str | None) -> str:
    return "null" if text is None else quoted(text)


def _page_json(rows: Sequence[Row], page: Page, caller: Caller) -> str:
    orders = ",".join(json for _, _, json in rows[: page.limit])
    offset = "null" if page.offset is None else page.offset
    cursor = "null"
    if len(rows) > page.limit:
        last = UUID(rows[page.limit - 1][0])
        cursor = f'"{cursor_after(last, caller, page.my_orders)}"'
    return f'{{"orders":[{orders}],"limit":{page.limit},"offset":{offset},"next_cursor":{cursor}}}'
