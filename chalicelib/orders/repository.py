"""One tenant's orders: placing, reading, listing. One round trip each; the replay of a key takes two."""

import hashlib
import re
from datetime import UTC, datetime
from typing import NamedTuple

from uuid_utils import uuid7

from chalicelib.caller import Caller
from chalicelib.database.errors import UNIQUE_VIOLATION, Locked, Refused
from chalicelib.database.statement import Step, Values
from chalicelib.database.tenant_scope import TenantScope
from chalicelib.errors import IdempotencyInFlight, IdempotencyMismatch, NotFound
from chalicelib.orders.members import CONTENT, ITEM, amounts
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
    """An order as it is answered: `json` is the text of the response's member `order`."""

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
        """Place an order. With an idempotency key: once, however often it is asked.

        Raises IdempotencyMismatch when the key placed another order, IdempotencyInFlight while
        the first request with it still runs.
        """
        order_id, created_at = _new_id()
        order = {
            **vars(new),
            "tenant_id": self._caller.tenant_id,
            "order_id": order_id,
            "created_by": self._caller.user_id,
            "status": "pending",
            "version": 1,
            "created_at": created_at,
            "updated_at": created_at,
        }
        for name in _ORDER_AMOUNTS:
            order[name] = str(order[name])
        items = []
        for line_no, item in enumerate(new.items, start=1):
            row = {**vars(item), "order_id": order_id, "line_no": line_no}
            for name in _ITEM_AMOUNTS:
                row[name] = str(row[name])
            items.append(row)
        steps: tuple[Step, ...] = ((INSERT_ORDER, [order]), (INSERT_ITEMS, items))
        content = content_json(order, items)
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
                self._scope.write((INSERT_KEY, [claim]), *steps, repeatable=True)
            except Locked:
                raise IdempotencyInFlight from None
            except Refused as refused:
                if refused.sqlstate != UNIQUE_VIOLATION:
                    raise
                return self._replay(claim)
        return StoredOrder(order_id, 1, order_json(order, content))

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
            # One more than asked: it tells whether there is a next page.
            limit=page.limit + 1,
        )
        return page_json(rows, page, self._caller)

    def _replay(self, claim: Values) -> StoredOrder:
        rows = self._scope.read(ORDER_BY_KEY, **claim)
        if not rows:
            raise IdempotencyInFlight
        (row,) = rows
        if row.fingerprint != claim["fingerprint"]:
            raise IdempotencyMismatch
        return StoredOrder(row.order_id, row.version, row.json, replayed=True)


def _new_id() -> tuple[str, str]:
    """A new UUID version 7 and the moment inside it, as RFC 3339 with six decimals."""
    order_id = uuid7()
    seconds, milliseconds = divmod(order_id.timestamp, 1000)
    moment = datetime.fromtimestamp(seconds, UTC).isoformat()
    return str(order_id), f"{moment[:19]}.{milliseconds:03}000Z"
