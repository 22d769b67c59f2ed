"""A process's shared objects are made on first use, never at import; close() discards them."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from chalicelib import composition
from chalicelib.caller import Caller
from chalicelib.orders.repository import OrderRepository
from local.database import Urls
from tests.support.servers import api_on, scope_of


@pytest.mark.parametrize("shared", [composition.connections, composition.rate_limiter])
def test_all_threads_get_the_same_object(database: Urls, shared: object) -> None:
    assert callable(shared)
    barrier = threading.Barrier(8)

    def get(_: int) -> object:
        barrier.wait(10)
        return shared()

    with api_on(database.app), ThreadPoolExecutor(8) as threads:
        assert len(set(map(id, threads.map(get, range(8))))) == 1


def test_importing_the_app_makes_nothing(environment: dict[str, str]) -> None:
    code = "import app; from chalicelib import composition as c; print(c._connections, c._rate_limiter)"
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )

    assert run.stdout.split() == ["None", "None"]


def test_close_ends_the_read_timeouts_thread(database: Urls) -> None:
    def count_threads() -> int:
        return sum(thread.name == "database-read-timeout" for thread in threading.enumerate())

    with api_on(database.app):
        before = count_threads()
        composition.connections().ping()
        assert count_threads() == before + 1
    deadline = time.monotonic() + 10
    while count_threads() > before and time.monotonic() < deadline:
        time.sleep(0.05)

    assert count_threads() == before


def test_a_repository_refuses_another_tenants_scope(database: Urls) -> None:
    with api_on(database.app), pytest.raises(ValueError, match="caller's tenant"):
        OrderRepository(Caller("acme", "alice"), scope_of("globex"))
