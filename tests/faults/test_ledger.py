"""The reckoning can fail: each kind of broken promise shows in its own column."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from tests.client import Answer
from tests.faults.ledger import Ledger, Verdict, Wanted

Resting = list[tuple[str, str, str, list[int]]]


class Shop:
    """A ledger, and the rows of a database in which every order is what was wanted."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.rows: Resting = []

    def place(self, name: str = "acme/1", *, acknowledged: bool = True) -> str:
        wanted = Wanted(name.partition("/")[0], "alice", name, "key", [1, 2])
        order_id = str(uuid4())
        self.ledger.want(wanted)
        self.rows.append((wanted.tenant, order_id, name, [1, 2]))
        if acknowledged:
            self.ledger.acknowledge(wanted, order(order_id, name))
        return order_id

    def verdict(self) -> Verdict:
        return self.ledger.verdict(self.rows)


def order(order_id: str = "", name: str = "acme/1", tenant: str = "acme", items: int = 2) -> dict[str, Any]:
    lines = [{"quantity": n + 1} for n in range(items)]
    return {"order_id": order_id, "tenant_id": tenant, "customer_name": name, "items": lines}


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_what_is_there_as_promised_is_clean(shop: Shop) -> None:
    shop.place("acme/1")
    shop.place("acme/2", acknowledged=False)
    shop.ledger.seen("acme", [order()])

    assert shop.verdict() == Verdict(lost=0, doubled=0, crossed=0)


def gone(shop: Shop) -> None:
    shop.place()
    shop.rows.clear()


def without_an_item(shop: Shop) -> None:
    shop.place(acknowledged=False)
    shop.rows[0][3].pop()


def acknowledged_without_an_item(shop: Shop) -> None:
    wanted = Wanted("acme", "alice", "acme/1", None, [1, 2])
    shop.ledger.want(wanted)
    shop.ledger.acknowledge(wanted, order("id", items=1))
    shop.rows.append(("acme", "id", "acme/1", [1, 2]))


def not_found_by_its_customer(shop: Shop) -> None:
    order_id = shop.place()
    shop.ledger.read(shop.ledger.wanted["acme/1"], order_id, Answer(404, {}, b""))


def placed_twice(shop: Shop) -> None:
    shop.place()
    shop.rows.append(("acme", str(uuid4()), "acme/1", [1, 2]))


def shown_to_another(shop: Shop) -> None:
    shop.ledger.seen("borealis", [order()])


def shown_under_another_name(shop: Shop) -> None:
    shop.ledger.seen("acme", [order(name="borealis/1")])


def resting_with_another(shop: Shop) -> None:
    order_id = shop.place()
    shop.rows[0] = ("borealis", order_id, "acme/1", [1, 2])


def wanted_by_nobody(shop: Shop) -> None:
    shop.rows.append(("acme", str(uuid4()), "acme/7", []))


@pytest.mark.parametrize(
    ("breaks", "verdict"),
    [
        (gone, Verdict(lost=1)),
        (without_an_item, Verdict(lost=1)),
        (acknowledged_without_an_item, Verdict(lost=1)),
        (not_found_by_its_customer, Verdict(lost=1)),
        (placed_twice, Verdict(doubled=1)),
        (shown_to_another, Verdict(crossed=1)),
        (shown_under_another_name, Verdict(crossed=1)),
        (resting_with_another, Verdict(crossed=1)),
        (wanted_by_nobody, Verdict(crossed=1)),
    ],
)
def test_a_broken_promise_counts(shop: Shop, breaks: Callable[[Shop], None], verdict: Verdict) -> None:
    breaks(shop)

    assert shop.verdict() == verdict
