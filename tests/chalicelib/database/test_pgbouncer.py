"""PgBouncer in transaction mode: 500 clients share 20 server sessions and leave no session state."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest

from chalicelib.composition import connections
from migrations.migrate import migrate
from tests.support.cognito import UserPool, signed
from tests.support.servers import PgBouncer, api_on, pgbouncer, private_server
from tests.support.tenants import claims
from tests.support.waiting import until
from tools.client import Answer, Client, Transport, seed
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

CLIENTS, SESSIONS = 500, 20
API_CLIENTS, READERS = 480, 20
SESSION_LEFT = """
select pg_backend_pid(), array_remove(array[
    nullif('app.tenant_id=' || current_setting('app.tenant_id', true), 'app.tenant_id='),
    (select 'setting ' || string_agg(name, ', ') from pg_settings
     where source = 'session' and name <> all (%s)),
    (select 'prepared ' || string_agg(name, ', ') from pg_prepared_statements),
    (select 'lock' from pg_locks where pid = pg_backend_pid() and locktype = 'advisory' limit 1),
    (select 'temporary table' where pg_my_temp_schema() <> 0),
    (select 'channel ' || string_agg(c, ', ') from pg_listening_channels() c),
    (select 'cursor ' || string_agg(name, ', ') from pg_cursors where name <> '')
], null)"""
POOLERS_OWN = ["client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings", "application_name"]
"""Settings that PgBouncer copies from a client's startup message to the server session."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server without other clients."""
    with private_server() as server:
        migrate(server.urls.owner)
        with connected(server.urls.owner) as connection:
            connection.cursor().execute("alter role orders_app set synchronous_commit = off")
        yield server


@pytest.fixture
def pooler(server: Server) -> Iterator[PgBouncer]:
    with pgbouncer(server.urls.app, connections=SESSIONS, clients=CLIENTS + 1) as pooler:
        yield pooler


NewBuyer = Callable[[str, str], Client]


@pytest.fixture
def buyer(in_process: Transport, user_pool: UserPool) -> NewBuyer:
    """Makes a client for a tenant and a user."""
    return lambda tenant, user: Client(in_process, signed(claims(user_pool, tenant, user)))


def query_rows(url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(query, values or None)
        rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        return rows


def pool_counts(pooler: PgBouncer) -> dict[str, int]:
    """PgBouncer's counters of clients (`cl_`) and server sessions (`sv_`)."""
    with connected(pooler.console) as connection, connection.cursor() as cursor:
        cursor.execute("show pools")
        names = [column.name for column in cursor.description]
        (counts,) = [row for row in cursor.fetchall() if row[0] == "orders"]
    return {name: count for name, count in zip(names, counts, strict=True) if name[:3] in ("cl_", "sv_")}


def clients_are_open(pooler: PgBouncer) -> bool:
    counts = pool_counts(pooler)
    return counts["cl_active"] + counts["cl_waiting"] == CLIENTS


# Requests, and what is wrong with the answers


def isolation_errors(client: Client, tenant: str, user: str, foreign: str, rng: random.Random) -> list[str]:
    """Places an order with a key, then sends four random requests; returns what is wrong with the answers."""
    key, body = uuid4().hex, seed(customer_name=tenant)
    placed = client.place(body, key=key)
    if placed.status != 201:
        return [f"placing: {placed.status} {placed.body!r}"]
    order = placed.json["order"]
    cursor = client.get("/orders?limit=1").json["next_cursor"]
    after = f"&cursor={cursor}" if cursor else ""
    requests: dict[str, Callable[[], Answer]] = {
        "replay": lambda: client.place(body, key=key),
        "create": lambda: client.place(body),
        "get": lambda: client.get(f"/orders/{order['order_id']}"),
        "foreign": lambda: client.get(f"/orders/{foreign}"),
        "list": lambda: client.get("/orders?limit=20"),
        "cursor": lambda: client.get(f"/orders?limit=20{after}"),
        "offset": lambda: client.get("/orders?limit=20&offset=1"),
        "mine": lambda: client.get("/orders?limit=20&my_orders=true"),
        "ready": lambda: client.get("/health/ready"),
    }
    errors = [] if order["tenant_id"] == tenant else [f"placing: {order}"]
    for name in rng.sample(sorted(requests), 4):
        answer = requests[name]()
        if answer.status != {"replay": 201, "create": 201, "foreign": 404}.get(name, 200):
            errors.append(f"{name}: {answer.status} {answer.body!r}")
            continue
        orders = answer.json.get("orders", [answer.json["order"]] if "order" in answer.json else [])
        foreign_orders = [
            row for row in orders if (row["tenant_id"], row["customer_name"]) != (tenant, tenant)
        ]
        if name == "mine":
            foreign_orders += [row for row in orders if row["created_by"] != user]
        if name in ("replay", "get") and orders != [order]:
            foreign_orders += orders
        errors += [f"{name} of {tenant}: {row}" for row in foreign_orders]
    return errors


def unfiltered_read_errors(url: str, tenants: Sequence[str], stop: threading.Event) -> list[str]:
    """Reads orders without a tenant filter on sessions shared with the API; returns isolation failures."""
    rng, errors = random.Random(url), []
    with connected(url) as connection, connection.cursor() as cursor:
        while not stop.is_set():
            tenant = rng.choice(tenants)
            cursor.execute("select set_tenant(%s); select distinct tenant_id from orders", (tenant,))
            if cursor.fetchall() not in ([], [(tenant,)]):
                errors.append(f"{tenant} sees another tenant")
            cursor.execute("select current_setting('app.tenant_id', true), (select count(*) from orders)")
            if cursor.fetchone() not in (("", 0), (None, 0)):
                errors.append("a session without a tenant sees orders")
            time.sleep(0.02)
    return errors


def session_state(url: str, sessions: int = SESSIONS) -> dict[int, list[str]]:
    """The state left on each server session, by its pid; holds all sessions at once to reach each."""
    states = {}
    with ExitStack() as stack:
        for _ in range(sessions):
            cursor = stack.enter_context(connected(url)).cursor()
            cursor.execute("begin")
            cursor.execute(SESSION_LEFT, (POOLERS_OWN,))
            pid, state = cursor.fetchone()
            states[pid] = state
    return states


@contextmanager
def api_behind(pooler: PgBouncer) -> Iterator[None]:
    """The API of this process behind the pooler, with all its connections open."""
    limits = {"DB_POOL_SIZE": str(API_CLIENTS), "DB_POOL_MAX": str(API_CLIENTS)}
    with api_on(pooler.url, DB_PREPARE="off", DB_READ_TIMEOUT="100", DB_POOL_TIMEOUT="100", **limits):
        pool = connections().pool
        for connection in [pool.take() for _ in range(API_CLIENTS)]:
            pool.give_back(connection)
        yield


@contextmanager
def paused(pooler: PgBouncer) -> Iterator[None]:
    """PAUSE: clients queue for a server session until RESUME."""
    query_rows(pooler.console, "pause orders")
    try:
        yield
    finally:
        query_rows(pooler.console, "resume orders")


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "by row-level security alone"])
def test_500_clients_on_20_sessions_stay_tenant_isolated(
    server: Server, pooler: PgBouncer, buyer: NewBuyer, drop_tenant_filter: Callable[[], None], filtered: bool
) -> None:
    """Without the filter, an answer contains the rows of whichever tenant its session is bound to."""
    if not filtered:
        drop_tenant_filter()
    tenants = [f"pooled-{uuid4().hex[:12]}" for _ in range(25)]
    stop, counts = threading.Event(), []

    def sessions() -> int:
        count = "select count(*) from pg_stat_activity where usename = 'orders_app'"
        return int(query_rows(server.url("postgres"), count)[0][0])

    def count() -> None:
        while not stop.wait(0.1):
            counts.append(sessions())

    with ExitStack() as stack:
        stack.enter_context(api_behind(pooler))
        threads = stack.enter_context(ThreadPoolExecutor(CLIENTS + 1))
        stack.callback(stop.set)
        clients = {(tenant, user): buyer(tenant, user) for tenant in tenants for user in ("alice", "bob")}
        victims = {tenant: clients[tenant, "bob"].place(seed(customer_name=tenant)) for tenant in tenants}
        foreign = {tenant: answer.json["order"]["order_id"] for tenant, answer in victims.items()}

        def send_requests(number: int) -> list[str]:
            rng = random.Random(number)
            (tenant, other), user = rng.sample(tenants, 2), rng.choice(("alice", "bob"))
            return isolation_errors(clients[tenant, user], tenant, user, foreign[other], rng)

        readers = [threads.submit(unfiltered_read_errors, pooler.url, tenants, stop) for _ in range(READERS)]
        until(lambda: clients_are_open(pooler), 30)
        with paused(pooler):
            buyers = [threads.submit(send_requests, number) for number in range(API_CLIENTS)]
            until(lambda: pool_counts(pooler)["cl_waiting"] == CLIENTS, 30)
        threads.submit(count)
        errors = [error for future in buyers for error in future.result()]
        assert clients_are_open(pooler)
        stop.set()
        assert errors + [error for future in readers for error in future.result()] == []
    assert max(counts) == SESSIONS
    states = session_state(pooler.url)
    assert len(states) == SESSIONS
    assert set(map(tuple, states.values())) == {()}


def test_pooler_sends_no_set_for_our_connections(server: Server, buyer: NewBuyer) -> None:
    """The client's startup parameters equal the server session's, so that PgBouncer has no SET to send."""
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), server.folder)) as proxy,
    ):
        for path in (Path(folder), *Path(folder).iterdir()):
            path.chmod(0o777)  # PgBouncer runs as another user
        with (
            pgbouncer(f"postgresql://orders_app@/orders?host={folder}") as pooler,
            api_on(pooler.url, DB_PREPARE="off"),
        ):
            customer = buyer("acme", "alice")
            assert customer.get("/orders").status == 200
            with proxy.watched() as traffic:
                assert [customer.get("/orders").status for _ in range(5)] == [200] * 5

    assert len(traffic.statements) == 5
    assert [text for text in traffic.statements if text.upper().startswith("SET ")] == []


def test_order_timing_out_in_pooler_queue_is_discarded(
    server: Server, pooler: PgBouncer, buyer: NewBuyer
) -> None:
    alice = buyer("waiting", "alice")
    with api_on(pooler.url, DB_PREPARE="off", DB_READ_TIMEOUT="1"):
        assert alice.get("/health/ready").status == 200
        with paused(pooler):
            timed_out = alice.place()
        later = alice.place()

    assert (timed_out.status, later.status) == (503, 201)
    stored = query_rows(
        server.url("postgres"), "select order_id::text from orders where tenant_id = 'waiting'"
    )
    assert stored == [(later.json["order"]["order_id"],)]


# Negative controls: the checks above fail when they should


def test_tenant_left_on_a_pooled_session_is_detected(
    server: Server, buyer: NewBuyer, drop_tenant_filter: Callable[[], None]
) -> None:
    """With a set_tenant() that uses SET instead of SET LOCAL."""
    drop_tenant_filter()
    stop = threading.Event()
    with connected(server.urls.owner) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_get_functiondef('set_tenant(text)'::regprocedure)")
        (definition,) = cursor.fetchone()
        cursor.execute(definition.replace("set local", "set"))
        try:
            with pgbouncer(server.urls.app, connections=1) as pooler:
                with api_on(pooler.url, DB_PREPARE="off"):
                    assert buyer("leaking", "alice").place().status == 201
                threading.Timer(0.2, stop.set).start()
                errors = unfiltered_read_errors(pooler.url, ["leaking"], stop)
                states = session_state(pooler.url, 1)
        finally:
            cursor.execute(definition)

    assert set(errors) == {"a session without a tenant sees orders"}
    assert list(states.values()) == [["app.tenant_id=leaking"]]


@pytest.mark.parametrize(
    ("statement", "seen"),
    [
        ("set work_mem = '8MB'", "setting work_mem"),
        ("prepare p as select 1", "prepared p"),
        ("select pg_advisory_lock(7)", "lock"),
        ("create temporary table t ()", "temporary table"),
        ("listen c", "channel c"),
        ("declare d cursor with hold for select 1", "cursor d"),
    ],
)
def test_any_state_left_on_a_session_is_detected(server: Server, statement: str, seen: str) -> None:
    with pgbouncer(server.urls.app, connections=1) as pooler:
        query_rows(pooler.url, statement)

        assert list(session_state(pooler.url, 1).values()) == [[seen]]
