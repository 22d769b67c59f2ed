"""Release 1.0.0, as migrations and deployments meet it: its schema, and the SQL that it sends."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2

from chalicelib.database.statement import Statement
from tools.postgres_server import connected

FOLDER = Path(__file__).parent
CREATE, REPLAY, GET, PAGE, ROLE_CHECK = (
    (FOLDER / f"{name}.sql").read_text() for name in ("create", "replay", "get", "page", "role_check")
)
PREPARED_GET, PREPARED_PAGE = Statement(GET, GET), Statement(PAGE, PAGE)
SET_TENANT = "select set_tenant(%(tenant_id)s);\n"
ORDER = {
    "created_by": "alice",
    "customer_name": "John Doe",
    "customer_email": "john@example.com",
    "customer_phone": None,
    "shipping_address": None,
    "billing_address": None,
    "total_amount": "99.98",
    "currency": "USD",
    "line_no": 1,
    "product_name": "Widget",
    "product_sku": "WDG-001",
    "quantity": 2,
    "unit_price": "49.99",
    "created_at": "2026-11-22T09:00:00.123000Z",
    "fingerprint": "0" * 64,
}


def apply_release_1(owner_url: str) -> None:
    """Release 1.0.0's schema.sql, on an empty database."""
    with connected(owner_url) as connection:
        connection.cursor().execute((FOLDER / "schema.sql").read_text())


class Release1:
    """One connection of a process of release 1.0.0: its role is checked, and it prepares its reads."""

    def __init__(self, url: str, tenant: str) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._tenant = tenant
        self._connection.cursor().execute(PREPARED_GET.prepare + PREPARED_PAGE.prepare + ROLE_CHECK.encode())

    def place(self, key: str) -> str:
        """The id of a new order."""
        order_id = str(uuid4())
        self._send(CREATE, **ORDER, order_id=order_id, idempotency_key=key)
        return order_id

    def replay(self, key: str) -> str:
        """The id of the order that the key placed."""
        rows = self._send(REPLAY, created_by=ORDER["created_by"], idempotency_key=key)
        return str(rows[0][1])

    def get(self, order_id: str) -> str:
        """The order's JSON."""
        rows = self._send(SET_TENANT + PREPARED_GET.execute, order_id=order_id)
        return str(rows[0][2])

    def page(self) -> int:
        """The number of orders on the first page of 50."""
        return len(self._send(SET_TENANT + PREPARED_PAGE.execute, limit=51))

    def close(self) -> None:
        self._connection.close()

    def _send(self, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, {**values, "tenant_id": self._tenant})
            return cursor.fetchall() if cursor.description else []
