"""Records what was requested and acknowledged, and checks it against the database."""

import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from zlib import crc32

from tools.client import SEED_BYTES, Answer

STORED_ORDERS = """
    select to_jsonb(o) || jsonb_build_object('items', coalesce(
               (select jsonb_agg(to_jsonb(i) - 'tenant_id' - 'order_id' order by i.line_no)
                  from order_items i where (i.tenant_id, i.order_id) = (o.tenant_id, o.order_id)), '[]'))
      from orders o
"""
"""Every order, as the superuser sees it: what row-level security hides is there too."""
Order = dict[str, Any]
StoredOrders = Iterable[tuple[Order]]
SEED: Order = json.loads(SEED_BYTES)
TIMED_OUT, NO_ANSWER = "timed out", "no answer"
"""Outcomes without an answer: the client's timeout, or a closed connection."""


class Flaw(Enum):
    """What is wrong with an order that is shown."""

    NOT_WHOLE = "items are missing"
    FOREIGN = "something in it is not of this order"


@dataclass(eq=False)
class RequestedOrder:
    """One order that a customer wants once, however often it has to be asked for."""

    tenant: str
    user: str
    name: str
    """Its customer_name, which no other order has: `<tenant>/<number>`. Every value but the quantities
    comes from it, so that each of them tells whose it is."""
    key: str | None
    quantities: list[int]
    """Of its items, in their order."""
    acknowledged: set[str] = field(default_factory=set)
    """The ids in the 201s: one, if all is well."""

    @property
    def order(self) -> Order:
        """What is sent. E-mail, phone and addresses have the seed's in them: no log may hold any of those
        (tests/support/log_leak_plugin.py)."""
        skus = [f"{self.name}/{n}" for n in range(len(self.quantities))]
        return {
            "customer_name": self.name,
            "customer_email": f"{self.name.replace('/', '.')}.{SEED['customer_email']}",
            "customer_phone": f"{SEED['customer_phone']}{crc32(self.name.encode())}",
            "shipping_address": f"{SEED['shipping_address']}, {self.name}",
            "billing_address": f"{SEED['billing_address']}, behind {self.name}",
            "total_amount": amount(self.name),
            "currency": "USD",
            "items": [
                {
                    "product_name": f"Widget of {sku}",
                    "product_sku": sku,
                    "quantity": quantity,
                    "unit_price": amount(sku),
                }
                for sku, quantity in zip(skus, self.quantities, strict=True)
            ],
        }

    @property
    def body(self) -> bytes:
        return json.dumps(self.order).encode()

    def flaw(self, shown: Order) -> Flaw | None:
        """What is wrong with an order that is shown as this one; None where every field is what was sent."""
        sent = {**self.order, "tenant_id": self.tenant, "created_by": self.user}
        items = [{"line_no": line_no, **each} for line_no, each in enumerate(sent.pop("items"), start=1)]
        if any(shown[name] != value for name, value in sent.items()):
            return Flaw.FOREIGN
        if shown["items"] == items:
            return None
        is_part = len(shown["items"]) < len(items) and all(each in items for each in shown["items"])
        return Flaw.NOT_WHOLE if is_part else Flaw.FOREIGN


def amount(of: str) -> float:
    """An amount that is practically unique to this text."""
    return crc32(of.encode()) / 100


@dataclass(frozen=True)
class Verdict:
    """All zero, or a promise was broken."""

    lost: int = 0
    """Orders with a 201 that are not there, not to be read, or without all their items; and torn ones."""
    doubled: int = 0
    """Orders more than were requested."""
    crossed: int = 0
    """Answers and rows in which anything is not what this customer's tenant sent."""


@dataclass(frozen=True)
class Unanswered:
    """A request without an answer, and when it started and ended (time.monotonic())."""

    started: float
    ended: float


class Ledger:
    """Written by many threads."""

    def __init__(self) -> None:
        self.requests = 0
        self.answers: Counter[int | str] = Counter()
        """By status; what came instead of an answer by its kind."""
        self.unanswered: list[Unanswered] = []
        """Those whose connection was closed."""
        self.unexpected: list[str] = []
        """Answers that no client should get, such as a 500."""
        self.slowest = 0.0
        """Seconds of the slowest request."""
        self.requested: dict[str, RequestedOrder] = {}
        """By name."""
        self._lock = threading.Lock()
        self._crossed = 0
        self._unread: set[str] = set()
        """Acknowledged orders that were not found, or not whole, when they were asked for."""

    def add(self, requested: RequestedOrder) -> None:
        with self._lock:
            self.requested[requested.name] = requested

    def sent(self, outcome: int | str, started: float, ended: float) -> None:
        """A request, and its status or what came instead."""
        with self._lock:
            self.requests += 1
            self.answers[outcome] += 1
            self.slowest = max(self.slowest, ended - started)
            if outcome == NO_ANSWER:
                self.unanswered.append(Unanswered(started, ended))

    def add_unexpected(self, answer: Answer) -> None:
        with self._lock:
            self.unexpected.append(f"{answer.status} {answer.body[:300]!r}")

    def acknowledge(self, requested: RequestedOrder, order: Order) -> None:
        """A 201, and the order in it."""
        with self._lock:
            requested.acknowledged.add(order["order_id"])
            if requested.flaw(order):
                self._unread.add(order["order_id"])

    def read(self, requested: RequestedOrder, order_id: str, answer: Answer) -> None:
        """The answer to a customer who asks for an order that was acknowledged to them."""
        found = answer.json["order"] if answer.status == 200 else None
        is_other = found is not None and (found["order_id"] != order_id or requested.flaw(found) is not None)
        if answer.status == 404 or is_other:
            with self._lock:
                self._unread.add(order_id)

    def seen(self, tenant: str, orders: Iterable[Order], user: str | None = None) -> None:
        """Orders in an answer to that tenant: its own, and those that were sent; of that user, if named."""
        orders = list(orders)
        flaws = [self._flaw(order, tenant, user) for order in orders]
        with self._lock:
            self._crossed += Flaw.FOREIGN in flaws
            self._unread |= {
                order["order_id"] for order, flaw in zip(orders, flaws, strict=True) if flaw is Flaw.NOT_WHOLE
            }

    def _flaw(self, order: Order, tenant: str, user: str | None = None) -> Flaw | None:
        requested = self.requested.get(order["customer_name"])
        if requested is None or requested.tenant != tenant or user not in (None, requested.user):
            return Flaw.FOREIGN
        return requested.flaw(order)

    def acknowledged(self) -> int:
        with self._lock:
            return sum(len(requested.acknowledged) for requested in self.requested.values())

    def unfinished(self) -> int:
        """Orders with a key that were never acknowledged: their customers would still be asking."""
        with self._lock:
            return sum(1 for each in self.requested.values() if each.key and not each.acknowledged)

    def verdict(self, stored: StoredOrders) -> Verdict:
        """What was promised, held against what rests in the database."""
        there = set()
        orders: Counter[str] = Counter()
        misplaced = 0
        torn = set()
        for (order,) in stored:
            there.add(order["order_id"])
            orders[order["customer_name"]] += 1
            flaw = self._flaw(order, order["tenant_id"])
            misplaced += flaw is Flaw.FOREIGN
            if flaw is Flaw.NOT_WHOLE:
                torn.add(order["order_id"])
        lost = torn | self._unread
        for requested in self.requested.values():
            lost |= requested.acknowledged - there
        return Verdict(
            lost=len(lost),
            doubled=sum(times - 1 for times in orders.values()),
            crossed=self._crossed + misplaced,
        )
