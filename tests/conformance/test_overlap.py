"""Concurrent requests of many tenants on the threaded hosts: no mixed-up answers, no blocked requests."""

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
"""Round-trip time to the database in seconds, added by the proxy."""
SWITCH_THREADS_OFTEN = "import sys\nsys.setswitchinterval(1e-6)\n"
"""Makes Python switch threads all the time, so that races on shared state show up."""


@pytest.fixture(scope="module")
def slow_database(database: Urls) -> Iterator[Proxy]:
    """A proxy to the database; tests set its delay."""
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
    slow_database: Proxy,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Transport]:
    folder = shutil.copytree(built(request.param), tmp_path_factory.mktemp("restless") / request.param)
    (folder / "sitecustomize.py").write_text(SWITCH_THREADS_OFTEN)  # Python imports it at start-up
    port = free_port()
    url = f"postgresql://orders_app@/orders?host={slow_database.folder}"
    variables = {**environment, "DATABASE_URL": url, "DB_POOL_SIZE": "25", "PYTHONPATH": str(folder)}
    with hosts.serving(request.param, folder, variables, "127.0.0.1", port):
        yield over_http("127.0.0.1", port)


class TenantClient:
    """A client of one tenant that checks each of its answers."""

    def __init__(self, send: Transport, user_pool: UserPool, number: int) -> None:
        self.tenant = f"overlap-{number}-{uuid4().hex[:12]}"
        self._client = Client(send, user_pool.token(self.tenant))
        self.names = [f"{self.tenant} first"]
        self._first = self.place_checked(self.names[0])

    def place_checked(self, name: str) -> dict[str, Any]:
        answer = self._client.place(seed(customer_name=name))
        order: dict[str, Any] = self.check_owner(answer, answer.json.get("order"))
        assert order["customer_name"] == name
        return order

    def requests(self) -> list[Callable[[], object]]:
        """Four requests: two creates, one read, one list."""
        new_names = [f"{self.tenant} {len(self.names) + n}" for n in range(2)]
        self.names += new_names
        return [
            lambda: self.place_checked(new_names[0]),
            lambda: self.place_checked(new_names[1]),
            self.read,
            self.list_orders,
        ]

    def read(self) -> None:
        answer = self._client.get(f"/orders/{self._first['order_id']}")
        assert self.check_owner(answer, answer.json.get("order")) == self._first

    def list_orders(self) -> None:
        answer = self._client.get("/orders")
        orders = [self.check_owner(answer, order) for order in answer.json.get("orders", [None])]
        assert self._first in orders

    def check_owner(self, answer: Answer, order: Any) -> Any:
        assert answer.status in (200, 201), answer
        assert order["tenant_id"] == self.tenant
        assert order["customer_name"].startswith(self.tenant)
        return order


@pytest.fixture
def tenants(send: Transport, user_pool: UserPool, slow_database: Proxy) -> list[TenantClient]:
    slow_database.delay = 0
    return [TenantClient(send, user_pool, number) for number in range(TENANTS)]


def interleaved(tenants: list[TenantClient]) -> list[Callable[[], object]]:
    """The requests of all tenants, interleaved."""
    rounds = list(zip(*(tenant_client.requests() for tenant_client in tenants), strict=True))
    assert sum(map(len, rounds)) == REQUESTS
    return [request for round_ in rounds for request in round_]


def test_concurrent_tenants_never_see_each_others_data(tenants: list[TenantClient], rows: Rows) -> None:
    for _ in range(ROUNDS):
        send_concurrently(interleaved(tenants))

    for tenant_client in tenants:
        stored = rows("select customer_name from orders where tenant_id = %s", tenant_client.tenant)
        assert sorted(name for (name,) in stored) == sorted(tenant_client.names)


def test_requests_wait_for_the_database_concurrently(
    send: Transport, tenants: list[TenantClient], slow_database: Proxy
) -> None:
    slow_database.delay = DELAY  # from here on, so that the first requests overlap and open all connections
    send_concurrently([lambda: send("GET", "/health/ready", {}, b"")] * REQUESTS)

    with slow_database.watched() as traffic:
        seconds = send_concurrently(interleaved(tenants))

    assert traffic.trips - traffic.messages.count("startup") == REQUESTS
    assert seconds < REQUESTS * DELAY / 3


def send_concurrently(requests: list[Callable[[], object]]) -> float:
    """Sends each request in its own thread; returns the seconds until the last one ended."""
    barrier = Barrier(len(requests) + 1, timeout=30)

    def send_one(request: Callable[[], object]) -> None:
        barrier.wait()
        request()

    with ThreadPoolExecutor(len(requests)) as threads:
        answers = [threads.submit(send_one, request) for request in requests]
        barrier.wait()
        started = time.monotonic()
        for answer in answers:
            answer.result()
        return time.monotonic() - started
