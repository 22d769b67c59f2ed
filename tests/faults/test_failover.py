"""Failover to a standby: no acknowledged order is lost, and the API needs no restart."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from migrations.migrate import migrate
from tests.support.servers import private_server, standby_of
from tests.support.waiting import until
from tools.client import Client, over_http
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server
from tools.soak.ledger import NO_ANSWER, STORED_ORDERS, TIMED_OUT, Ledger, Verdict
from tools.soak.load import CustomerFactory, Load
from tools.soak.report import MAX_RECOVERY_SECONDS
from tools.soak.soak import recovery
from tools.soak.soak_environment import MAX_REQUEST_SECONDS, Door, door, rows, token_issuer, url

pytestmark = pytest.mark.slow
READ_TIMEOUT = 2


@dataclass
class Cluster:
    """A primary, its synchronous standby, and the API configured with both addresses."""

    primary: Server
    standby: Server
    product: Door
    factory: CustomerFactory
    proxy: Proxy
    """In front of the primary."""

    def kill_primary(self) -> None:
        """As when its machine dies: its address refuses connections, so that libpq tries the next one."""
        self.primary.kill()
        self.proxy.close()

    def is_synchronous(self) -> bool:
        return rows(self.primary, "select sync_state from pg_stat_replication") == [("sync",)]


def in_url(first: int, second: int) -> dict[str, str]:
    return {"DATABASE_URL": url(first, second, more="?target_session_attrs=read-write")}


def in_variables(first: int, second: int) -> dict[str, str]:
    hosts = {"DB_HOST": "127.0.0.1,127.0.0.1", "DB_PORT": f"{first},{second}"}
    return {**hosts, "DB_NAME": "orders", "DB_USER": "orders_app"}


Addresses = Callable[[int, int], dict[str, str]]


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The parameter makes the variables that configure both addresses. The last test replaces the primary."""
    addresses: Addresses = request.param
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        primary = stack.enter_context(private_server())
        migrate(primary.urls.owner)
        standby = stack.enter_context(standby_of(primary))
        rows(primary, "alter system set synchronous_standby_names = '*'")
        rows(primary, "select pg_reload_conf()")
        tokens = stack.enter_context(token_issuer(folder))
        proxies = [Proxy(None, primary.folder, parses=False), Proxy(None, standby.folder, parses=False)]
        for proxy in proxies:
            stack.callback(proxy.close)
        variables = {
            **tokens.variables,
            **addresses(proxies[0].port, proxies[1].port),
            "DB_READ_TIMEOUT": str(READ_TIMEOUT),
        }
        product = stack.enter_context(door(folder / "product", variables, workers=2))
        factory = CustomerFactory([product.port], tokens.token, Ledger(), 0)
        cluster = Cluster(primary, standby, product, factory, proxies[0])
        until(cluster.is_synchronous)
        yield cluster


def assert_promises_kept(cluster: Cluster, *, reads_may_be_stale: bool = False) -> None:
    """No promise is broken by the rows of the standby."""
    ledger = cluster.factory.ledger
    stored = rows(cluster.standby, STORED_ORDERS)
    assert ledger.verdict(stored, reads_may_be_stale=reads_may_be_stale) == Verdict()
    assert ledger.unfinished() == 0
    assert ledger.unexpected == []
    assert not {NO_ANSWER, TIMED_OUT} & set(ledger.answers)
    assert ledger.slowest < MAX_REQUEST_SECONDS


@pytest.mark.parametrize("cluster", [in_url], indirect=True)
def test_standby_has_every_order_acknowledged_before_failover(cluster: Cluster) -> None:
    ledger = cluster.factory.ledger
    with Load(cluster.factory.customers()):
        until(lambda: ledger.acknowledged() > 50)
        cluster.kill_primary()
        until(lambda: ledger.answers[503] > 5)
        cluster.standby.promote()
        recovery_seconds = recovery(cluster.factory.customer("probe", "prober"), time.monotonic())
        before = ledger.acknowledged()
        until(lambda: ledger.acknowledged() > before + 50)

    assert_promises_kept(cluster)
    assert recovery_seconds < MAX_RECOVERY_SECONDS


@pytest.mark.parametrize("cluster", [in_variables], indirect=True)
def test_primary_acknowledges_nothing_without_its_synchronous_standby(cluster: Cluster) -> None:
    customer = Client(over_http("127.0.0.1", cluster.product.port), cluster.factory.token("acme", "alice"))
    assert customer.place(key="before").status == 201
    cluster.standby.stop()

    started = time.monotonic()
    answer = customer.place(key="meanwhile")

    assert (answer.status, answer.slug) == (503, "unavailable")
    assert READ_TIMEOUT <= time.monotonic() - started < READ_TIMEOUT + MAX_RECOVERY_SECONDS
    assert customer.get("/orders").status == 200

    cluster.standby.start()
    until(lambda: customer.place(key="meanwhile").status == 201)
    assert len(customer.get("/orders").json["orders"]) == 2
    rows(cluster.primary, "truncate orders, order_items, idempotency_keys")  # the ledger does not have them


@pytest.mark.parametrize("cluster", [in_variables], indirect=True)
def test_writes_move_to_new_primary_after_a_switchover(cluster: Cluster) -> None:
    """The old primary still answers, so a process that has not written since may read stale data."""
    ledger = cluster.factory.ledger
    with Load(cluster.factory.customers()):
        until(lambda: ledger.acknowledged() > 50)
        rows(cluster.primary, "alter system set default_transaction_read_only = on")
        rows(cluster.primary, "select pg_reload_conf()")
        until(lambda: ledger.answers[503] > 5)
        cluster.standby.promote()
        recovery_seconds = recovery(cluster.factory.customer("probe", "prober"), time.monotonic())
        before = ledger.acknowledged()
        until(lambda: ledger.acknowledged() > before + 50)

    assert_promises_kept(cluster, reads_may_be_stale=True)
    assert recovery_seconds < MAX_RECOVERY_SECONDS
