"""The SQL of the repository, as expressions over the tables.

The tenant is named on every table, so that each statement stays on one shard; JSON is built inside,
so that no row becomes a Python object. A build ships the text that they compile to in place of this
module (deploy/sources.py), and needs neither SQLModel nor SQLAlchemy to run.
"""

from typing import Any

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    FromClause,
    Insert,
    Select,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlmodel import col

from chalicelib.database.statement import Statement
from chalicelib.orders.pages import MAX_LIMIT
from chalicelib.orders.tables import IdempotencyKey, Order, OrderItem


def _insert_order() -> Insert:
    """A new order: pending, in its first version, never changed."""
    return insert(Order).values(
        {
            **{name: bindparam(name) for name in Order.model_fields},
            "status": literal_column("'pending'"),
            "version": literal_column("1"),
            "updated_at": bindparam("created_at"),
        }
    )


def _order_by_id() -> Select[Any]:
    return _as_text(_answered(_ORDERS).where(_OWN_ORDERS, col(Order.order_id) == bindparam("order_id")))


def _order_by_key() -> Select[Any]:
    """The order that an idempotency key placed, behind the key's fingerprint."""
    key = select(IdempotencyKey).where(
        col(IdempotencyKey.tenant_id) == bindparam("tenant_id"),
        col(IdempotencyKey.created_by) == bindparam("created_by"),
        col(IdempotencyKey.idempotency_key) == bindparam("idempotency_key"),
    )
    order_id = key.with_only_columns(col(IdempotencyKey.order_id)).scalar_subquery()
    fingerprint = key.with_only_columns(col(IdempotencyKey.fingerprint)).scalar_subquery()
    return _as_text(_answered(_ORDERS).where(_OWN_ORDERS, col(Order.order_id) == order_id), fingerprint)


def _orders_page(my_orders: bool, start: str) -> Select[Any]:
    """A page of orders. What an offset skips is cut off before items are looked up, and costs none."""
    asked = [_OWN_ORDERS]
    if my_orders:
        asked.append(col(Order.created_by) == bindparam("created_by"))
    if start == "cursor":
        asked.append(col(Order.order_id) < bindparam("after"))
    if start == "offset":
        skipped = select(Order).where(*asked).order_by(_NEWEST_FIRST).offset(bindparam("offset"))
        return _as_text(_answered(skipped.limit(bindparam("limit")).subquery()))
    return _as_text(_answered(_ORDERS).where(*asked).order_by(_NEWEST_FIRST).limit(bindparam("limit")))


def _prepared_page(start: str) -> Select[Any]:
    """A page whose planner does not know the limit: the constant tells it that few rows are wanted."""
    asked = [_OWN_ORDERS] if start == "newest" else [_OWN_ORDERS, col(Order.order_id) < bindparam("after")]
    few = select(Order).where(*asked).order_by(_NEWEST_FIRST).limit(literal_column(str(MOST_ROWS))).subquery()
    return _as_text(_answered(few).order_by(few.c.order_id.desc()).limit(bindparam("limit")))


def _answered(orders: FromClause) -> Select[Any]:
    """The members of each order, as they are answered."""
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
    return select(
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
    )


def _as_text(orders: Select[Any], *before: ColumnElement[Any]) -> Select[Any]:
    """Columns order_id, version and the order's JSON text, newest first."""
    answered = orders.subquery("answered")
    text = cast(func.row_to_json(answered.table_valued()), Text)
    return select(*before, answered.c.order_id, answered.c.version, text).order_by(answered.c.order_id.desc())


def _utc(moment: ColumnElement[Any]) -> ColumnElement[str]:
    in_utc = func.timezone(literal_column("'UTC'"), moment)
    return func.to_char(in_utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""))


def _text(expression: ClauseElement) -> str:
    return str(expression.compile(dialect=_DIALECT))


def _statement(expression: ClauseElement) -> Statement:
    text = _text(expression)
    return Statement(text, text)


def _page(my_orders: bool, start: str) -> Statement:
    text = _text(_orders_page(my_orders, start))
    # No one plan is right for every offset, nor for a user with few and one with many of the tenant's orders.
    if my_orders or start == "offset":
        return Statement(text, None)
    return Statement(text, _text(_prepared_page(start)))


_DIALECT = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
_ORDERS: FromClause = Order.__table__  # type: ignore[attr-defined]
_OWN_ORDERS = col(Order.tenant_id) == bindparam("tenant_id")
_NEWEST_FIRST = col(Order.order_id).desc()
MOST_ROWS = MAX_LIMIT + 1
"""The largest page, and the row behind it that tells of a next page."""
INSERT_KEY = _statement(insert(IdempotencyKey))
INSERT_ORDER = _statement(_insert_order())
INSERT_ITEMS = _statement(insert(OrderItem))
ORDER_BY_ID = _statement(_order_by_id())
ORDER_BY_KEY = _statement(_order_by_key())
ORDERS_PAGES = {
    (my_orders, start): _page(my_orders, start)
    for my_orders in (False, True)
    for start in ("newest", "cursor", "offset")
}
"""By whether they are the caller's own only, and by where they start."""
