"""What leaves: the JSON text of orders and pages.

The answer to a create is written here from the values just stored, and not read back. It has the
same bytes as what PostgreSQL's row_to_json makes of them later (statements.py).
"""

from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from uuid import UUID

from chalicelib.caller import Caller
from chalicelib.database.statement import Row, Values
from chalicelib.orders.pages import Page, cursor_after

LARGEST_PAGE = 1536 * 1024
"""Bytes after which a page ends early. Lambda answers 6 MB at most, of which escapes may take two thirds."""


def content_json(order: Values, items: Sequence[Values]) -> str:
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


def order_json(order: Values, tenant_id: str, content: str) -> str:
    return (
        f'{{"order_id":"{order["order_id"]}","tenant_id":{quoted(tenant_id)},'
        f'"created_by":{quoted(order["created_by"])},"status":"{order["status"]}","version":{order["version"]},'
        f'{content},"created_at":"{order["created_at"]}","updated_at":"{order["updated_at"]}"}}'
    )


def page_json(rows: Sequence[Row], page: Page, caller: Caller) -> str:
    """A page and the cursor behind it. `rows` has one more than the limit where there is a next page."""
    shown = _fitting(rows[: page.limit])
    orders = ",".join(json for _, _, json in shown)
    offset = "null" if page.offset is None else page.offset
    cursor = "null"
    if len(rows) > len(shown):
        cursor = f'"{cursor_after(UUID(shown[-1][0]), caller, page.my_orders)}"'
    return f'{{"orders":[{orders}],"limit":{page.limit},"offset":{offset},"next_cursor":{cursor}}}'


def _fitting(rows: Sequence[Row]) -> Sequence[Row]:
    """As many as LARGEST_PAGE holds, and at least one."""
    size = 0
    for shown, (_, _, json) in enumerate(rows):
        size += len(json.encode())
        if shown and size > LARGEST_PAGE:
            return rows[:shown]
    return rows


def _optional(text: str | None) -> str:
    return "null" if text is None else quoted(text)
