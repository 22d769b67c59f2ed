"""The repository's SQL, as expressions over the tables.

Every table is filtered by tenant, so that each statement stays on one shard. PostgreSQL builds the JSON, so
that no row becomes a Python object. A build contains the compiled SQL text in place of this module
(deploy/sources.py), and needs neither SQLModel nor SQLAlchemy to run.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlmodel import SQLModel

from chalicelib.database.statement import Insert, RowType, Statement
from chalicelib.orders.members import INITIAL, ITEM, ORDER, Member
from chalicelib.orders.pages import MAX_LIMIT
from chalicelib.orders.rows import KeyedOrderRow, OrderRow
from chalicelib.orders.tables import IdempotencyKey, Order, OrderItem


def _insert(table: Table, constants: Mapping[str, str] | None = None) -> Insert:
    """An INSERT of all columns. `constants`: SQL for columns that take no value of their own name."""
    values = {column.name: _text(bindparam(column.name, type_=column.type)) for column in table.columns}
    row = ", ".join({**values, **(constants or {})}.values())
    head = f"INSERT INTO {table.name} ({', '.join(values)}) VALUES "  # noqa: S608 (names of tables.py alone)
    return Insert(head, f"({row})")


def _literals(values: Mapping[str, Any]) -> dict[str, str]:
    as_literals = {"literal_binds": True}
    return {
        name: str(literal(value).compile(dialect=_DIALECT, compile_kwargs=as_literals))
        for name, value in values.items()
    }


def _order_by_id() -> Select[Any]:
    return _as_text(_members(_ORDERS).where(_OWN_ORDERS, _ORDERS.c.order_id == bindparam("order_id")))


def _order_by_key() -> Select[Any]:
    """The key's fingerprint, then the order that the key placed."""
    key = select(_KEYS).where(
        _KEYS.c.tenant_id == bindparam("tenant_id"),
        _KEYS.c.created_by == bindparam("created_by"),
        _KEYS.c.idempotency_key == bindparam("idempotency_key"),
    )
    order_id = key.with_only_columns(_KEYS.c.order_id).scalar_subquery()
    fingerprint = key.with_only_columns(_KEYS.c.fingerprint).scalar_subquery()
    return _as_text(_members(_ORDERS).where(_OWN_ORDERS, _ORDERS.c.order_id == order_id), fingerprint)


def _orders_page(my_orders: bool, start: str) -> Select[Any]:
    """A page of orders. The offset is applied before items are looked up: skipped orders cost no lookup."""
    conditions = [_OWN_ORDERS]
    if my_orders:
        conditions.append(_ORDERS.c.created_by == bindparam("created_by"))
    if start == "cursor":
        conditions.append(_ORDERS.c.order_id < bindparam("after"))
    if start == "offset":
        skipped = select(_ORDERS).where(*conditions).order_by(_NEWEST_FIRST).offset(bindparam("offset"))
        return _as_text(_members(skipped.limit(bindparam("limit")).subquery()))
    return _as_text(_members(_ORDERS).where(*conditions).order_by(_NEWEST_FIRST).limit(bindparam("limit")))


def _prepared_page(start: str) -> Select[Any]:
    """A page for a prepared plan, which does not know the limit: the constant makes it expect few rows."""
    conditions = [_OWN_ORDERS]
    if start == "cursor":
        conditions.append(_ORDERS.c.order_id < bindparam("after"))
    few_rows: ColumnElement[int] = literal_column(str(MAX_ROWS))
    page = select(_ORDERS).where(*conditions).order_by(_NEWEST_FIRST).limit(few_rows).subquery()
    return _as_text(_members(page).order_by(page.c.order_id.desc()).limit(bindparam("limit")))


def _members(orders: FromClause) -> Select[Any]:
    """The members of each order's JSON."""
    item = (
        select(*[_ITEMS.c[member.name] for member in ITEM])
        .where(_ITEMS.c.tenant_id == bindparam("tenant_id"), _ITEMS.c.order_id == orders.c.order_id)
        .order_by(_ITEMS.c.line_no)
        .correlate(orders)
        .subquery("item")
    )
    items = select(func.row_to_json(item.table_valued())).correlate(orders).scalar_subquery()
    return select(*[_member(member, orders, items) for member in ORDER])


def _member(member: Member, orders: FromClause, items: ColumnElement[Any]) -> ColumnElement[Any]:
    if member.kind == "items":
        return func.array_to_json(func.array(items)).label(member.name)
    column = orders.c[member.name]
    return _utc(column).label(member.name) if member.kind == "timestamp" else column


def _as_text(orders: Select[Any], *before: ColumnElement[Any]) -> Select[Any]:
    """Columns order_id, version and the order's JSON text, newest first."""
    answered = orders.subquery("answered")
    text = cast(func.row_to_json(answered.table_valued()), Text)
    return select(*before, answered.c.order_id, answered.c.version, text).order_by(answered.c.order_id.desc())


def _utc(timestamp: ColumnElement[Any]) -> ColumnElement[str]:
    in_utc = func.timezone(literal_column("'UTC'"), timestamp)
    return func.to_char(in_utc, literal_column("""'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""))


def _text(expression: ClauseElement) -> str:
    return str(expression.compile(dialect=_DIALECT))


def _statement(expression: ClauseElement, row: type[RowType]) -> Statement[RowType]:
    text = _text(expression)
    return Statement(text, text, row)


def _page(my_orders: bool, start: str) -> Statement[OrderRow]:
    text = _text(_orders_page(my_orders, start))
    # No one plan is right for every offset, nor for a user with few and one with many of the tenant's orders.
    if my_orders or start == "offset":
        return Statement(text, None, OrderRow)
    return Statement(text, _text(_prepared_page(start)), OrderRow)


_DIALECT = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
_ORDERS, _ITEMS, _KEYS = (
    SQLModel.metadata.tables[str(table.__tablename__)] for table in (Order, OrderItem, IdempotencyKey)
)
_OWN_ORDERS = _ORDERS.c.tenant_id == bindparam("tenant_id")
_NEWEST_FIRST = _ORDERS.c.order_id.desc()
MAX_ROWS = MAX_LIMIT + 1
"""The largest page, and one row more, which shows that there is a next page."""
INSERT_KEY = _insert(_KEYS)
INSERT_ORDER = _insert(_ORDERS, {**_literals(INITIAL), "updated_at": "%(created_at)s"})
INSERT_ITEMS = _insert(_ITEMS)
ORDER_BY_ID = _statement(_order_by_id(), OrderRow)
ORDER_BY_KEY = _statement(_order_by_key(), KeyedOrderRow)
ORDERS_PAGES = {
    (my_orders, start): _page(my_orders, start)
    for my_orders in (False, True)
    for start in ("newest", "cursor", "offset")
}
"""By (only the caller's own orders?, start of the page)."""
