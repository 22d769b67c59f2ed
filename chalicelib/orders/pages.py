"""Which part of a list is asked for, and where the next part begins."""

import base64
import binascii
import hashlib
from dataclasses import dataclass
from uuid import UUID

from chalicelib.caller import Caller
from chalicelib.http.query import Query, single_values, wrong_parameter

LARGEST_LIMIT = 100
_LARGEST_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the caller's orders, newest first. `offset` is None when a cursor leads."""

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
        limit = _whole("limit", value.get("limit", "50"), 1, LARGEST_LIMIT)
        mine = _boolean("my_orders", value.get("my_orders", "false"))
        if "cursor" not in value:
            return cls(limit, _whole("offset", value.get("offset", "0"), 0, _LARGEST_OFFSET), mine)
        if "offset" in value:
            raise wrong_parameter("offset", "cannot be used together with cursor: leave one out")
        return cls(limit, None, mine, after=_place_in(value["cursor"], caller, mine))


def cursor_after(order_id: UUID, caller: Caller, my_orders: bool) -> str:
    """The cursor of the page behind this order; good for this caller's list only."""
    return base64.urlsafe_b64encode(order_id.bytes + _seal(order_id.bytes, caller, my_orders)).decode()


def _place_in(cursor: str, caller: Caller, my_orders: bool) -> UUID:
    try:
        raw = base64.b64decode(cursor, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    place, seal = raw[:16], raw[16:]
    if len(raw) != 24 or seal != _seal(place, caller, my_orders):
        raise wrong_parameter("cursor", "must be the next_cursor of this same list, unchanged")
    return UUID(bytes=place)


def _seal(place: bytes, caller: Caller, my_orders: bool) -> bytes:
    """Ties a cursor to its list. No secret: a forged one still reads the caller's own orders only."""
    list_name = f"{caller.tenant_id}\0{caller.user_id if my_orders else ''}"
    return hashlib.blake2b(place + list_name.encode(), digest_size=8, person=b"cursor").digest()


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):
        raise wrong_parameter(name, f"must be a whole number from {least} to {most}")
    return int(text)


def _boolean(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise wrong_parameter(name, "must be true or false")
    return text == "true"
