"""The JSON text of orders and pages.

The answer to a create is written from the values just stored, without reading them back. It has the same
bytes as PostgreSQL's row_to_json of the stored order (statements.py).
"""

from collections.abc import Sequence
from json.encoder import encode_basestring as quoted
from typing import Protocol
from uuid import UUID

from chalicelib.caller import Caller
from chalicelib.database.statement import Values
from chalicelib.orders.members import AFTER_CONTENT, BEFORE_CONTENT, CONTENT, ITEM, Kind, Member
from chalicelib.orders.pages import Page, cursor_after
from chalicelib.orders.rows import OrderRow

LARGEST_PAGE = 1536 * 1024
"""Bytes after which a page ends early. Lambda answers 6 MB at most, of which escapes may take two thirds."""

_FORMS: dict[Kind, str] = {
    "text": "{quoted(values['NAME'])}",
    "code": "\"{values['NAME']}\"",
    "uuid": "\"{values['NAME']}\"",
    "moment": "\"{values['NAME']}\"",
    "integer": "{values['NAME']}",
    "amount": "{values['NAME']}",
    "items": "[{items}]",
}
"""How a member's value is written, inside an f-string."""


class Write(Protocol):
    """Writes members as `"name":value` pairs; `items` is the text of the order's lines."""

    def __call__(self, values: Values, items: str = "") -> str: ...


def _optional(text: str | None) -> str:
    return "null" if text is None else quoted(text)


def _writer(members: Sequence[Member]) -> Write:
    """One f-string, compiled: two to three times as fast as a loop over the members."""
    pairs = ",".join(f'"{member.name}":{_form(member)}' for member in members)
    source = f"lambda values, items='': f'''{pairs}'''"
    write: Write = eval(source, {"quoted": quoted, "optional": _optional})  # noqa: S307 (of members.py alone)
    return write


def _form(member: Member) -> str:
    form = _FORMS[member.kind].replace("NAME", member.name)
    return form.replace("quoted(", "optional(") if member.is_optional else form


_before_content, _content, _after_content = map(_writer, (BEFORE_CONTENT, CONTENT, AFTER_CONTENT))
_item = _writer(ITEM)


def content_json(order: Values, items: Sequence[Values]) -> str:
    """The members that the client sent, validated: an idempotency key's fingerprint is made of them."""
    lines = ",".join(["{" + _item(item) + "}" for item in items])
    return _content(order, lines)


def order_json(order: Values, content: str) -> str:
    return f"{{{_before_content(order)},{content},{_after_content(order)}}}"


def page_json(rows: Sequence[OrderRow], page: Page, caller: Caller) -> str:
    """A page and the cursor behind it. `rows` has one more than the limit where there is a next page."""
    shown = _fitting(rows[: page.limit])
    orders = ",".join([row.json for row in shown])
    offset = "null" if page.offset is None else page.offset
    cursor = "null"
    if len(rows) > len(shown):
        cursor = f'"{cursor_after(UUID(shown[-1].order_id), caller, page.my_orders)}"'
    return f'{{"orders":[{orders}],"limit":{page.limit},"offset":{offset},"next_cursor":{cursor}}}'


def _fitting(rows: Sequence[OrderRow]) -> Sequence[OrderRow]:
    """As many rows as fit into LARGEST_PAGE, and at least one."""
    size = 0
    for shown, row in enumerate(rows):
        size += len(row.json.encode())
        if shown and size > LARGEST_PAGE:
            return rows[:shown]
    return rows
