"""Which page of the list a request asks for, and the cursor to the next page."""

import base64
import binascii
import hashlib
from typing import NamedTuple
from uuid import UUID

from chalicelib.caller import Caller
from chalicelib.http.query import Query, single_values, wrong_parameter

MAX_LIMIT = 100
MAX_OFFSET = 2**63 - 1


class Page(NamedTuple):
    """One page of the caller's orders, newest first. With a cursor `offset` is None."""

    limit: int = 50
    offset: int | None = 0
    my_orders: bool = False
    after: UUID | None = None

    @property
    def start(self) -> str:
        """Where the page begins: `newest`, `cursor` or `offset`."""
        return "cursor" if self.after else "offset" if self.offset else "newest"

    @classmethod
    def from_query(cls, query: Query, caller: Caller) -> "Page":
        """Read limit, offset, my_orders and cursor. Raises MalformedRequest naming the wrong one."""
        value = single_values(query, allowed=("limit", "offset", "my_orders", "cursor"))
        limit = _integer("limit", value.get("limit", "50"), 1, MAX_LIMIT)
        my_orders = _boolean("my_orders", value.get("my_orders", "false"))
        if "cursor" not in value:
            return cls(limit, _integer("offset", value.get("offset", "0"), 0, MAX_OFFSET), my_orders)
        if "offset" in value:
            raise wrong_parameter("offset", "cannot be used together with cursor: leave one out")
        return cls(limit, None, my_orders, after=_last_order_id(value["cursor"], caller, my_orders))


def cursor_after(order_id: UUID, caller: Caller, my_orders: bool) -> str:
    """The cursor of the page that follows this order, valid for this list of this caller only."""
    checksum = _checksum(order_id.bytes, caller, my_orders)
    return base64.urlsafe_b64encode(order_id.bytes + checksum).decode()


def _last_order_id(cursor: str, caller: Caller, my_orders: bool) -> UUID:
    """The id of the last order on the page before. Raises MalformedRequest for a cursor of another list."""
    try:
        decoded = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    order_id, checksum = decoded[:16], decoded[16:]
    if len(decoded) != 24 or checksum != _checksum(order_id, caller, my_orders):
        raise wrong_parameter("cursor", "must be the next_cursor of this same list, unchanged")
    return UUID(bytes=order_id)


def _checksum(order_id: bytes, caller: Caller, my_orders: bool) -> bytes:
    """Ties a cursor to its list. Not a secret: a forged cursor reads the caller's own orders only."""
    list_name = f"{caller.tenant_id}\0{caller.user_id if my_orders else ''}"
    return hashlib.blake2b(order_id + list_name.encode(), digest_size=8, person=b"cursor").digest()


def _integer(name: str, text: str, minimum: int, maximum: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and minimum <= int(text) <= maximum):
        raise wrong_parameter(name, f"must be a whole number from {minimum} to {maximum}")
    return int(text)


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise wrong_parameter(name, "must be true or false")
    return text == "true"
