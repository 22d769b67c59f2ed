"""One tenant's orders: placing, reading, listing. One round trip each; the replay of a key takes two."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from uuid_utils import uuid7

from chalicelib.caller import Caller
from chalicelib.database.errors import UNIQUE_VIOLATION, Locked, Refused
from chalicelib.database.statement import Step, Values
from chalicelib.database.tenant_scope import TenantScope
from chalicelib.errors import IdempotencyInFlight, IdempotencyMismatch, NotFound
from chalicelib.orders import fingerprint
from chalicelib.orders.members import CONTENT, INITIAL, ITEM, amounts
from chalicelib.orders.new_order import NewOrder
from chalicelib.orders.order_json import content_json, order_json, page_json
from chalicelib.orders.pages import Page
from chalicelib.orders.statements import (
    INSERT_ITEMS,
    INSERT_KEY,
    INSERT_ORDER,
    ORDER_BY_ID,
    ORDER_BY_KEY,
    ORDERS_PAGES,
)

_ORDER_AMOUNTS, _ITEM_AMOUNTS = amounts(CONTENT), amounts(ITEM)
_ORDER_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class StoredOrder(NamedTuple):
    """An order for a response: `json` is the text of the response's member `order`."""

    order_id: str
    version: int
    json: str
    replayed: bool = False


class OrderRepository:
    """One tenant's orders; other tenants' cannot be reached from here."""

    def __init__(self, caller: Caller, scope: TenantScope) -> None:
        """`scope` must be that of the verified caller's tenant."""
        if scope.tenant_id != caller.tenant_id:
            raise ValueError("the scope is not that of the caller's tenant")
        self._caller = caller
        self._scope = scope

    def add(self, new: NewOrder, key: str | None = None) -> StoredOrder:
        """Place an order. Repeated with the same idempotency key, the order is stored once.

        Raises IdempotencyMismatch when the key placed another order, IdempotencyInFlight while
        the first request with it still runs.
        """
        order = _order_row(new, self._caller)
        items = _item_rows(new, order["order_id"])
        content = content_json(order, items)
        inserts: list[Step] = [(INSERT_ORDER, [order]), (INSERT_ITEMS, items)]
        if key is None:
            self._scope.write(*inserts)
        else:
            key_row = _key_row(key, order, content)
            if not self._write_with_key(key_row, inserts):
                return self._replay(key_row, new, content)
        return StoredOrder(order["order_id"], order["version"], order_json(order, content))

    def get(self, order_id: str) -> StoredOrder:
        """The order. Raises NotFound: absent, malformed and another tenant's look the same."""
        rows = self._scope.read(ORDER_BY_ID, order_id=order_id) if _ORDER_ID.fullmatch(order_id) else []
        if not rows:
            raise NotFound("There is no such order.")
        (row,) = rows
        return StoredOrder(row.order_id, row.version, row.json)

    def page(self, page: Page) -> str:
        """The JSON text of a page, newest first."""
        rows = self._scope.read(
            ORDERS_PAGES[page.my_orders, page.start],
            created_by=self._caller.user_id,
            after=page.after and str(page.after),
            offset=page.offset,
            # One row more than the limit: if it exists, there is a next page.
            limit=page.limit + 1,
        )
        return page_json(rows, page, self._caller)

    def _write_with_key(self, key_row: Values, inserts: Sequence[Step]) -> bool:
        """Insert the key and the order in one transaction; False when the key exists already."""
        try:
            self._scope.write((INSERT_KEY, [key_row]), *inserts, repeatable=True)
        except Locked:
            raise IdempotencyInFlight from None
        except Refused as refused:
            if refused.sqlstate != UNIQUE_VIOLATION:
                raise
            return False
        return True

    def _replay(self, key_row: Values, new: NewOrder, content: str) -> StoredOrder:
        """The order that the key placed before."""
        rows = self._scope.read(ORDER_BY_KEY, **key_row)
        if not rows:
            raise IdempotencyInFlight
        (row,) = rows
        if not fingerprint.matches(row.fingerprint, new, content):
            raise IdempotencyMismatch
        return StoredOrder(row.order_id, row.version, row.json, replayed=True)


def _order_row(new: NewOrder, caller: Caller) -> dict[str, Any]:
    order_id, created_at = _new_id()
    row = {
        **vars(new),
        "tenant_id": caller.tenant_id,
        "order_id": order_id,
        "created_by": caller.user_id,
        **INITIAL,
        "created_at": created_at,
        "updated_at": created_at,
    }
    for name in _ORDER_AMOUNTS:
        row[name] = str(row[name])
    return row


def _item_rows(new: NewOrder, order_id: str) -> list[Values]:
    rows: list[Values] = []
    for line_no, item in enumerate(new.items, start=1):
        row = {**vars(item), "order_id": order_id, "line_no": line_no}
        for name in _ITEM_AMOUNTS:
            row[name] = str(row[name])
        rows.append(row)
    return rows


def _key_row(key: str, order: Values, content: str) -> Values:
    """The row that reserves an idempotency key for this order."""
    return {
        "created_by": order["created_by"],
        "idempotency_key": key,
        "fingerprint": fingerprint.of_answer(content),
        "order_id": order["order_id"],
        "created_at": order["created_at"],
    }


def _new_id() -> tuple[str, str]:
    """A new UUID version 7 and its timestamp, as RFC 3339 with six decimals."""
    order_id = uuid7()
    seconds, milliseconds = divmod(order_id.timestamp, 1000)
    timestamp = datetime.fromtimestamp(seconds, UTC).isoformat()
    return str(order_id), f"{timestamp[:19]}.{milliseconds:03}000Z"
