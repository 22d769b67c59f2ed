"""Shared by tests of refused requests: writes invalid orders and checks the problem responses."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from tools.client import Answer, item, seed

CheckRefusal = Callable[..., None]

MIB = 1024 * 1024
PRIVATE_ADDRESS = "12 Never-Repeated-Street"
STATUS = {
    "malformed-request": 400,
    "unauthorized": 401,
    "missing-tenant": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "payload-too-large": 413,
    "unsupported-media-type": 415,
    "validation": 422,
}
TEXT_FIELDS = ("customer_name", "customer_email", "customer_phone", "shipping_address", "billing_address")
ITEM_TEXT_FIELDS = ("product_name", "product_sku")


def order_body(item_: Mapping[str, str] | None = None, /, **members: str) -> bytes:
    """The seed order with the JSON text of some members replaced; `item_` does so in its item."""

    def text(values: Mapping[str, Any], texts: Mapping[str, str]) -> str:
        texts_by_name = {**{name: json.dumps(value) for name, value in values.items()}, **texts}
        return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in texts_by_name.items()) + "}"

    items = f"[{text(item(), item_ or {})}]"
    return text(seed(shipping_address=PRIVATE_ADDRESS), {"items": items, **members}).encode()


def short_id(value: Any) -> str:
    return ascii(value)[:40]


def assert_unavailable(answer: Answer) -> None:
    """A 503 problem with Retry-After."""
    assert (answer.status, answer.slug) == (503, "unavailable")
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
