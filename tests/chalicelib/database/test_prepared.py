"""Prepared statements: used on connections that no pooler shares; losing them fails no request."""

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from chalicelib import composition
from chalicelib.composition import connections
from chalicelib.database.errors import Refused
from chalicelib.database.statement import Statement
from local.database import Urls
from tests.conftest import NewClient
from tests.support.servers import PgBouncer, api_on, pgbouncer, private_server, scope_of
from tools.client import Client, item, seed
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected

PREPARE = re.compile(r"^prepare (order_api_\w+) as ", re.MULTILINE)
EXECUTE = re.compile(r"^execute (order_api_\w+) ", re.MULTILINE)
Execute = Callable[[str], None]


@pytest.fixture
def proxy(app: object, database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (its environment)
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}"),
    ):
        yield proxy


@pytest.fixture
def own_server() -> Iterator[Server]:
    with private_server() as server:
        from migrations.migrate import migrate

        migrate(server.urls.owner)
        yield server


@pytest.fixture
def on_the_session(app: object, database: Urls) -> Iterator[Execute]:  # noqa: ARG001 (its environment)
    """Runs a command on the API's only pooled session, as a pooler's reset would."""

    def execute(command: str) -> None:
        pool = connections().pool
        connection = pool.take()
        with connection.driver.cursor() as cursor:
            cursor.execute(command)
        pool.give_back(connection)

    with api_on(database.app, DB_POOL_SIZE="1", DB_POOL_MAX="1"):
        yield execute


def every_request(client: Client) -> list[int]:
    """Sends a request of each kind; returns the statuses."""
    key = uuid4().hex
    placed = client.place(key=key)
    cursor = client.get("/orders?limit=1").json["next_cursor"] if client.place().status == 201 else ""
    return [
        placed.status,
        client.place(key=key).status,
        client.place(seed(items=[item()] * 3)).status,
        client.get(f"/orders/{placed.json['order']['order_id']}").status,
        client.get("/orders").status,
        client.get("/orders?offset=1").status,
        client.get("/orders?my_orders=true").status,
        client.get(f"/orders?limit=1&cursor={cursor}").status,
    ]


ALL_OK = [201, 201, 201, 200, 200, 200, 200, 200]


def test_statement_is_prepared_per_connection_on_first_use(alice: Client, proxy: Proxy) -> None:
    with proxy.watched() as first:
        alice.place()
    with proxy.watched() as second:
        alice.place()

    (string,) = first.statements
    assert PREPARE.findall(string) == EXECUTE.findall(string)
    assert len(EXECUTE.findall(string)) == 2
    assert [EXECUTE.findall(text) for text in second.statements] == [EXECUTE.findall(string)]
    assert "prepare" not in second.statements[0]
    assert "insert" not in second.statements[0].lower()


def test_offset_pages_are_not_prepared(alice: Client, proxy: Proxy) -> None:
    with proxy.watched() as traffic:
        alice.get("/orders?offset=1")

    assert "execute" not in traffic.statements[0]


def test_nothing_is_prepared_with_db_prepare_off(alice: Client, proxy: Proxy) -> None:
    url = f"postgresql://orders_app@/orders?host={proxy.folder}"

    with api_on(url, DB_PREPARE="off"), proxy.watched() as traffic:
        assert every_request(alice) == ALL_OK

    assert len(traffic.statements) > 8
    assert not re.search("prepare|execute", "\n".join(traffic.statements))


def test_different_statement_texts_get_different_names() -> None:
    """Behind a pooler, a release must not execute a statement that another release prepared."""
    one, other = (Statement("", f"select {n}, %(tenant_id)s") for n in (1, 2))

    assert one.name != other.name
    assert one.name == Statement("", one.prepared).name


@pytest.mark.parametrize("command", ["discard all", "deallocate all"])
def test_session_reset_prepares_again_without_errors(
    alice: Client, on_the_session: Execute, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert every_request(alice) == ALL_OK

    for _ in range(3):
        on_the_session(command)
        assert every_request(alice) == ALL_OK

    assert "DB_PREPARE" not in caplog.text, "prepared again, not disabled"


def test_lost_prepared_statement_places_the_order_once(
    alice: Client, on_the_session: Execute, tenant: str, rows: Callable[..., list[tuple[int]]]
) -> None:
    alice.place()
    on_the_session("deallocate all")

    assert alice.place().status == 201

    assert rows("select count(*) from orders where tenant_id = %s", tenant) == [(2,)]


def test_existing_statement_name_causes_no_errors(
    alice: Client, on_the_session: Execute, caplog: pytest.LogCaptureFixture
) -> None:
    """Happens behind a pooler, when another client prepared it on the same server session."""
    from chalicelib.orders.statements import ORDER_BY_ID

    on_the_session(f"prepare {ORDER_BY_ID.name} as select 1")

    assert every_request(alice) == ALL_OK
    assert "DB_PREPARE" not in caplog.text


def test_resetting_all_sessions_keeps_prepared_statements_enabled(
    alice: Client, database: Urls, caplog: pytest.LogCaptureFixture
) -> None:
    with api_on(database.app, DB_POOL_SIZE="3", DB_POOL_MAX="3"):
        pool = connections().pool
        taken = [pool.take() for _ in range(3)]
        for connection in taken:
            pool.give_back(connection)
            assert every_request(alice) == ALL_OK  # uses the one returned last
        for connection in taken:
            connection.driver.cursor().execute("deallocate all")

        assert every_request(alice) == ALL_OK

    assert "DB_PREPARE" not in caplog.text


@pytest.mark.slow
def test_error_in_unprepared_statement_keeps_preparing_enabled(
    alice: Client, own_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    unsupported = Statement("do $$ begin raise feature_not_supported; end $$", None)
    with api_on(own_server.urls.app):
        assert every_request(alice) == ALL_OK
        with pytest.raises(Refused):
            scope_of("acme").read(unsupported)

    assert "DB_PREPARE" not in caplog.text


def test_new_pool_resumes_prepared_statements(
    alice: Client, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections(), "_may_prepare", False)
    with proxy.watched() as disabled:
        alice.place()

    composition.close()
    with proxy.watched() as new_pool:
        alice.place()

    assert ["prepare" in traffic.statements[0] for traffic in (disabled, new_pool)] == [False, True]


def test_no_connection_executes_prepared_statements_once_disabled(
    alice: Client, on_the_session: Execute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes a connection that was in use when preparing was disabled."""
    assert every_request(alice) == ALL_OK
    on_the_session("deallocate all")
    monkeypatch.setattr(connections(), "_may_prepare", False)
    in_use_before = connections().pool.take()
    connections().pool.give_back(in_use_before)

    assert every_request(alice) == ALL_OK
    assert not in_use_before.driver.closed


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "alter table orders add column note text",
        "alter table orders alter column customer_name type text",
        "alter table orders drop constraint orders_currency_code",
        "drop index orders_created_by_idx",
        "analyze",
        "drop policy tenant_isolation on orders; create policy tenant_isolation on orders"
        " using (tenant_id = current_setting('app.tenant_id', true))",
    ],
)
def test_schema_change_causes_no_errors(alice: Client, own_server: Server, change: str) -> None:
    with api_on(own_server.urls.app):
        assert every_request(alice) == ALL_OK

        with connected(own_server.urls.owner) as connection:
            connection.cursor().execute(change)

        assert every_request(alice) == ALL_OK


@pytest.mark.slow
def test_changed_result_columns_prepare_the_statement_again(alice: Client, own_server: Server) -> None:
    text = "select * from schema_version where %(tenant_id)s <> ''"
    statement = Statement(text, text)
    with api_on(own_server.urls.app):
        scope = scope_of("acme")
        before = scope.read(statement)

        with connected(own_server.urls.owner) as connection:
            connection.cursor().execute("alter table schema_version add column note text default 'n'")

        assert scope.read(statement) == [(*row, "n") for row in before]
        assert alice.place().status == 201


def test_key_conflict_while_preparing_keeps_statements_prepared(alice: Client, proxy: Proxy) -> None:
    key = uuid4().hex
    alice.place(key=key)
    composition.close()

    with proxy.watched() as traffic:
        assert alice.place(key=key).headers["idempotent-replayed"] == "true"
        assert alice.place(key=uuid4().hex).status == 201

    prepared = [name for string in traffic.statements for name in PREPARE.findall(string)]
    assert len(prepared) == len(set(prepared)) == 4
    assert traffic.messages.count("startup") == 1


@pytest.mark.slow
def test_timeout_while_preparing_does_not_fail_later_requests(alice: Client, own_server: Server) -> None:
    with api_on(own_server.urls.app, DB_POOL_MAX="1", DB_POOL_SIZE="1"):
        with connected(own_server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute("begin; lock table orders in access exclusive mode")
            assert alice.place().status == 503
            cursor.execute("rollback")

        assert every_request(alice) == ALL_OK


# Behind PgBouncer in transaction mode


@pytest.fixture
def pooler(database: Urls) -> Iterator[PgBouncer]:
    with pgbouncer(database.app) as server:
        yield server


def concurrent_errors(client: NewClient, threads: int = 8, requests: int = 160) -> list[str]:
    """Sends requests of four tenants from several threads; returns what is wrong with the answers."""
    tenants = [f"pooled-{uuid4().hex[:12]}" for _ in range(4)]
    clients = [client(tenant=tenant) for tenant in tenants]

    def send_requests(number: int) -> list[str]:
        tenant, own_client = tenants[number % 4], clients[number % 4]
        answer = own_client.place()
        if answer.status != 201:
            return [f"place: {answer.status}"]
        read = own_client.get(f"/orders/{answer.json['order']['order_id']}")
        tenants_seen = {
            order["tenant_id"] for order in own_client.get("/orders?limit=5").json.get("orders", [{}])
        }
        return (
            [] if read.status == 200 and tenants_seen == {tenant} else [f"{read.status}, saw {tenants_seen}"]
        )

    with ThreadPoolExecutor(threads) as pool:
        return [error for errors in pool.map(send_requests, range(requests)) for error in errors]


def test_pooler_disables_prepared_statements_without_errors(
    client: NewClient, pooler: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    """DB_PREPARE is unset, and the address does not match a known pooler's."""
    with caplog.at_level(logging.WARNING, "order-api"), api_on(pooler.url):
        assert concurrent_errors(client) == []

    assert "set DB_PREPARE=off" in caplog.text


def test_db_prepare_off_prepares_nothing_behind_a_pooler(
    client: NewClient, pooler: PgBouncer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "order-api"), api_on(pooler.url, DB_PREPARE="off"):
        assert concurrent_errors(client) == []

    assert caplog.text == ""
    with psycopg2.connect(pooler.url) as connection, connection.cursor() as cursor:
        cursor.execute("select name from pg_prepared_statements where name like 'order%'")
        assert cursor.fetchall() == []
