"""The rows of the statements about orders."""

from typing import NamedTuple


class OrderRow(NamedTuple):
    """An order; `json` is its JSON text."""

    order_id: str
    version: int
    json: str


class KeyedOrderRow(NamedTuple):
    """The order that an idempotency key placed, with the fingerprint of the key's request."""

    fingerprint: str
    order_id: str
    version: int
    json: str
