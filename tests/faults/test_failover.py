"""A standby takes over from its primary: nothing acknowledged is lost, and nobody restarts the API."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from local.database import apply_schema
from tests.support.servers import private_server, standby_of
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
class Pair:
    """A primary, its synchronous standby, and the product that knows both addresses."""

    primary: Server
    standby: Server
    product: Door
    factory: CustomerFactory

    def is_synchronous(self) -> bool:
        return rows(self.primary, "select sync_state from pg_stat_replication") == [("sync",)]


def in_a_url(first: int, second: int) -> dict[str, str]:
    return {"DATABASE_URL": url(first, second, more="?target_session_attrs=read-write")}


def in_variables(first: int, second: int) -> dict[str, str]:
    where = {"DB_HOST": "127.0.0.1,127.0.0.1", "DB_PORT": f"{first},{second}"}
    return {**where, "DB_NAME": "orders", "DB_USER": "orders_app"}


Addresses = Callable[[int, int], dict[str, str]]


@pytest.fixture
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """Its parameter says how the product is told both addresses."""
    addresses: Addresses = request.param
    with ExitStack() as stack:
        primary = stack.enter_context(private_server())
        apply_schema(primary.urls.owner)
        standby = stack.enter_context(standby_of(primary))
        rows(primary, "alter system set synchronous_standby_names = '*'")
        rows(primary, "select pg_reload_conf()")
        tokens = stack.enter_context(token_issuer(tmp_path))
        proxies = [Proxy(None, primary.folder, parses=False), Proxy(None, standby.folder, parses=False)]
        for proxy in proxies:
            stack.callback(proxy.close)
        variables = {
            **tokens.variables,
            **addresses(proxies[0].port, proxies[1].port),
            "DB_READ_TIMEOUT": str(READ_TIMEOUT),
        }
        product = stack.enter_context(door(tmp_path / "product", variables, workers=2))
        pair = Pair(primary, standby, product, CustomerFactory([product.port], tokens.token, Ledger(), 0))
        until(pair.is_synchronous)
        yield pair


def until(what: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)


def assert_kept(pair: Pair) -> None:
    """Every promise, as the standby has it."""
    ledger = pair.factory.ledger
    assert ledger.verdict(rows(pair.standby, STORED_ORDERS)) == Verdict(lost=0, doubled=0, crossed=0)
    assert ledger.unfinished() == 0
    assert ledger.unexpected == []
    assert not {NO_ANSWER, TIMED_OUT} & set(ledger.answers)
    assert ledger.slowest < MAX_REQUEST_SECONDS


@pytest.mark.parametrize("pair", [in_a_url, in_variables], indirect=True)
def test_standby_has_every_order_acknowledged_before_failover(pair: Pair) -> None:
    ledger = pair.factory.ledger
    with Load(pair.factory.customers()):
        until(lambda: ledger.acknowledged() > 50)
        pair.primary.kill()
        until(lambda: ledger.answers[503] > 5)
        pair.standby.promote()
        took = recovery(pair.factory.customer("probe", "prober"), time.monotonic())
        before = ledger.acknowledged()
        until(lambda: ledger.acknowledged() > before + 50)

    assert_kept(pair)
    assert took < MAX_RECOVERY_SECONDS


@pytest.mark.parametrize("pair", [in_variables], indirect=True)
def test_writes_move_to_new_primary_after_a_switchover(pair: Pair) -> None:
    """As after a switchover: the old one still answers, on connections that are at rest too."""
    ledger = pair.factory.ledger
    with Load(pair.factory.customers()):
        until(lambda: ledger.acknowledged() > 50)
        rows(pair.primary, "alter system set default_transaction_read_only = on")
        rows(pair.primary, "select pg_reload_conf()")
        until(lambda: ledger.answers[503] > 5)
        pair.standby.promote()
        took = recovery(pair.factory.customer("probe", "prober"), time.monotonic())
        before = ledger.acknowledged()
        until(lambda: ledger.acknowledged() > before + 50)

    assert_kept(pair)
    assert took < MAX_RECOVERY_SECONDS


@pytest.mark.parametrize("pair", [in_variables], indirect=True)
def test_primary_acknowledges_nothing_without_its_synchronous_standby(pair: Pair) -> None:
    customer = Client(over_http("127.0.0.1", pair.product.port), pair.factory.token("acme", "alice"))
    assert customer.place(key="before").status == 201
    pair.standby.stop()

    started = time.monotonic()
    answer = customer.place(key="meanwhile")

    assert (answer.status, answer.slug) == (503, "unavailable")
    assert READ_TIMEOUT <= time.monotonic() - started < READ_TIMEOUT + MAX_RECOVERY_SECONDS
    assert customer.get("/orders").status == 200

    pair.standby.start()
    until(lambda: customer.place(key="meanwhile").status == 201)
    assert len(customer.get("/orders").json["orders"]) == 2
