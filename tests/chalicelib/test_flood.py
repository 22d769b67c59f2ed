"""With RATE_LIMIT, a flood of one tenant does not slow another tenant's requests."""

import multiprocessing
import queue
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from deploy import hosts as builds
from local import hosts
from local.database import Urls
from tests.support.cognito import UserPool
from tools.client import Client, free_port, over_http
from tools.postgres_proxy import Proxy

pytestmark = pytest.mark.slow

MAX_SLOWDOWN = 2
"""The quiet tenant's p95 latency must grow by less than this factor."""
ROUNDS, SECONDS, INTERVAL = 3, 4.0, 0.25
"""Each round measures SECONDS without and SECONDS with a flood; the quiet tenant sends every INTERVAL."""
FLOOD_THREADS, LIMIT = 32, "5/s"
"""One quiet client stays below the limit; the flood is a hundred times above it."""
DELAY = 0.1
"""Round trip to the database, in seconds."""


def p95(request: Callable[[], None]) -> float:
    """95th percentile of the quiet tenant's latency, in seconds."""
    durations, end = [], time.monotonic() + SECONDS
    while (started := time.monotonic()) < end:
        request()
        durations.append(time.monotonic() - started)
        time.sleep(max(0, INTERVAL - durations[-1]))
    return statistics.quantiles(durations, n=20)[-1]


def send_requests(port: int, token: str, thread_count: int, stop: Any, statuses: Any) -> None:
    """Runs in a separate process, so that the flood does not slow the measuring client; reports statuses."""
    client = Client(over_http("127.0.0.1", port), token)

    def send() -> None:
        while not stop.is_set():
            statuses.put(client.get("/orders?limit=1").status)
            time.sleep(INTERVAL if thread_count == 1 else 0.02)

    threads = [threading.Thread(target=send) for _ in range(thread_count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def background_requests(port: int, token: str, thread_count: int) -> Iterator[list[int]]:
    """Requests a list repeatedly in the background; yields the statuses received so far."""
    context = multiprocessing.get_context("spawn")
    stop, statuses, received = context.Event(), context.Queue(), list[int]()
    process = context.Process(
        target=send_requests, args=[port, token, thread_count, stop, statuses], daemon=True
    )
    process.start()
    try:
        received.append(statuses.get(timeout=60))  # the first answer
        time.sleep(1.5)  # the limit allows an initial burst
        yield received
    finally:
        stop.set()
        while process.is_alive() or not statuses.empty():
            with suppress(queue.Empty):
                received.append(statuses.get(timeout=0.1))
        process.join(30)


def measure_slowdown(
    folder: Path, variables: dict[str, str], user_pool: UserPool, limit: str, rounds: int
) -> tuple[float, list[int]]:
    """The quiet tenant's slowdown in the best round, and the statuses of the flood.

    The best round counts, because other load on the machine only adds latency; stops when one is good enough.
    """
    port = free_port()
    with hosts.serving("gcp", folder, {**variables, "RATE_LIMIT": limit}, "127.0.0.1", port):
        send = over_http("127.0.0.1", port)
        quiet_client = Client(send, user_pool.token(f"quiet-{uuid4().hex}"))
        loud_token = user_pool.token("loud")
        order_id = quiet_client.place().json["order"]["order_id"]
        received: list[int] = []

        def read_order() -> None:
            assert quiet_client.get(f"/orders/{order_id}").status == 200

        ratios = []
        for _ in range(rounds):
            with background_requests(port, loud_token, thread_count=1):
                baseline = p95(read_order)
            with background_requests(port, loud_token, FLOOD_THREADS) as statuses:
                ratios.append(p95(read_order) / baseline)
            received += statuses
            if ratios[-1] < MAX_SLOWDOWN:
                break
    return min(ratios), received


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flood") / "gcp"
    builds.build("gcp", folder)
    return folder


@pytest.fixture
def variables(environment: dict[str, str], database: Urls) -> Iterator[dict[str, str]]:
    """The API's variables, with DELAY to the database: a request occupies a thread, not the CPU."""
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-far-") as socket_folder,
        closing(Proxy(Path(socket_folder), sockets)) as proxy,
    ):
        proxy.delay = DELAY
        url = f"postgresql://orders_app@/orders?host={proxy.folder}"
        yield {**environment, "DATABASE_URL": url, "DB_POOL_SIZE": "8", "THREADS": "4", "WORKERS": "1"}


def test_flood_of_one_tenant_does_not_slow_another(
    folder: Path, variables: dict[str, str], user_pool: UserPool
) -> None:
    limited, limited_statuses = measure_slowdown(folder, variables, user_pool, LIMIT, ROUNDS)
    unlimited, unlimited_statuses = measure_slowdown(folder, variables, user_pool, "", 1)

    assert set(limited_statuses) == {200, 429}
    assert set(unlimited_statuses) == {200}
    assert limited_statuses.count(429) > limited_statuses.count(200)
    assert limited < MAX_SLOWDOWN
    assert unlimited > MAX_SLOWDOWN, "without a limit the same flood slows the quiet tenant"
