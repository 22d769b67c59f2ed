"""One tenant's flood is its own: another tenant's answers take as long as before."""

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

HARM = 2
"""So many times longer may nobody wait."""
ROUNDS, SECONDS, PACE = 3, 4.0, 0.25
"""As usual and flooded by turns, each so long; a steady customer asks every PACE seconds."""
FLOODERS, LIMIT = 32, "5/s"
"""One steady customer stays below the limit; the flooders ask hundreds of times as much."""
DELAY = 0.1
"""Seconds to the database and back."""


def p95(ask: Callable[[], None]) -> float:
    """Of what a steady customer waits, in seconds."""
    took, ends = [], time.monotonic() + SECONDS
    while (started := time.monotonic()) < ends:
        ask()
        took.append(time.monotonic() - started)
        time.sleep(max(0, PACE - took[-1]))
    return statistics.quantiles(took, n=20)[-1]


def ask_on(port: int, token: str, askers: int, over: Any, statuses: Any) -> None:
    """In a process of its own, so that the flood takes nothing from the customer's: counts what it hears."""
    client = Client(over_http("127.0.0.1", port), token)

    def ask() -> None:
        while not over.is_set():
            statuses.put(client.get("/orders?limit=1").status)
            time.sleep(PACE if askers == 1 else 0.02)

    threads = [threading.Thread(target=ask) for _ in range(askers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def asking(port: int, token: str, askers: int) -> Iterator[list[int]]:
    """Somebody asks for a list, again and again. Yields the statuses that they got."""
    processes = multiprocessing.get_context("spawn")
    over, statuses, heard = processes.Event(), processes.Queue(), list[int]()
    process = processes.Process(target=ask_on, args=[port, token, askers, over, statuses], daemon=True)
    process.start()
    try:
        heard.append(statuses.get(timeout=60))  # it has begun
        time.sleep(1.5)  # a burst of the limit's own size is everybody's right
        yield heard
    finally:
        over.set()
        while process.is_alive() or not statuses.empty():
            with suppress(queue.Empty):
                heard.append(statuses.get(timeout=0.1))
        process.join(30)


def slowed_down(
    folder: Path, variables: dict[str, str], user_pool: UserPool, limit: str, rounds: int
) -> tuple[float, list[int]]:
    """How many times longer the quiet tenant waits in the flood, in the best round; what the others heard.

    The best: whatever else the machine does can only make it longer. A round that is good enough is the last.
    """
    port = free_port()
    with hosts.serving("gcp", folder, {**variables, "RATE_LIMIT": limit}, "127.0.0.1", port):
        send = over_http("127.0.0.1", port)
        quiet = Client(send, user_pool.token(f"quiet-{uuid4().hex}"))
        loud = user_pool.token("loud")
        order_id = quiet.place().json["order"]["order_id"]
        heard: list[int] = []

        def ask() -> None:
            assert quiet.get(f"/orders/{order_id}").status == 200

        ratios = []
        for _ in range(rounds):
            with asking(port, loud, askers=1):
                usual = p95(ask)
            with asking(port, loud, FLOODERS) as statuses:
                ratios.append(p95(ask) / usual)
            heard += statuses
            if ratios[-1] < HARM:
                break
    return min(ratios), heard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flood") / "gcp"
    builds.build("gcp", folder)
    return folder


@pytest.fixture
def variables(environment: dict[str, str], database: Urls) -> Iterator[dict[str, str]]:
    """What the API reads, its database DELAY away: what a request holds up is a thread, and no processor."""
    sockets = Path(parse_dsn(database.app)["host"])
    with TemporaryDirectory(prefix="order-api-far-") as far, closing(Proxy(Path(far), sockets)) as proxy:
        proxy.delay = DELAY
        url = f"postgresql://orders_app@/orders?host={proxy.folder}"
        yield {**environment, "DATABASE_URL": url, "DB_POOL_SIZE": "8", "THREADS": "4", "WORKERS": "1"}


def test_flood_of_one_tenant_does_not_slow_another(
    folder: Path, variables: dict[str, str], user_pool: UserPool
) -> None:
    limited, refused = slowed_down(folder, variables, user_pool, LIMIT, ROUNDS)
    unlimited, served = slowed_down(folder, variables, user_pool, "", 1)

    assert set(refused) == {200, 429}
    assert set(served) == {200}
    assert refused.count(429) > refused.count(200)
    assert limited < HARM
    assert unlimited > HARM, "without a limit the same flood does harm"
