"""Customers of several tenants, who place and read orders and retry until they succeed."""

import http.client
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from tools.client import Answer, Client, over_http
from tools.soak.ledger import NO_ANSWER, TIMED_OUT, Ledger, RequestedOrder

EXPECTED = (200, 201, 404, 409, 503)
"""Statuses that a client may get during faults; any other is a bug of the API."""
TENANTS = ("acme", "borealis", "cosmos", "dune")
USERS = ("alice", "bob")
ACKNOWLEDGE_TIMEOUT = 60
"""Seconds after the end of the load in which every order with a key must be acknowledged."""
INTERRUPT_TIMEOUT = 35
"""Seconds after which all requests of an interrupted load have ended: a client's timeout is 30."""
PAUSE = 0.02
"""Seconds between two requests of a customer."""


class Customer:
    """One user of one tenant, who sends one request after another."""

    def __init__(
        self, tenant: str, user: str, doors: Sequence[Client], ledger: Ledger, rng: random.Random
    ) -> None:
        """`doors`: clients of the product and, for reads, of other builds with the same promises."""
        self.tenant, self.user = tenant, user
        self._doors, self._ledger, self._rng = doors, ledger, rng
        self._placed: list[RequestedOrder] = []
        self._probe: RequestedOrder | None = None
        self._foreign_order: Callable[[], RequestedOrder | None] = lambda: None
        self.stopped = threading.Event()
        self.stop_timeout: float = ACKNOWLEDGE_TIMEOUT

    def set_others(self, others: Sequence["Customer"]) -> None:
        """Requests also read orders of these customers, which must get 404."""
        foreign = [other for other in others if other.tenant != self.tenant]

        def choose() -> RequestedOrder | None:
            placed = self._rng.choice(foreign)._placed
            return self._rng.choice(placed[-50:]) if placed else None

        self._foreign_order = choose

    def run(self) -> None:
        weights: Mapping[Callable[[], None], int] = {
            self.place_once: 30,
            self.place_without_key: 20,
            self.place_again: 10,
            self.read: 15,
            self.read_foreign: 10,
            self.browse: 10,
            self.read_pages: 5,
        }
        while not self.stopped.is_set():
            (action,) = self._rng.choices(list(weights), list(weights.values()))
            action()
            time.sleep(PAUSE * self._rng.random() * 2)

    def place_once(self) -> None:
        """With a key, until it is acknowledged."""
        requested = self._new_order(uuid4().hex)
        deadline = None
        while not self._place(requested):
            if self.stopped.is_set():
                deadline = deadline or time.monotonic() + self.stop_timeout
                if time.monotonic() > deadline:
                    return
            time.sleep(0.05)

    def place_without_key(self) -> None:
        """Retried only after an answer which means that nothing was placed."""
        requested = self._new_order(None)
        for _ in range(40):
            if self._place(requested) is not False or self.stopped.is_set():
                return
            time.sleep(0.1)

    def place_again(self) -> None:
        """As after a lost answer, possibly while the first request is still running."""
        with_key = [requested for requested in self._placed[-20:] if requested.key]
        if with_key:
            self._place(self._rng.choice(with_key))

    def read(self) -> None:
        acknowledged = [requested for requested in self._placed[-100:] if requested.acknowledged]
        if acknowledged:
            requested = self._rng.choice(acknowledged)
            order_id = next(iter(requested.acknowledged))
            answer = self._get(f"/orders/{order_id}")
            if answer:
                self._ledger.read(requested, order_id, answer)

    def read_foreign(self) -> None:
        requested = self._foreign_order()
        if requested and requested.acknowledged:
            self._get(f"/orders/{next(iter(requested.acknowledged))}")

    def browse(self) -> None:
        my_orders = self._rng.choice(["", "&my_orders=true"])
        self._get(f"/orders?limit={self._rng.randint(1, 20)}{my_orders}", self.user if my_orders else None)

    def read_pages(self) -> None:
        """Up to three pages, by cursor."""
        cursor = ""
        for _ in range(3):
            answer = self._get(f"/orders?limit=5{cursor}")
            if not answer or answer.status != 200 or not answer.json["next_cursor"]:
                return
            cursor = f"&cursor={answer.json['next_cursor']}"

    def _new_order(self, key: str | None) -> RequestedOrder:
        items = self._rng.choice([1, 1, 2, 3, 40])
        quantities = [self._rng.randint(1, 1000) for _ in range(items)]
        requested = RequestedOrder(self.tenant, self.user, f"{self.tenant}/{uuid4().hex}", key, quantities)
        self._ledger.add(requested)
        self._placed.append(requested)
        return requested

    def is_served(self) -> bool:
        """Whether the service is ready and places an order; a failed one is retried by the next call."""
        ready = self._send(lambda: self._doors[0].get("/health/ready"))
        if ready is None or ready.status != 200:
            return False
        self._probe = self._probe or self._new_order(uuid4().hex)
        if not self._place(self._probe):
            return False
        self._probe = None
        return True

    def _place(self, requested: RequestedOrder) -> bool | None:
        """Whether it was acknowledged; None if the outcome is unknown."""
        answer = self._send(lambda: self._doors[0].place(raw=requested.body, key=requested.key))
        if answer is None:
            return None if requested.key is None else False
        if answer.status != 201:
            return None if "it is not known whether" in answer.json["detail"] else False
        order = answer.json["order"]
        self._ledger.seen(self.tenant, [order])
        self._ledger.acknowledge(requested, order)
        return True

    def _get(self, target: str, user: str | None = None) -> Answer | None:
        """`user`: only this user's orders may be in the answer."""
        answer = self._send(lambda: self._rng.choice(self._doors).get(target))
        if answer and answer.status == 200:
            body = answer.json
            self._ledger.seen(self.tenant, body["orders"] if "orders" in body else [body["order"]], user)
        return answer

    def _send(self, request: Callable[[], Answer]) -> Answer | None:
        """The answer; None on a timeout or a closed connection."""
        started = time.monotonic()
        answer, outcome = None, NO_ANSWER
        try:
            answer = request()
        except TimeoutError:
            outcome = TIMED_OUT
        except (OSError, http.client.HTTPException):
            pass
        self._ledger.sent(answer.status if answer else outcome, started, time.monotonic())
        if answer and answer.status not in EXPECTED:
            self._ledger.add_unexpected(answer)
        return answer


class Load:
    """All customers, each in its own thread, for the duration of the `with` block."""

    def __init__(self, customers: Sequence[Customer]) -> None:
        self._customers = customers
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(customer,), daemon=True) for customer in customers
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        for customer in self._customers:
            customer.stop_timeout = 0 if failure else ACKNOWLEDGE_TIMEOUT
            customer.stopped.set()
        if failure is KeyboardInterrupt:
            self._wait(INTERRUPT_TIMEOUT)
        if failure:
            return  # the threads are daemons
        for thread in self._threads:
            thread.join(ACKNOWLEDGE_TIMEOUT + 60)
        if self._errors:
            raise self._errors[0]
        if any(thread.is_alive() for thread in self._threads):
            raise AssertionError("a request hangs")

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))

    def _run(self, customer: Customer) -> None:
        try:
            customer.run()
        except BaseException as error:
            self._errors.append(error)
            raise


@dataclass(frozen=True)
class CustomerFactory:
    """Creates customers with one ledger and one seed."""

    doors: Sequence[int]
    """Loopback ports; the first is the product's."""
    token: Callable[[str, str], str]
    ledger: Ledger
    seed: int

    def customer(self, tenant: str, user: str) -> Customer:
        clients = [Client(over_http("127.0.0.1", port), self.token(tenant, user)) for port in self.doors]
        return Customer(tenant, user, clients, self.ledger, random.Random(f"{self.seed} {tenant} {user}"))

    def customers(self) -> list[Customer]:
        """Two of each tenant."""
        customers = [self.customer(tenant, user) for tenant in TENANTS for user in USERS]
        for customer in customers:
            customer.set_others(customers)
        return customers
