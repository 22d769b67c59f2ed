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
    """One user of one tenant, who sends one request after the other."""

    def __init__(
        self, tenant: str, user: str, doors: Sequence[Client], ledger: Ledger, rng: random.Random
    ) -> None:
        """`doors`: the product and, for reads, others that should hold as well."""
        self.tenant, self.user = tenant, user
        self._doors, self._ledger, self._rng = doors, ledger, rng
        self._placed: list[RequestedOrder] = []
        self._probe: RequestedOrder | None = None
        self._foreign_order: Callable[[], RequestedOrder | None] = lambda: None
        self.stopped = threading.Event()
        self.stop_timeout: float = ACKNOWLEDGE_TIMEOUT

    def set_others(self, others: Sequence["Customer"]) -> None:
        """Orders of these are requested too, and must not be found."""
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
        """Retried only after a refusal that says that nothing was placed."""
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
        mine = self._rng.choice(["", "&my_orders=true"])
        self._get(f"/orders?limit={self._rng.randint(1, 20)}{mine}", self.user if mine else None)

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
        ready = self._ask(lambda: self._doors[0].get("/health/ready"))
        if ready is None or ready.status != 200:
            return False
        self._probe = self._probe or self._new_order(uuid4().hex)
        if not self._place(self._probe):
            return False
        self._probe = None
        return True

    def _place(self, requested: RequestedOrder) -> bool | None:
        """Whether it was acknowledged; None where that is not known."""
        answer = self._ask(lambda: self._doors[0].place(raw=requested.body, key=requested.key))
        if answer is None:
            return None if requested.key is None else False
        if answer.status != 201:
            return None if "it is not known whether" in answer.json["detail"] else False
        order = answer.json["order"]
        self._ledger.seen(self.tenant, [order])
        self._ledger.acknowledge(requested, order)
        return True

    def _get(self, target: str, user: str | None = None) -> Answer | None:
        """`user`: whose orders alone may be in the answer."""
        answer = self._ask(lambda: self._rng.choice(self._doors).get(target))
        if answer and answer.status == 200:
            found = answer.json
            self._ledger.seen(self.tenant, found["orders"] if "orders" in found else [found["order"]], user)
        return answer

    def _ask(self, request: Callable[[], Answer]) -> Answer | None:
        """The answer; None on a timeout or a closed connection."""
        started = time.monotonic()
        answer, instead = None, NO_ANSWER
        try:
            answer = request()
        except TimeoutError:
            instead = TIMED_OUT
        except (OSError, http.client.HTTPException):
            pass
        self._ledger.sent(answer.status if answer else instead, started, time.monotonic())
        if answer and answer.status not in EXPECTED:
            self._ledger.add_unexpected(answer)
        return answer


class Load:
    """All customers, each on a thread of its own, from `with` to its end."""

    def __init__(self, customers: Sequence[Customer]) -> None:
        self._customers = customers
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._keep, args=(each,), daemon=True) for each in customers]

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

    def _keep(self, customer: Customer) -> None:
        try:
            customer.run()
        except BaseException as error:
            self._errors.append(error)
            raise


@dataclass(frozen=True)
class CustomerFactory:
    """Makes customers with one ledger and one seed."""

    doors: Sequence[int]
    """Ports of loopback, the first of them the product's."""
    token: Callable[[str, str], str]
    ledger: Ledger
    seed: int

    def customer(self, tenant: str, user: str) -> Customer:
        clients = [Client(over_http("127.0.0.1", port), self.token(tenant, user)) for port in self.doors]
        return Customer(tenant, user, clients, self.ledger, random.Random(f"{self.seed} {tenant} {user}"))

    def customers(self) -> list[Customer]:
        """Two of each tenant."""
        everybody = [self.customer(tenant, user) for tenant in TENANTS for user in USERS]
        for customer in everybody:
            customer.set_others(everybody)
        return everybody
