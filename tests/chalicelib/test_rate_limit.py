"""RATE_LIMIT: requests are counted per tenant, for all processes together."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib import rate_limit
from chalicelib.composition import rate_limiter
from local.database import Urls
from migrations.migrate import migrate
from tests.conftest import NewClient
from tests.support.servers import READ_ONLY, limited, private_server, scope_of, standby_of
from tools.client import Client
from tools.postgres_proxy import Proxy

Rows = Callable[..., list[tuple[Any, ...]]]


def test_no_requests_are_counted_without_a_limit(alice: Client, rows: Rows, tenant: str) -> None:
    answer = alice.place()

    assert not [name for name in answer.headers if name.startswith("ratelimit")]
    assert rows("select count(*) from rate_limits where tenant_id = %s", tenant) == [(0,)]


def test_every_response_has_the_remaining_limit(alice: Client, database: Urls) -> None:
    with limited(database.app, "5/h"):
        answers = [
            alice.place(),
            alice.get("/orders"),
            alice.get("/orders/none"),
            alice.get("/orders?limit=x"),
            alice.place({}),
        ]

    assert [answer.status for answer in answers] == [201, 200, 404, 400, 422]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"tenant";q=5;w=3600'}
    matches = [re.fullmatch(r'"tenant";r=(\d+);t=(\d+)', answer.headers["ratelimit"]) for answer in answers]
    assert [match and int(match[1]) for match in matches] == [4, 3, 2, 1, 0]


def test_request_over_the_limit_is_429_without_effect(
    alice: Client, database: Urls, rows: Rows, tenant: str
) -> None:
    with limited(database.app, "2/h"):
        answers = [alice.place() for _ in range(4)]

    assert [answer.status for answer in answers] == [201, 201, 429, 429]
    for answer in answers[2:]:
        assert answer.slug == "rate-limited"
        assert answer.headers["content-type"] == "application/problem+json"
        assert 1700 < int(answer.headers["retry-after"]) <= 1800, "2/h is one every 30 minutes"
        assert answer.headers["ratelimit"] == f'"tenant";r=0;t={answer.headers["retry-after"]}'
    assert rows("select count(*) from orders where tenant_id = %s", tenant) == [(2,)]


def test_health_and_rejected_tokens_are_not_counted(alice: Client, anonymous: Client, database: Urls) -> None:
    with limited(database.app, "1/h"):
        for _ in range(3):
            assert alice.get("/health/ready").status == 200
            assert anonymous.get("/orders").status == 401
        assert alice.get("/orders").status == 200
        assert alice.get("/orders").status == 429
        assert anonymous.get("/orders").status == 401, "the token is checked first"


def test_limit_replenishes_at_an_even_rate(alice: Client, database: Urls) -> None:
    """20/m is one every 3 s: long enough that a slow machine cannot turn the 429 into a 200."""
    with limited(database.app, "20/m"):
        assert [alice.get("/orders?limit=1").status for _ in range(21)] == [200] * 20 + [429]
        time.sleep(3.1)
        assert [alice.get("/orders?limit=1").status for _ in range(2)] == [200, 429]


def test_users_of_a_tenant_share_one_limit(client: NewClient, other_tenant: Client, database: Urls) -> None:
    with limited(database.app, "1/h"):
        assert client(user="alice").get("/orders").status == 200
        assert client(user="bob").get("/orders").status == 429
        assert other_tenant.get("/orders").status == 200


def test_processes_share_one_limit(alice: Client, database: Urls) -> None:
    """Counts are in the database; each `limited` starts with an empty process cache."""
    with limited(database.app, "3/h"):
        assert alice.get("/orders").status == 200
    with limited(database.app, "3/h"):
        assert [alice.get("/orders").status for _ in range(3)] == [200, 200, 429]
    with limited(database.app, "3/h"):
        assert alice.get("/orders").status == 429


def test_concurrent_requests_never_exceed_the_limit(alice: Client, database: Urls) -> None:
    with limited(database.app, "20/h"), ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda _: alice.get("/orders?limit=1").status, range(60)))

    assert sorted(statuses) == [200] * 20 + [429] * 40


@pytest.mark.parametrize("taken_until", ["0", "extract(epoch from now()) + 1800.5"], ids=["free", "soon"])
def test_request_losing_a_race_has_correct_retry_after(
    alice: Client, database: Urls, admin_url: str, rows: Rows, tenant: str, taken_until: str
) -> None:
    """Its statement's snapshot predates the other update and still shows free requests, or one in 0.5 s."""
    in_15_minutes = "extract(epoch from now()) + 3600 - 900"
    lock_waiters = "select count(*) from pg_locks where locktype = 'transactionid' and not granted"
    rows(f"insert into rate_limits values (%s, {taken_until}) returning true", tenant)
    with (
        limited(database.app, "2/h"),
        ThreadPoolExecutor(1) as pool,
        closing(psycopg2.connect(admin_url)) as other,
        other.cursor() as cursor,
    ):
        cursor.execute(f"update rate_limits set taken_until = {in_15_minutes} where tenant_id = %s", [tenant])
        rejected = pool.submit(alice.get, "/orders")
        while rows(lock_waiters) == [(0,)]:
            assert not rejected.done()
        other.commit()

        assert rejected.result().status == 429
        assert 880 < int(rejected.result().headers["retry-after"]) <= 900


def test_concurrent_first_requests_of_a_tenant_are_counted(client: NewClient, database: Urls) -> None:
    with limited(database.app, "1/h"), ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            new_client = client(tenant=f"new-{uuid4().hex}")
            barrier = threading.Barrier(8)

            def send(_: int, new_client: Client = new_client, barrier: threading.Barrier = barrier) -> int:
                barrier.wait(10)
                return new_client.get("/orders").status

            assert sorted(pool.map(send, range(8))) == [200] + [429] * 7


@pytest.fixture
def proxy(database: Urls) -> Iterator[Proxy]:
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
    ):
        yield proxy


def test_rejected_flood_costs_no_round_trips(alice: Client, proxy: Proxy) -> None:
    with limited(f"postgresql://orders_app@/orders?host={proxy.folder}", "3/h"):
        assert alice.get("/orders").status == 200
        with proxy.watched() as allowed:
            assert alice.get("/orders").status == 200
            assert allowed.trips == 2
        assert alice.get("/orders").status == 200
        with proxy.watched() as flood:
            assert {alice.place().status for _ in range(50)} == {429}

    assert flood.trips == 1, "only the first rejection asks the database"


def test_read_only_database_answers_reads_without_counting(alice: Client, database: Urls) -> None:
    with limited(f"{database.app}&options={READ_ONLY}", "1/h"):
        assert [alice.get("/orders").status for _ in range(3)] == [200] * 3
        assert alice.place().status == 503


@pytest.mark.slow
def test_standby_answers_reads_and_keeps_prepared_statements(
    alice: Client, proxied_standby: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """An unlogged table cannot even be read on a standby, which is another error than read-only."""
    with limited(f"postgresql://orders_app@/orders?host={proxied_standby.folder}", "1/h"):
        assert alice.get("/orders").status == 200
        with proxied_standby.watched() as traffic:
            assert [alice.get("/orders").status for _ in range(3)] == [200] * 3

        assert traffic.trips == 3, "counting is suspended for a while"
        assert traffic.messages.count("startup") == 0
        assert "execute" in traffic.statements[-1]
        assert alice.place().status == 503
    assert "DB_PREPARE" not in caplog.text


@pytest.fixture
def proxied_standby(database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (as root it makes the server's user)
    with private_server() as primary:
        migrate(primary.urls.owner)
        with (
            standby_of(primary) as standby,
            TemporaryDirectory(prefix="order-api-proxy-") as folder,
            closing(Proxy(Path(folder), standby.folder)) as proxy,
        ):
            yield proxy


def test_changed_limit_takes_effect_at_once(alice: Client, database: Urls) -> None:
    """A tenant that used up a long period does not wait for its end under a new, short period."""
    with limited(database.app, "1/h"):
        assert [alice.get("/orders").status for _ in range(2)] == [200, 429]
    with limited(database.app, "50/s"):
        assert alice.get("/orders").status == 200
        time.sleep(0.1)
        assert alice.get("/orders").status == 200


def test_failed_rate_check_is_not_counted(alice: Client, tenant: str) -> None:
    with limited("postgresql://orders_app@127.0.0.1:1/orders", "2/h"):
        next_turns = rate_limiter()._next_turns
        next_turns[tenant] = next_turn = time.time() - 1  # a rejected tenant may retry now
        assert alice.get("/orders").status == 503

        assert next_turns == {tenant: next_turn}


def test_setting_the_clock_back_locks_out_no_tenant(
    alice: Client, database: Urls, rows: Rows, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with limited(database.app, "2/m"):
        assert [alice.get("/orders").status for _ in range(3)] == [200, 200, 429]
        monkeypatch.setattr(rate_limit, "time", SimpleNamespace(time=lambda: time.time() - 3600))
        rejected = alice.get("/orders")
        assert (rejected.status, int(rejected.headers["retry-after"]) <= 30) == (429, True)
        deleted = rows("delete from rate_limits where tenant_id = %s returning true", tenant)

        monkeypatch.setattr(rate_limit, "time", SimpleNamespace(time=lambda: time.time() - 7200))
        assert (deleted, alice.get("/orders").status) == ([(True,)], 200)


def test_counting_resumes_after_the_clock_is_set_back(
    alice: Client, database: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with limited(f"{database.app}&options={READ_ONLY}", "1/h"):
        assert [alice.get("/orders").status for _ in range(2)] == [200] * 2
        uncounted_until = rate_limiter()._uncounted_until
    monkeypatch.setattr(rate_limit, "time", SimpleNamespace(time=lambda: time.time() - 3600))
    with limited(database.app, "1/h"):
        rate_limiter()._uncounted_until = uncounted_until
        assert [alice.get("/orders").status for _ in range(2)] == [200, 429]


def test_expired_refusals_are_evicted_first(database: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_REMEMBERED", 3)
    with limited(database.app, "1/h"):
        limiter = rate_limiter()
    for tenant, wait in (("a", 60.0), ("b", -1.0), ("c", 60.0), ("d", 60.0)):
        limiter._remember(tenant, wait)
    assert set(limiter._next_turns) == {"a", "c", "d"}

    limiter._remember("e", 60)

    assert set(limiter._next_turns) == {"e"}


def test_row_level_security_hides_other_tenants_rates(
    alice: Client, other_tenant: Client, database: Urls, tenant: str
) -> None:
    from chalicelib.database.statement import Statement

    with limited(database.app, "5/h"):
        alice.get("/orders"), other_tenant.get("/orders")
    unfiltered = Statement("select tenant_id from rate_limits", None)

    assert scope_of(tenant).read(unfiltered) == [(tenant,)]
