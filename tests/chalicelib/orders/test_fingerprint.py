"""Retries across a deployment: both forms of an Idempotency-Key's fingerprint are recognized."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from chalicelib.orders import fingerprint
from chalicelib.orders.new_order import NewItem, NewOrder
from tools.client import SEED_BYTES, Client, item, seed

OF_RELEASE_1 = "f7eafb7b42832b7876fa1aa73e1f2f50bc604c08a4473bb30a24ed348bacc542"
"""What release 1.0.0 stored for test_order.json."""
OF_THE_NEXT_RELEASE = "ge5f64846b7316f238befb4538554903df0ca4b6251c68003062529e22b8590b"
STORE = "update idempotency_keys set fingerprint = %s where tenant_id = %s returning 1"
Rows = Callable[..., list[tuple[Any, ...]]]


def of(**changes: Any) -> str:
    return fingerprint.of_request(NewOrder.from_json(json.dumps(seed(**changes)).encode()))


def test_fingerprint_is_one_that_release_1_accepts(alice: Client, tenant: str, rows: Rows) -> None:
    alice.place(key="k")

    stored = rows("select fingerprint from idempotency_keys where tenant_id = %s", tenant)
    assert stored == [(OF_RELEASE_1,)]


@pytest.mark.parametrize("stored", [OF_RELEASE_1, OF_THE_NEXT_RELEASE])
def test_key_of_another_release_is_replayed(alice: Client, tenant: str, rows: Rows, stored: str) -> None:
    placed = alice.place(key="k")
    rows(STORE, stored, tenant)

    replayed, different = alice.place(key="k"), alice.place(seed(total_amount=1), key="k")

    assert (replayed.status, replayed.body) == (201, placed.body)
    assert replayed.headers["idempotent-replayed"] == "true"
    assert (different.status, different.slug) == (422, "idempotency-mismatch")


@pytest.mark.parametrize(
    "changes",
    [
        {"customer_name": "Jane Doe"},
        {"customer_phone": None},
        {"billing_address": "123 Main St."},
        {"total_amount": 99.98},
        {"currency": "EUR"},
        {"items": [item(), item()]},
        {"items": [item(product_name="Widget 2")]},
        {"items": [item(quantity=3)]},
        {"items": [item(unit_price=49.98)]},
        {"items": [item(product_name="Widget,quantity:2")]},
    ],
)
def test_each_member_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert of(**changes) != of()


def test_equal_requests_have_equal_fingerprints() -> None:
    """Defaults, nulls, spaces around text and zeros after amounts change nothing."""
    written = SEED_BYTES.replace(b"99.99", b"99.990").replace(b'"John Doe"', b'" John Doe "')
    defaults = {name: value for name, value in seed().items() if name not in ("customer_phone", "currency")}

    assert fingerprint.of_request(NewOrder.from_json(written)) == of()
    assert fingerprint.of_request(NewOrder.from_json(json.dumps(defaults).encode())) == of(
        customer_phone=None
    )


def test_new_members_leave_fingerprints_as_they_are() -> None:
    class NewerItem(NewItem):
        discount: int = 0
        note: str | None = None

    class NewerOrder(NewOrder):
        items: list[NewerItem]  # type: ignore[assignment]
        priority: int = 0
        note: str | None = None

    newer = NewerOrder.from_json(SEED_BYTES)
    assert fingerprint.of_request(newer) == OF_THE_NEXT_RELEASE
    assert (
        fingerprint.of_request(NewerOrder.from_json(json.dumps(seed(priority=1)).encode()))
        != OF_THE_NEXT_RELEASE
    )
