"""The soak ledger: each kind of broken promise is counted in its own column."""

from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import pytest

from tools.client import Answer
from tools.soak.ledger import Ledger, Order, RequestedOrder, Verdict


class Scenario:
    """A ledger, and database rows that match every requested order."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.orders: list[Order] = []

    def place(self, name: str = "acme/1", *, user: str = "alice", acknowledged: bool = True) -> Order:
        """Requests an order and stores it; returns the stored row."""
        requested = RequestedOrder(name.partition("/")[0], user, name, "key", [1, 2])
        order = as_stored(requested)
        self.ledger.add(requested)
        self.orders.append(order)
        if acknowledged:
            self.ledger.acknowledge(requested, as_stored(requested, order_id=order["order_id"]))
        return order

    def verdict(self) -> Verdict:
        return self.ledger.verdict((order,) for order in self.orders)


def as_stored(requested: RequestedOrder, **changes: Any) -> Order:
    """A requested order as an answer or a row shows it, with these changes."""
    order = requested.order
    items = [{"line_no": n, **item} for n, item in enumerate(order["items"], start=1)]
    owner = {"order_id": str(uuid4()), "tenant_id": requested.tenant, "created_by": requested.user}
    return {**order, **owner, "status": "pending", "items": items, **changes}


def with_changed_item(order: Order, **changes: Any) -> Order:
    """The order with these changes to its first item."""
    first, *others = order["items"]
    return {**order, "items": [{**first, **changes}, *others]}


@pytest.fixture
def scenario() -> Scenario:
    return Scenario()


def test_intact_orders_give_a_clean_verdict(scenario: Scenario) -> None:
    one = scenario.place("acme/1")
    other = scenario.place("acme/2", user="bob", acknowledged=False)
    scenario.ledger.seen("acme", [one, other])
    scenario.ledger.seen("acme", [one], user="alice")

    assert scenario.verdict() == Verdict(lost=0, doubled=0, crossed=0)


def lost(scenario: Scenario) -> None:
    scenario.place()
    scenario.orders.clear()


def without_an_item(scenario: Scenario) -> None:
    scenario.place(acknowledged=False)["items"].pop()


def acknowledged_without_an_item(scenario: Scenario) -> None:
    order = scenario.place(acknowledged=False)
    scenario.ledger.acknowledge(scenario.ledger.requested["acme/1"], {**order, "items": order["items"][:1]})


def listed_without_an_item(scenario: Scenario) -> None:
    order = scenario.place()
    scenario.ledger.seen("acme", [{**order, "items": order["items"][:1]}])


def not_found_by_customer(scenario: Scenario) -> None:
    order = scenario.place()
    scenario.ledger.read(scenario.ledger.requested["acme/1"], order["order_id"], Answer(404, {}, b""))


def placed_twice(scenario: Scenario) -> None:
    scenario.place()
    scenario.orders.append({**scenario.orders[0], "order_id": str(uuid4())})


def listed_for_another_tenant(scenario: Scenario) -> None:
    scenario.ledger.seen("borealis", [scenario.place()])


def listed_with_another_name(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "customer_name": "borealis/1"}])


def listed_but_never_requested(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "customer_name": "acme/7"}])


def listed_with_another_user(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "created_by": "bob"}])


def listed_in_my_orders_of_another_user(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [scenario.place(user="bob")], user="alice")


def listed_with_anothers_items(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "items": scenario.place("borealis/1")["items"]}])


def listed_with_an_item_twice(scenario: Scenario) -> None:
    order = scenario.place()
    scenario.ledger.seen("acme", [{**order, "items": [*order["items"], order["items"][0]]}])


def stored_for_another_tenant(scenario: Scenario) -> None:
    scenario.place()["tenant_id"] = "borealis"


def stored_with_anothers_items(scenario: Scenario) -> None:
    scenario.place()["items"] = scenario.place("borealis/1")["items"][:1]


def stored_but_never_requested(scenario: Scenario) -> None:
    scenario.orders.append(as_stored(RequestedOrder("acme", "alice", "acme/7", None, [])))


@pytest.mark.parametrize(
    ("break_promise", "verdict"),
    [
        (lost, Verdict(lost=1)),
        (without_an_item, Verdict(lost=1)),
        (acknowledged_without_an_item, Verdict(lost=1)),
        (listed_without_an_item, Verdict(lost=1)),
        (not_found_by_customer, Verdict(lost=1)),
        (placed_twice, Verdict(doubled=1)),
        (listed_for_another_tenant, Verdict(crossed=1)),
        (listed_with_another_name, Verdict(crossed=1)),
        (listed_but_never_requested, Verdict(crossed=1)),
        (listed_with_another_user, Verdict(crossed=1)),
        (listed_in_my_orders_of_another_user, Verdict(crossed=1)),
        (listed_with_anothers_items, Verdict(crossed=1)),
        (listed_with_an_item_twice, Verdict(crossed=1)),
        (stored_for_another_tenant, Verdict(crossed=1)),
        (stored_with_anothers_items, Verdict(crossed=1)),
        (stored_but_never_requested, Verdict(crossed=1)),
    ],
)
def test_broken_promise_shows_in_its_column(
    scenario: Scenario, break_promise: Callable[[Scenario], None], verdict: Verdict
) -> None:
    break_promise(scenario)

    assert scenario.verdict() == verdict


def with_swapped_fields(order: Order, other: Order) -> Iterable[Order]:
    """Copies of the order, each with one field of the other order."""
    for name in other:
        if name not in ("order_id", "status", "currency", "items", "tenant_id", "created_by"):
            yield {**order, name: other[name]}
    for name in ("product_name", "product_sku", "unit_price", "quantity"):
        yield with_changed_item(order, **{name: other["items"][1][name]})


def test_every_swapped_field_counts_as_crossed(scenario: Scenario) -> None:
    order, other = scenario.place("acme/1"), scenario.place("acme/2")
    variants = list(with_swapped_fields(order, other))
    for number, variant in enumerate(variants, start=1):
        scenario.ledger.seen("acme", [variant])
        assert scenario.verdict().crossed == number, variant

    assert len(variants) == 6 + 4


def test_stale_read_of_a_stored_order_can_be_allowed(scenario: Scenario) -> None:
    not_found_by_customer(scenario)
    stored = [(order,) for order in scenario.orders]
    assert scenario.ledger.verdict(stored, reads_may_be_stale=True) == Verdict()
