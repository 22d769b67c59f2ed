"""Customers of several tenants, who place and read orders and never lose patience."""

import http.client
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from tools.client import Answer, Client, over_http
from tools.soak.ledger import NO_ANSWER, TIMED_OUT, Ledger, Wanted

EXPECTED = (200, 201, 404, 409, 503)
"""What a client may hear while things break; anything else is a fault of the API's own."""
TENANTS = ("acme", "borealis", "cosmos", "dune")
USERS = ("alice", "bob")
PATIENCE = 60
"""Seconds in which an order with a key must have been acknowledged once the load is told to end."""
LAST_WORDS = 35
"""Seconds in which all requests of an interrupted load have ended: a client waits for 30."""
PAUSE = 0.02
"""Seconds between two requests of a customer."""


class Customer:
    """One user of one tenant, who asks one thing after the other."""

    def __init__(
        self, tenant: str, user: str, doors: Sequence[Client], ledger: Ledger, rng: random.Random
    ) -> None:
        """`doors`: the product and, for reads, others that should hold as well."""
        self.tenant, self.user = tenant, user
        self._doors, self._ledger, self._rng = doors, ledger, rng
        self._placed: list[Wanted] = []
        self._probe: Wanted | None = None
        self._foreign: Callable[[], Wanted | None] = lambda: None
        self.gone_home = threading.Event()
        self.patience: float = PATIENCE

    def knows(self, others: Sequence["Customer"]) -> None:
        """Orders of these are asked for as well, and must not be found."""
        foreign = [other for other in others if other.tenant != self.tenant]

        def any_of_theirs() -> Wanted | None:
            placed = self._rng.choice(foreign)._placed
            return self._rng.choice(placed[-50:]) if placed else None

        self._foreign = any_of_theirs

    def keep_asking(self) -> None:
        wishes: Mapping[Callable[[], None], int] = {
            self.place_once: 30,
            self.place_without_key: 20,
            self.place_again: 10,
            self.read: 15,
            self.read_foreign: 10,
            self.browse: 10,
            self.leaf_through: 5,
        }
        while not self.gone_home.is_set():
            (wish,) = self._rng.choices(list(wishes), list(wishes.values()))
            wish()
            time.sleep(PAUSE * self._rng.random() * 2)

    def place_once(self) -> None:
        """With a key, until it is acknowledged."""
        wanted = self._new_wish(uuid4().hex)
        deadline = None
        while not self._place(wanted):
            if self.gone_home.is_set():
                deadline = deadline or time.monotonic() + self.patience
                if time.monotonic() > deadline:
                    return
            time.sleep(0.05)

    def place_without_key(self) -> None:
        """Again only after a refusal that does not leave open whether it took effect."""
        wanted = self._new_wish(None)
        for _ in range(40):
            if self._place(wanted) is not False or self.gone_home.is_set():
                return
            time.sleep(0.1)

    def place_again(self) -> None:
        """As one who did not hear the answer does; perhaps while another still asks."""
        with_key = [wanted for wanted in self._placed[-20:] if wanted.key]
        if with_key:
            self._place(self._rng.choice(with_key))

    def read(self) -> None:
        acknowledged = [wanted for wanted in self._placed[-100:] if wanted.acknowledged]
        if acknowledged:
            wanted = self._rng.choice(acknowledged)
            order_id = next(iter(wanted.acknowledged))
            answer = self._get(f"/orders/{order_id}")
            if answer:
                self._ledger.read(wanted, order_id, answer)

    def read_foreign(self) -> None:
        wanted = self._foreign()
        if wanted and wanted.acknowledged:
            self._get(f"/orders/{next(iter(wanted.acknowledged))}")

    def browse(self) -> None:
        mine = self._rng.choice(["", "&my_orders=true"])
        self._get(f"/orders?limit={self._rng.randint(1, 20)}{mine}", self.user if mine else None)

    def leaf_through(self) -> None:
        """A few pages, each behind the one before."""
        cursor = ""
        for _ in range(3):
            answer = self._get(f"/orders?limit=5{cursor}")
            if not answer or answer.status != 200 or not answer.json["next_cursor"]:
                return
            cursor = f"&cursor={answer.json['next_cursor']}"

    def _new_wish(self, key: str | None) -> Wanted:
        items = self._rng.choice([1, 1, 2, 3, 40])
        quantities = [self._rng.randint(1, 1000) for _ in range(items)]
        wanted = Wanted(self.tenant, self.user, f"{self.tenant}/{uuid4().hex}", key, quantities)
        self._ledger.want(wanted)
        self._placed.append(wanted)
        return wanted

    def is_served(self) -> bool:
        """Whether the service is ready and places an order: the one it did not place when last asked."""
        ready = self._ask(lambda: self._doors[0].get("/health/ready"))
        if ready is None or ready.status != 200:
            return False
        self._probe = self._probe or self._new_wish(uuid4().hex)
        if not self._place(self._probe):
            return False
        self._probe = None
        return True

    def _place(self, wanted: Wanted) -> bool | None:
        """Whether it was acknowledged; None where that is not known."""
        answer = self._ask(lambda: self._doors[0].place(raw=wanted.body, key=wanted.key))
        if answer is None:
            return None if wanted.key is None else False
        if answer.status != 201:
            return None if "it is not known whether" in answer.json["detail"] else False
        order = answer.json["order"]
        self._ledger.seen(self.tenant, [order])
        self._ledger.acknowledge(wanted, order)
        return True

    def _get(self, target: str, user: str | None = None) -> Answer | None:
        """`user`: whose orders alone may be in the answer."""
        answer = self._ask(lambda: self._rng.choice(self._doors).get(target))
        if answer and answer.status == 200:
            found = answer.json
            self._ledger.seen(self.tenant, found["orders"] if "orders" in found else [found["order"]], user)
        return answer

    def _ask(self, request: Callable[[], Answer]) -> Answer | None:
        """The answer; None when there was none, because the door's process ended or hangs."""
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
            self._ledger.never_expected(answer)
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
            customer.patience = 0 if failure else PATIENCE
            customer.gone_home.set()
        if failure is KeyboardInterrupt:
            self._wait(LAST_WORDS)
        if failure:
            return  # and nobody waits longer: the threads are daemons
        for thread in self._threads:
            thread.join(PATIENCE + 60)
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
            customer.keep_asking()
        except BaseException as error:
            self._errors.append(error)
            raise


@dataclass(frozen=True)
class Market:
    """Where customers come from."""

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
            customer.knows(everybody)
        return everybody
