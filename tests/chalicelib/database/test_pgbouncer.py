"""PgBouncer in transaction mode: 500 clients take turns with 20 sessions, and leave nothing on them."""

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
from local.database import apply_schema
from tests.support.cognito import UserPool, signed
from tests.support.servers import PgBouncer, api_on, pgbouncer, private_server
from tests.support.tenants import claims
from tests.support.waiting import until
from tools.client import Answer, Client, Transport, seed
from tools.postgres_proxy import Proxy
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

CLIENTS, SESSIONS = 500, 20
OF_THE_API, RAW = 480, 20
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
"""What PgBouncer itself sets on a session, to what its client has said at its start."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that nobody else is connected to."""
    with private_server() as server:
        apply_schema(server.urls.owner)
        with connected(server.urls.owner) as connection:
            connection.cursor().execute("alter role orders_app set synchronous_commit = off")
        yield server


@pytest.fixture
def pooler(server: Server) -> Iterator[PgBouncer]:
    with pgbouncer(server.urls.app, connections=SESSIONS, clients=CLIENTS + 1) as pooler:
        yield pooler


Buy = Callable[[str, str], Client]


@pytest.fixture
def buyer(in_process: Transport, user_pool: UserPool) -> Buy:
    """A client of this user of this tenant."""
    return lambda tenant, user: Client(in_process, signed(claims(user_pool, tenant, user)))


def asked(url: str, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(query, values or None)
        found: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
        return found


def in_the_pool(pooler: PgBouncer) -> dict[str, int]:
    """PgBouncer's own count of clients (`cl_`) and sessions (`sv_`)."""
    with connected(pooler.console) as connection, connection.cursor() as cursor:
        cursor.execute("show pools")
        names = [column.name for column in cursor.description]
        (counts,) = [row for row in cursor.fetchall() if row[0] == "orders"]
    return {name: count for name, count in zip(names, counts, strict=True) if name[:3] in ("cl_", "sv_")}


def clients_are_open(pooler: PgBouncer) -> bool:
    counts = in_the_pool(pooler)
    return counts["cl_active"] + counts["cl_waiting"] == CLIENTS


# What a buyer does, and what is wrong with the answers


def bought(client: Client, tenant: str, user: str, foreign: str, chance: random.Random) -> list[str]:
    """A keyed order, and then some of everything else; each answer must be this tenant's alone."""
    key, body = uuid4().hex, seed(customer_name=tenant)
    placed = client.place(body, key=key)
    if placed.status != 201:
        return [f"placing: {placed.status} {placed.body!r}"]
    order = placed.json["order"]
    cursor = client.get("/orders?limit=1").json["next_cursor"]
    further = f"&cursor={cursor}" if cursor else ""
    requests: dict[str, Callable[[], Answer]] = {
        "replay": lambda: client.place(body, key=key),
        "create": lambda: client.place(body),
        "get": lambda: client.get(f"/orders/{order['order_id']}"),
        "foreign": lambda: client.get(f"/orders/{foreign}"),
        "list": lambda: client.get("/orders?limit=20"),
        "cursor": lambda: client.get(f"/orders?limit=20{further}"),
        "offset": lambda: client.get("/orders?limit=20&offset=1"),
        "mine": lambda: client.get("/orders?limit=20&my_orders=true"),
        "ready": lambda: client.get("/health/ready"),
    }
    wrong = [] if order["tenant_id"] == tenant else [f"placing: {order}"]
    for name in chance.sample(sorted(requests), 4):
        answer = requests[name]()
        if answer.status != {"replay": 201, "create": 201, "foreign": 404}.get(name, 200):
            wrong.append(f"{name}: {answer.status} {answer.body!r}")
            continue
        seen = answer.json.get("orders", [answer.json["order"]] if "order" in answer.json else [])
        strange = [each for each in seen if (each["tenant_id"], each["customer_name"]) != (tenant, tenant)]
        if name == "mine":
            strange += [each for each in seen if each["created_by"] != user]
        if name in ("replay", "get") and seen != [order]:
            strange += seen
        wrong += [f"{name} of {tenant}: {each}" for each in strange]
    return wrong


def looked(url: str, tenants: Sequence[str], until: threading.Event) -> list[str]:
    """What the API's role sees that should not, without any filter, on sessions between others' requests."""
    chance, wrong = random.Random(url), []
    with connected(url) as connection, connection.cursor() as cursor:
        while not until.is_set():
            tenant = chance.choice(tenants)
            cursor.execute("select set_tenant(%s); select distinct tenant_id from orders", (tenant,))
            if cursor.fetchall() not in ([], [(tenant,)]):
                wrong.append(f"{tenant} sees others")
            cursor.execute("select current_setting('app.tenant_id', true), (select count(*) from orders)")
            if cursor.fetchone() not in (("", 0), (None, 0)):
                wrong.append("nobody sees somebody's orders")
            time.sleep(0.02)
    return wrong


def left(url: str, sessions: int = SESSIONS) -> dict[int, list[str]]:
    """What rests on each session behind the pooler, all of them held at once."""
    found = {}
    with ExitStack() as held:
        for _ in range(sessions):
            cursor = held.enter_context(connected(url)).cursor()
            cursor.execute("begin")
            cursor.execute(SESSION_LEFT, (POOLERS_OWN,))
            pid, rests = cursor.fetchone()
            found[pid] = rests
    return found


@contextmanager
def api_behind(pooler: PgBouncer) -> Iterator[None]:
    """The API of this process with all its connections open."""
    limits = {"DB_POOL_SIZE": str(OF_THE_API), "DB_POOL_MAX": str(OF_THE_API)}
    with api_on(pooler.url, DB_PREPARE="off", DB_READ_TIMEOUT="100", DB_POOL_TIMEOUT="100", **limits):
        pool = connections().pool
        for connection in [pool.take() for _ in range(OF_THE_API)]:
            pool.give_back(connection)
        yield


@contextmanager
def paused(pooler: PgBouncer) -> Iterator[None]:
    """Nobody gets a session; whoever asks meanwhile waits."""
    asked(pooler.console, "pause orders")
    try:
        yield
    finally:
        asked(pooler.console, "resume orders")


@pytest.mark.parametrize("filtered", [True, False], ids=["filtered", "by row-level security alone"])
def test_500_clients_on_20_sessions_stay_tenant_isolated(
    server: Server, pooler: PgBouncer, buyer: Buy, drop_tenant_filter: Callable[[], None], filtered: bool
) -> None:
    """Where the statements name no tenant, an answer shows which tenant its session was bound to."""
    if not filtered:
        drop_tenant_filter()
    tenants = [f"pooled-{uuid4().hex[:12]}" for _ in range(25)]
    done, counted = threading.Event(), []

    def sessions() -> int:
        count = "select count(*) from pg_stat_activity where usename = 'orders_app'"
        return int(asked(server.url("postgres"), count)[0][0])

    def count() -> None:
        while not done.wait(0.1):
            counted.append(sessions())

    with ExitStack() as stack:
        stack.enter_context(api_behind(pooler))
        threads = stack.enter_context(ThreadPoolExecutor(CLIENTS + 1))
        stack.callback(done.set)
        clients = {(tenant, user): buyer(tenant, user) for tenant in tenants for user in ("alice", "bob")}
        victims = {tenant: clients[tenant, "bob"].place(seed(customer_name=tenant)) for tenant in tenants}
        foreign = {tenant: answer.json["order"]["order_id"] for tenant, answer in victims.items()}

        def buy(number: int) -> list[str]:
            chance = random.Random(number)
            (tenant, other), user = chance.sample(tenants, 2), chance.choice(("alice", "bob"))
            return bought(clients[tenant, user], tenant, user, foreign[other], chance)

        looking = [threads.submit(looked, pooler.url, tenants, done) for _ in range(RAW)]
        until(lambda: clients_are_open(pooler), 30)
        with paused(pooler):
            buying = [threads.submit(buy, number) for number in range(OF_THE_API)]
            until(lambda: in_the_pool(pooler)["cl_waiting"] == CLIENTS, 30)
        threads.submit(count)
        wrong = [each for future in buying for each in future.result()]
        assert clients_are_open(pooler)
        done.set()
        assert wrong + [each for future in looking for each in future.result()] == []
    assert max(counted) == SESSIONS
    rests = left(pooler.url)
    assert len(rests) == SESSIONS
    assert set(map(tuple, rests.values())) == {()}


def test_pooler_sends_no_set_for_our_connections(server: Server, buyer: Buy) -> None:
    """What we say at the start is what its sessions begin with, to the letter."""
    with (
        TemporaryDirectory(prefix="order-api-wire-") as folder,
        closing(Proxy(Path(folder), server.folder)) as proxy,
    ):
        for each in (Path(folder), *Path(folder).iterdir()):
            each.chmod(0o777)  # PgBouncer is another user
        with (
            pgbouncer(f"postgresql://orders_app@/orders?host={folder}") as pooler,
            api_on(pooler.url, DB_PREPARE="off"),
        ):
            customer = buyer("acme", "alice")
            assert customer.get("/orders").status == 200
            with proxy.watched() as traffic:
                assert [customer.get("/orders").status for _ in range(5)] == [200] * 5

    assert len(traffic.statements) == 5
    assert [each for each in traffic.statements if each.upper().startswith("SET ")] == []


def test_order_timing_out_in_pooler_queue_is_discarded(server: Server, pooler: PgBouncer, buyer: Buy) -> None:
    alice = buyer("waiting", "alice")
    with api_on(pooler.url, DB_PREPARE="off", DB_READ_TIMEOUT="1"):
        assert alice.get("/health/ready").status == 200
        with paused(pooler):
            waiting = alice.place()
        later = alice.place()

    assert (waiting.status, later.status) == (503, 201)
    placed = asked(server.url("postgres"), "select order_id::text from orders where tenant_id = 'waiting'")
    assert placed == [(later.json["order"]["order_id"],)]


# The checks above can fail


def test_tenant_left_on_a_pooled_session_is_detected(
    server: Server, buyer: Buy, drop_tenant_filter: Callable[[], None]
) -> None:
    """Where set_tenant() would name it for the rest of the session."""
    drop_tenant_filter()
    done = threading.Event()
    with connected(server.urls.owner) as connection, connection.cursor() as cursor:
        cursor.execute("select pg_get_functiondef('set_tenant(text)'::regprocedure)")
        (sound,) = cursor.fetchone()
        cursor.execute(sound.replace("set local", "set"))
        try:
            with pgbouncer(server.urls.app, connections=1) as pooler:
                with api_on(pooler.url, DB_PREPARE="off"):
                    assert buyer("leaking", "alice").place().status == 201
                threading.Timer(0.2, done.set).start()
                wrong = looked(pooler.url, ["leaking"], done)
                rests = left(pooler.url, 1)
        finally:
            cursor.execute(sound)

    assert set(wrong) == {"nobody sees somebody's orders"}
    assert list(rests.values()) == [["app.tenant_id=leaking"]]


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
        asked(pooler.url, statement)

        assert list(left(pooler.url, 1).values()) == [[seen]]
