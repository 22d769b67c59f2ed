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
"""Every order, read as the superuser, without row-level security."""
Order = dict[str, Any]
StoredOrders = Iterable[tuple[Order]]
SEED: Order = json.loads(SEED_BYTES)
TIMED_OUT, NO_ANSWER = "timed out", "no answer"
"""Outcomes without an answer: the client's timeout, or a closed connection."""


class Flaw(Enum):
    """The fault of an order in an answer or a row."""

    NOT_WHOLE = "items are missing"
    FOREIGN = "something in it is not of this order"


@dataclass(eq=False)
class RequestedOrder:
    """One order that a customer wants once, however often the request is repeated."""

    tenant: str
    user: str
    name: str
    """Its unique customer_name, `<tenant>/<number>`. All values except the quantities are derived from it, so
    that a foreign value is recognised."""
    key: str | None
    quantities: list[int]
    """Of the items, in their order."""
    acknowledged: set[str] = field(default_factory=set)
    """The ids in the 201 answers; more than one if the order was doubled."""

    @property
    def order(self) -> Order:
        """The request's body. E-mail, phone and addresses contain the seed's values, which no log may contain
        (tools/log_leaks.py)."""
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
        """Compares an order in an answer or a row with this one; None when all fields are equal."""
        sent = {**self.order, "tenant_id": self.tenant, "created_by": self.user}
        items = [{"line_no": line_no, **item} for line_no, item in enumerate(sent.pop("items"), start=1)]
        if any(shown[name] != value for name, value in sent.items()):
            return Flaw.FOREIGN
        if shown["items"] == items:
            return None
        is_part = len(shown["items"]) < len(items) and all(item in items for item in shown["items"])
        return Flaw.NOT_WHOLE if is_part else Flaw.FOREIGN


def amount(of: str) -> float:
    """An amount that is practically unique to this text."""
    return crc32(of.encode()) / 100


@dataclass(frozen=True)
class Verdict:
    """The number of broken promises of each kind."""

    lost: int = 0
    """Acknowledged orders that are missing, not readable or incomplete; and other incomplete orders."""
    doubled: int = 0
    """Orders in excess of those requested."""
    crossed: int = 0
    """Answers and rows with a value that this customer's tenant did not send."""


@dataclass(frozen=True)
class Unanswered:
    """A request without an answer, and when it started and ended (time.monotonic())."""

    started: float
    ended: float


class Ledger:
    """Thread-safe."""

    def __init__(self) -> None:
        self.requests = 0
        self.answers: Counter[int | str] = Counter()
        """By status, or by the outcome without an answer."""
        self.unanswered: list[Unanswered] = []
        """Requests whose connection was closed."""
        self.unexpected: list[str] = []
        """Answers that no client should get, such as a 500."""
        self.slowest = 0.0
        """Seconds of the slowest request."""
        self.requested: dict[str, RequestedOrder] = {}
        """By name."""
        self._lock = threading.Lock()
        self._crossed = 0
        self._incomplete: set[str] = set()
        """Orders that an answer returned incomplete."""
        self._not_found: set[str] = set()
        """Acknowledged orders that a later read did not return."""

    def add(self, requested: RequestedOrder) -> None:
        with self._lock:
            self.requested[requested.name] = requested

    def sent(self, outcome: int | str, started: float, ended: float) -> None:
        """A request, and its status or outcome without an answer."""
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
        """A 201 answer, and its order."""
        with self._lock:
            requested.acknowledged.add(order["order_id"])
            if requested.flaw(order):
                self._incomplete.add(order["order_id"])

    def read(self, requested: RequestedOrder, order_id: str, answer: Answer) -> None:
        """The answer to a customer who reads an order that was acknowledged before."""
        order = answer.json["order"] if answer.status == 200 else None
        is_other = order is not None and (order["order_id"] != order_id or requested.flaw(order) is not None)
        with self._lock:
            if answer.status == 404:
                self._not_found.add(order_id)
            elif is_other:
                self._incomplete.add(order_id)

    def seen(self, tenant: str, orders: Iterable[Order], user: str | None = None) -> None:
        """Checks the orders in an answer to this tenant; if `user` is given, all must be that user's."""
        orders = list(orders)
        flaws = [self._flaw(order, tenant, user) for order in orders]
        with self._lock:
            self._crossed += Flaw.FOREIGN in flaws
            self._incomplete |= {
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
        """Orders with a key that were never acknowledged, although their customers retried."""
        with self._lock:
            return sum(1 for order in self.requested.values() if order.key and not order.acknowledged)

    def verdict(self, stored: StoredOrders, *, reads_may_be_stale: bool = False) -> Verdict:
        """Compares acknowledged orders with those stored in the database.

        `reads_may_be_stale`: a stored order that a read did not return is not lost.
        """
        stored_ids = set()
        orders: Counter[str] = Counter()
        misplaced = 0
        incomplete = set()
        for (order,) in stored:
            stored_ids.add(order["order_id"])
            orders[order["customer_name"]] += 1
            flaw = self._flaw(order, order["tenant_id"])
            misplaced += flaw is Flaw.FOREIGN
            if flaw is Flaw.NOT_WHOLE:
                incomplete.add(order["order_id"])
        lost = incomplete | self._incomplete
        if not reads_may_be_stale:
            lost |= self._not_found
        for requested in self.requested.values():
            lost |= requested.acknowledged - stored_ids
        return Verdict(
            lost=len(lost),
            doubled=sum(times - 1 for times in orders.values()),
            crossed=self._crossed + misplaced,
        )
