"""The JSON text of orders and pages.

The answer to a create is written from the values just stored, without reading them back. It has the same
bytes as PostgreSQL's row_to_json of the stored order (statements.py).
"""

from collections.abc import Callable, Sequence
from json.encoder import encode_basestring as quoted
from uuid import UUID

from chalicelib.caller import Caller
from chalicelib.database.statement import Values
from chalicelib.orders.members import AFTER_CONTENT, BEFORE_CONTENT, CONTENT, ITEM, Kind, Member
from chalicelib.orders.pages import Page, cursor_after
from chalicelib.orders.rows import OrderRow

MAX_PAGE_BYTES = 1536 * 1024
"""Bytes after which a page ends early. Lambda answers 6 MB at most, of which escapes may take two thirds."""

_FORMS: dict[Kind, str] = {
    "text": "%s",
    "code": '"%s"',
    "uuid": '"%s"',
    "timestamp": '"%s"',
    "integer": "%s",
    "amount": "%s",
    "items": "[%s]",
}
"""The format of a member's value in the JSON; a text value is already quoted."""


def _optional(text: str | None) -> str:
    return "null" if text is None else quoted(text)


def _writer(members: Sequence[Member]) -> Callable[[Values], str]:
    """A function that writes the members of its values as `"name":value` pairs, by one template."""
    template = ",".join(f'"{member.name}":{_FORMS[member.kind]}' for member in members)
    texts = {True: _optional, False: quoted}
    values = [
        (member.name, texts[member.is_optional] if member.kind == "text" else None) for member in members
    ]

    def write(row: Values) -> str:
        return template % tuple([as_json(row[name]) if as_json else row[name] for name, as_json in values])

    return write


_before_content, _content, _after_content = map(_writer, (BEFORE_CONTENT, CONTENT, AFTER_CONTENT))
_item = _writer(ITEM)


def content_json(order: Values, items: Sequence[Values]) -> str:
    """The members that the client sent, validated; and fingerprinted for an idempotency key."""
    lines = ",".join(["{" + _item(item) + "}" for item in items])
    return _content({**order, "items": lines})


def order_json(order: Values, content: str) -> str:
    return f"{{{_before_content(order)},{content},{_after_content(order)}}}"


def page_json(rows: Sequence[OrderRow], page: Page, caller: Caller) -> str:
    """A page and the next page's cursor. `rows` has one row more than the limit if there is a next page."""
    shown = _fitting(rows[: page.limit])
    orders = ",".join([row.json for row in shown])
    offset = "null" if page.offset is None else page.offset
    cursor = "null"
    if len(rows) > len(shown):
        cursor = f'"{cursor_after(UUID(shown[-1].order_id), caller, page.my_orders)}"'
    return f'{{"orders":[{orders}],"limit":{page.limit},"offset":{offset},"next_cursor":{cursor}}}'


def _fitting(rows: Sequence[OrderRow]) -> Sequence[OrderRow]:
    """As many rows as fit into MAX_PAGE_BYTES, and at least one."""
    if 4 * sum([len(row.json) for row in rows]) <= MAX_PAGE_BYTES:  # a character has at most 4 bytes
        return rows
    size = 0
    for shown, row in enumerate(rows):
        size += len(row.json.encode())
        if shown and size > MAX_PAGE_BYTES:
            return rows[:shown]
    return rows
