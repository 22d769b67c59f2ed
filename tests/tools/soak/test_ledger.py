"""The reckoning can fail: each kind of broken promise shows in its own column."""

from collections.abc import Callable, Iterable
from typing import Any
from uuid import uuid4

import pytest

from tools.client import Answer
from tools.soak.ledger import Ledger, Order, RequestedOrder, Verdict


class Scenario:
    """A ledger, and the rows of a database in which every order is what was requested."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.orders: list[Order] = []

    def place(self, name: str = "acme/1", *, user: str = "alice", acknowledged: bool = True) -> Order:
        """As it rests."""
        requested = RequestedOrder(name.partition("/")[0], user, name, "key", [1, 2])
        order = shown(requested)
        self.ledger.add(requested)
        self.orders.append(order)
        if acknowledged:
            self.ledger.acknowledge(requested, shown(requested, order_id=order["order_id"]))
        return order

    def verdict(self) -> Verdict:
        return self.ledger.verdict((order,) for order in self.orders)


def shown(requested: RequestedOrder, **changes: Any) -> Order:
    """As an answer shows it, or a row."""
    order = requested.order
    items = [{"line_no": n, **each} for n, each in enumerate(order["items"], start=1)]
    owner = {"order_id": str(uuid4()), "tenant_id": requested.tenant, "created_by": requested.user}
    return {**order, **owner, "status": "pending", "items": items, **changes}


def changed_item(order: Order, **changes: Any) -> Order:
    """The same order, but for its first item."""
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


def gone(scenario: Scenario) -> None:
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


def not_found_by_its_customer(scenario: Scenario) -> None:
    order = scenario.place()
    scenario.ledger.read(scenario.ledger.requested["acme/1"], order["order_id"], Answer(404, {}, b""))


def placed_twice(scenario: Scenario) -> None:
    scenario.place()
    scenario.orders.append({**scenario.orders[0], "order_id": str(uuid4())})


def shown_to_another(scenario: Scenario) -> None:
    scenario.ledger.seen("borealis", [scenario.place()])


def shown_under_another_name(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "customer_name": "borealis/1"}])


def listed_though_nobody_wanted_it(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "customer_name": "acme/7"}])


def listed_as_a_colleagues(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "created_by": "bob"}])


def a_colleagues_among_my_orders(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [scenario.place(user="bob")], user="alice")


def listed_with_anothers_items(scenario: Scenario) -> None:
    scenario.ledger.seen("acme", [{**scenario.place(), "items": scenario.place("borealis/1")["items"]}])


def listed_with_an_item_twice(scenario: Scenario) -> None:
    order = scenario.place()
    scenario.ledger.seen("acme", [{**order, "items": [*order["items"], order["items"][0]]}])


def resting_with_another(scenario: Scenario) -> None:
    scenario.place()["tenant_id"] = "borealis"


def resting_with_anothers_items(scenario: Scenario) -> None:
    scenario.place()["items"] = scenario.place("borealis/1")["items"][:1]


def wanted_by_nobody(scenario: Scenario) -> None:
    scenario.orders.append(shown(RequestedOrder("acme", "alice", "acme/7", None, [])))


@pytest.mark.parametrize(
    ("breaks", "verdict"),
    [
        (gone, Verdict(lost=1)),
        (without_an_item, Verdict(lost=1)),
        (acknowledged_without_an_item, Verdict(lost=1)),
        (listed_without_an_item, Verdict(lost=1)),
        (not_found_by_its_customer, Verdict(lost=1)),
        (placed_twice, Verdict(doubled=1)),
        (shown_to_another, Verdict(crossed=1)),
        (shown_under_another_name, Verdict(crossed=1)),
        (listed_though_nobody_wanted_it, Verdict(crossed=1)),
        (listed_as_a_colleagues, Verdict(crossed=1)),
        (a_colleagues_among_my_orders, Verdict(crossed=1)),
        (listed_with_anothers_items, Verdict(crossed=1)),
        (listed_with_an_item_twice, Verdict(crossed=1)),
        (resting_with_another, Verdict(crossed=1)),
        (resting_with_anothers_items, Verdict(crossed=1)),
        (wanted_by_nobody, Verdict(crossed=1)),
    ],
)
def test_broken_promise_shows_in_its_column(
    scenario: Scenario, breaks: Callable[[Scenario], None], verdict: Verdict
) -> None:
    breaks(scenario)

    assert scenario.verdict() == verdict


def swapped(order: Order, other: Order) -> Iterable[Order]:
    """The order, with one thing after the other as it stands in the other one."""
    for name in other:
        if name not in ("order_id", "status", "currency", "items", "tenant_id", "created_by"):
            yield {**order, name: other[name]}
    for name in ("product_name", "product_sku", "unit_price", "quantity"):
        yield changed_item(order, **{name: other["items"][1][name]})


def test_every_swapped_field_counts_as_crossed(scenario: Scenario) -> None:
    order, other = scenario.place("acme/1"), scenario.place("acme/2")
    each = list(swapped(order, other))
    for number, shows in enumerate(each, start=1):
        scenario.ledger.seen("acme", [shows])
        assert scenario.verdict().crossed == number, shows

    assert len(each) == 6 + 4
