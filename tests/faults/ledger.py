"""What was asked, what was promised, and whether the promises were kept."""

import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.client import Answer

RESTING = """
    select o.tenant_id, o.order_id::text, o.customer_name,
           coalesce(array_agg(i.quantity order by i.line_no) filter (where i.line_no is not null), '{}')
      from orders o left join order_items i on (i.tenant_id, i.order_id) = (o.tenant_id, o.order_id)
     group by o.tenant_id, o.order_id
"""
"""Every order, as the superuser sees it: what row-level security hides is there too."""
Resting = Iterable[tuple[str, str, str, list[int]]]


@dataclass(eq=False)
class Wanted:
    """One order that a customer wants once, however often it has to be asked for."""

    tenant: str
    user: str
    name: str
    """Its customer_name, which no other order has: `<tenant>/<number>`."""
    key: str | None
    quantities: list[int]
    """Of its items, in their order."""
    acknowledged: set[str] = field(default_factory=set)
    """The ids in the 201s: one, if all is well."""

    @property
    def body(self) -> bytes:
        items = [
            {"product_name": "Widget", "product_sku": f"W-{n}", "quantity": quantity, "unit_price": 49.99}
            for n, quantity in enumerate(self.quantities)
        ]
        order = {"customer_name": self.name, "customer_email": "a@shop.example", "total_amount": 99.99}
        return json.dumps({**order, "items": items}).encode()

    def is_answered_by(self, order: Any) -> bool:
        """Whether an answer shows this order, whole."""
        items = [item["quantity"] for item in order["items"]]
        return bool(order["customer_name"] == self.name and items == self.quantities)


@dataclass(frozen=True)
class Verdict:
    """Zeros, or a promise was broken."""

    lost: int = 0
    """Orders with a 201 that are not there, not to be read, or without all their items; and torn ones."""
    doubled: int = 0
    """Orders more than were wanted."""
    crossed: int = 0
    """Answers with another tenant's rows, and rows in another tenant's place."""


class Ledger:
    """Written by many threads."""

    def __init__(self) -> None:
        self.requests = 0
        self.answers: Counter[int | str] = Counter()
        """By status; what came instead of an answer by its kind."""
        self.unexpected: list[str] = []
        """Answers that no client should ever hear, such as a 500."""
        self.slowest = 0.0
        """Seconds that a request took at most."""
        self.wanted: dict[str, Wanted] = {}
        """By name."""
        self._lock = threading.Lock()
        self._crossed = 0
        self._unread: set[str] = set()
        """Acknowledged orders that were not found, or not whole, when they were asked for."""

    def want(self, wanted: Wanted) -> None:
        with self._lock:
            self.wanted[wanted.name] = wanted

    def sent(self, outcome: int | str, seconds: float) -> None:
        """A request, and its status or what came instead."""
        with self._lock:
            self.requests += 1
            self.answers[outcome] += 1
            self.slowest = max(self.slowest, seconds)

    def never_expected(self, answer: Answer) -> None:
        with self._lock:
            self.unexpected.append(f"{answer.status} {answer.body[:300]!r}")

    def acknowledge(self, wanted: Wanted, order: Any) -> None:
        """A 201, and the order in it."""
        with self._lock:
            wanted.acknowledged.add(order["order_id"])
            if not wanted.is_answered_by(order):
                self._unread.add(order["order_id"])

    def read(self, wanted: Wanted, order_id: str, answer: Answer) -> None:
        """The answer to a customer who asks for an order that was acknowledged to them."""
        if answer.status == 404 or (answer.status == 200 and not wanted.is_answered_by(answer.json["order"])):
            with self._lock:
                self._unread.add(order_id)

    def seen(self, tenant: str, orders: Iterable[Any]) -> None:
        """Orders in an answer to that tenant, which must be its own."""
        foreign = [
            order
            for order in orders
            if order["tenant_id"] != tenant or not order["customer_name"].startswith(f"{tenant}/")
        ]
        if foreign:
            with self._lock:
                self._crossed += 1

    def acknowledged(self) -> int:
        with self._lock:
            return sum(len(wanted.acknowledged) for wanted in self.wanted.values())

    def unfinished(self) -> int:
        """Orders with a key that were never acknowledged: their customers would still be asking."""
        with self._lock:
            return sum(1 for each in self.wanted.values() if each.key and not each.acknowledged)

    def verdict(self, resting: Resting) -> Verdict:
        """What was promised, held against what rests in the database."""
        there: dict[str, tuple[str, str, list[int]]] = {}
        orders: Counter[str] = Counter()
        misplaced = 0
        torn = set()
        for tenant, order_id, name, quantities in resting:
            there[order_id] = tenant, name, quantities
            orders[name] += 1
            wanted = self.wanted.get(name)
            misplaced += wanted is None or wanted.tenant != tenant
            if wanted is not None and wanted.quantities != quantities:
                torn.add(order_id)
        lost = torn | self._unread
        for wanted in self.wanted.values():
            lost |= {order_id for order_id in wanted.acknowledged if order_id not in there}
        return Verdict(
            lost=len(lost),
            doubled=sum(times - 1 for times in orders.values()),
            crossed=self._crossed + misplaced,
        )
