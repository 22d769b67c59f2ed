"""Many tenants at once on the hosts with threads: each gets its own answer, and none waits for another."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from local import hosts
from local.database import Urls
from tests.support.cognito import UserPool
from tools.client import Answer, Client, Transport, free_port, over_http, seed
from tools.postgres_proxy import Proxy

pytestmark = pytest.mark.slow

Rows = Callable[..., list[tuple[Any, ...]]]

TENANTS, REQUESTS, ROUNDS = 8, 32, 10
DELAY = 0.2
"""Seconds that each request waits for the database, whatever else it does."""
RESTLESS = "import sys\nsys.setswitchinterval(1e-6)\n"
"""Has threads take turns all the time: what they share is soon another's."""


@pytest.fixture(scope="module")
def far_database(database: Urls) -> Iterator[Proxy]:
    """The database, a round trip of DELAY away once that is set."""
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        tempfile.TemporaryDirectory(prefix="order-api-far-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
    ):
        yield proxy


@pytest.fixture(scope="module", params=["azure", "gcp"])
def send(
    request: pytest.FixtureRequest,
    environment: dict[str, str],
    built: Callable[[str], Path],
    far_database: Proxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Transport]:
    folder = shutil.copytree(built(request.param), tmp_path_factory.mktemp("restless") / request.param)
    (folder / "sitecustomize.py").write_text(RESTLESS)  # Python imports it before all else
    port = free_port()
    url = f"postgresql://orders_app@/orders?host={far_database.folder}"
    variables = {**environment, "DATABASE_URL": url, "DB_POOL_SIZE": "25", "PYTHONPATH": str(folder)}
    with hosts.serving(request.param, folder, variables, "127.0.0.1", port):
        yield over_http("127.0.0.1", port)


class Buyer:
    """One tenant's caller, who knows what each of its answers must say."""

    def __init__(self, send: Transport, user_pool: UserPool, number: int) -> None:
        self.tenant = f"overlap-{number}-{uuid4().hex[:12]}"
        self._client = Client(send, user_pool.token(self.tenant))
        self.names = [f"{self.tenant} first"]
        self._first = self.placed(self.names[0])

    def placed(self, name: str) -> dict[str, Any]:
        answer = self._client.place(seed(customer_name=name))
        order: dict[str, Any] = self.own(answer, answer.json.get("order"))
        assert order["customer_name"] == name
        return order

    def requests(self) -> list[Callable[[], object]]:
        """A quarter each: two places, one order, the list."""
        more = [f"{self.tenant} {len(self.names) + n}" for n in range(2)]
        self.names += more
        return [lambda: self.placed(more[0]), lambda: self.placed(more[1]), self.reads, self.lists]

    def reads(self) -> None:
        answer = self._client.get(f"/orders/{self._first['order_id']}")
        assert self.own(answer, answer.json.get("order")) == self._first

    def lists(self) -> None:
        answer = self._client.get("/orders")
        orders = [self.own(answer, order) for order in answer.json.get("orders", [None])]
        assert self._first in orders

    def own(self, answer: Answer, order: Any) -> Any:
        assert answer.status in (200, 201), answer
        assert order["tenant_id"] == self.tenant
        assert order["customer_name"].startswith(self.tenant)
        return order


@pytest.fixture
def buyers(send: Transport, user_pool: UserPool, far_database: Proxy) -> list[Buyer]:
    far_database.delay = 0
    return [Buyer(send, user_pool, number) for number in range(TENANTS)]


def mixed(buyers: list[Buyer]) -> list[Callable[[], object]]:
    """One request of each, another one of each, and so on."""
    turns = list(zip(*(buyer.requests() for buyer in buyers), strict=True))
    assert sum(map(len, turns)) == REQUESTS
    return [request for turn in turns for request in turn]


def test_concurrent_tenants_never_see_each_others_data(buyers: list[Buyer], rows: Rows) -> None:
    for _ in range(ROUNDS):
        at_once(mixed(buyers))

    for buyer in buyers:
        found = rows("select customer_name from orders where tenant_id = %s", buyer.tenant)
        assert sorted(name for (name,) in found) == sorted(buyer.names)


def test_requests_wait_for_the_database_concurrently(
    send: Transport, buyers: list[Buyer], far_database: Proxy
) -> None:
    at_once([lambda: send("GET", "/health/ready", {}, b"")] * REQUESTS)  # now the connections are open

    far_database.delay = DELAY
    with far_database.watched() as traffic:
        seconds = at_once(mixed(buyers))

    assert traffic.trips == REQUESTS
    assert seconds < REQUESTS * DELAY / 3


def at_once(asked: list[Callable[[], object]]) -> float:
    """Ask from as many threads as there are requests; the seconds that all of them took together."""
    together = Barrier(len(asked) + 1, timeout=30)

    def ask(request: Callable[[], object]) -> None:
        together.wait()
        request()

    with ThreadPoolExecutor(len(asked)) as threads:
        answers = [threads.submit(ask, request) for request in asked]
        together.wait()
        started = time.monotonic()
        for answer in answers:
            answer.result()
        return time.monotonic() - started
