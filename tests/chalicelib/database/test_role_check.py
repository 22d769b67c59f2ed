"""The API refuses a database role that bypasses row-level security, and logs how to fix it."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from chalicelib.composition import connections
from migrations.migrate import migrate
from tests.support.servers import api_on, pgbouncer, private_server
from tools.client import Answer, Client
from tools.postgres_proxy import Proxy
from tools.postgres_server import INSTALLED, Server, connected

pytestmark = pytest.mark.slow

TABLES = ("orders", "order_items", "idempotency_keys", "rate_limits")
ABSENT = "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"
SESSIONS = "select count(*) from pg_stat_activity where application_name = 'order-api'"
ADVICE = ". Log in as orders_app, which schema.sql makes; for an experiment set DB_ALLOW_UNSAFE_ROLE=1"


@dataclass(frozen=True)
class Unsafe:
    """An unsafe role or table: the SQL that makes it, the SQL that undoes it, and the logged reason."""

    role: str
    reason: str
    setup: str = "select"
    cleanup: str = "select"


def created_role(role: str, attributes: str, reason: str, member_of: str) -> Unsafe:
    setup = f"create role {role} login {attributes}; grant {member_of} to {role}"
    return Unsafe(role, reason, setup, f"drop owned by {role}; drop role {role}")


UNSAFE = {
    "a superuser": Unsafe("postgres", "is a superuser"),
    "BYPASSRLS": created_role("careless", "bypassrls", "has BYPASSRLS", "orders_app"),
    "a member of a superuser": created_role(
        "aide", "", "may become postgres, which is a superuser", "orders_app, postgres"
    ),
    "a member of a member of a role with BYPASSRLS": Unsafe(
        "aide",
        "may become careless, which has BYPASSRLS",
        "create role careless bypassrls; create role between noinherit; create role aide login;"
        "grant careless to between; grant between, orders_app to aide",
        "drop role aide; drop role between; drop role careless",
    ),
    "the owner": Unsafe("orders_owner", "owns the table idempotency_keys"),
    "a member of the owner": created_role("deputy", "", "owns the table idempotency_keys", "orders_owner"),
    "a member that inherits nothing": created_role(
        "sleeper", "noinherit", "owns the table idempotency_keys", "orders_owner"
    ),
    **{
        f"the owner of {table} alone": Unsafe(
            "orders_app",
            f"owns the table {table}",
            f"grant create on schema public to orders_app; alter table {table} owner to orders_app",
            f"alter table {table} owner to orders_owner; revoke create on schema public from orders_app;"
            f"grant select, insert, update on {table} to orders_app",
        )
        for table in ("orders", "rate_limits")
    },
    **{
        f"row-level security off on {table}": Unsafe(
            "orders_app",
            f"sees every tenant: row-level security is off on {table}",
            f"alter table {table} disable row level security",
            f"alter table {table} enable row level security",
        )
        for table in TABLES
    },
    **{
        f"row-level security not forced on {table}": Unsafe(
            "orders_app",
            f"is not enough: row-level security is not forced on {table}",
            f"alter table {table} no force row level security",
            f"alter table {table} force row level security",
        )
        for table in TABLES
    },
    "row_security off": Unsafe(
        "orders_app",
        "has row_security = off, and PostgreSQL refuses its statements",
        "alter role orders_app set row_security = off",
        "alter role orders_app reset row_security",
    ),
    "a policy that was rewritten": Unsafe(
        "orders_app",
        "may do more than its tenant by the policy tenant_isolation on orders",
        "alter policy tenant_isolation on orders using (true)",
        "alter policy tenant_isolation on orders using (tenant_id = current_setting('app.tenant_id', true))",
    ),
    "a policy with an exception": Unsafe(
        "orders_app",
        "may do more than its tenant by the policy tenant_isolation on orders",
        "alter policy tenant_isolation on orders"
        " using (tenant_id = current_setting('app.tenant_id', true) or tenant_id = 'acme')",
        "alter policy tenant_isolation on orders using (tenant_id = current_setting('app.tenant_id', true))",
    ),
    "a policy without a write check": Unsafe(
        "orders_app",
        "may do more than its tenant by the policy tenant_isolation on orders",
        "alter policy tenant_isolation on orders with check (true)",
        "alter policy tenant_isolation on orders"
        " with check (tenant_id = current_setting('app.tenant_id', true))",
    ),
    "another policy without a write check": Unsafe(
        "orders_app",
        "may do more than its tenant by the policy import on orders",
        "create policy import on orders for insert with check (true)",
        "drop policy import on orders",
    ),
    "no policy": Unsafe(
        "orders_app",
        "sees nothing at all: there is no policy for it on order_items",
        "alter policy tenant_isolation on order_items to orders_owner",
        "alter policy tenant_isolation on order_items to public",
    ),
    "another policy for all roles": Unsafe(
        "orders_app",
        "may do more than its tenant by the policy audit on order_items",
        "create policy audit on order_items for select using (true)",
        "drop policy audit on order_items",
    ),
    "another policy for a granted role": Unsafe(
        "orders_app",
        "may do more than its tenant by the policy audit on orders",
        "create role auditors; grant auditors to orders_app;"
        "create policy audit on orders for select to auditors using (true)",
        "drop policy audit on orders; drop role auditors",
    ),
}
GIVEN_BYPASSRLS = Unsafe(
    "orders_app", "has BYPASSRLS", "alter role orders_app bypassrls", "alter role orders_app nobypassrls"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with private_server() as server:
        migrate(server.urls.owner)
        yield server


@contextmanager
def applied(server: Server, unsafe: Unsafe) -> Iterator[None]:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(unsafe.setup)
        try:
            yield
        finally:
            cursor.execute(unsafe.cleanup)


@contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), server.folder)) as proxy,
    ):
        yield proxy


def count_rows(server: Server, query: str) -> int:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        (count,) = cursor.fetchone()
        return int(count)


def every_request(alice: Client) -> list[Answer]:
    """One request of each kind that uses the database."""
    return [
        alice.place(),
        alice.place(key="k1"),
        alice.get("/orders"),
        alice.get("/orders?offset=3&my_orders=true"),
        alice.get(f"/orders/{ABSENT}"),
        alice.get("/health/ready"),
    ]


def assert_refused(answers: list[Answer], role: str) -> None:
    for answer in answers:
        assert answer.status == 503, answer
        assert answer.slug == "unavailable"
        assert answer.headers["retry-after"] == "60"
        assert "is not set up safely" in answer.json["detail"]
        assert role not in answer.body.decode()


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_role_is_refused(
    case: str, server: Server, alice: Client, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    unsafe = UNSAFE[case]

    with applied(server, unsafe), api_on(server.url(unsafe.role)):
        assert_refused(every_request(alice), unsafe.role)
        assert alice.get("/health").status == 200
        deadline = time.monotonic() + 10
        while count_rows(server, SESSIONS):
            assert time.monotonic() < deadline, "a rejected session stays open"

    messages = [record.getMessage() for record in caplog.records if record.name == "order-api"]
    assert set(messages) == {f"refuses to serve: the role {unsafe.role} {unsafe.reason}{ADVICE}"}
    assert count_rows(server, f"select count(*) from orders where tenant_id = '{tenant}'") == 0
    with api_on(server.urls.app):
        assert alice.place().status == 201


@pytest.mark.parametrize(
    "policy",
    [
        "create policy more on orders as restrictive using (tenant_id <> 'nobody')",
        "create policy more on orders for select to auditors using (true)",
        "create policy more on orders using (tenant_id = current_setting('app.tenant_id', true))",
    ],
    ids=["restrictive", "for another role", "duplicate"],
)
def test_harmless_extra_policies_are_accepted(server: Server, alice: Client, policy: str) -> None:
    harmless = Unsafe(
        "orders_app", "", f"create role auditors; {policy}", "drop policy more on orders; drop role auditors"
    )
    with applied(server, harmless), api_on(server.urls.app):
        assert alice.place().status == 201


SET_ROLE = "&options=-c%20role%3Dorders_app"


@pytest.mark.parametrize(
    ("login", "reason", "setup", "cleanup"),
    [
        ("postgres", "may become postgres, which is a superuser", "select", "select"),
        (
            "orders_owner",
            "owns the table idempotency_keys",
            "grant orders_app to orders_owner with set true",
            "grant orders_app to orders_owner with set false",
        ),
        (
            "auditor",
            "may do more than its tenant by the policy audit on orders",
            "create role auditor login; grant orders_app to auditor;"
            "create policy audit on orders for select to auditor using (true)",
            "drop policy audit on orders; drop role auditor",
        ),
    ],
)
def test_privileged_login_with_set_role_is_refused(
    login: str,
    reason: str,
    setup: str,
    cleanup: str,
    server: Server,
    alice: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SET ROLE NONE would give the session its login's privileges back."""
    with applied(server, Unsafe(login, reason, setup, cleanup)), api_on(server.url(login) + SET_ROLE):
        assert_refused(every_request(alice), "orders_app")

    assert f"refuses to serve: the role orders_app {reason}{ADVICE}" in caplog.messages


def test_createrole_is_refused_before_postgresql_16(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Before PostgreSQL 16, CREATEROLE could grant itself any role, so also the owner."""
    before_16 = [binaries for binaries in INSTALLED if int(binaries.parent.name) < 16]
    if not before_16:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no PostgreSQL 15 here: make system-packages")
    with_createrole = Unsafe(
        "orders_app", "", "alter role orders_app createrole", "alter role orders_app nocreaterole"
    )
    with applied(server, with_createrole), api_on(server.urls.app):
        assert alice.place().status == 201
    with private_server(before_16[0]) as older:
        migrate(older.urls.owner)
        with api_on(older.urls.app):
            assert alice.place().status == 201
        with applied(older, with_createrole), api_on(older.urls.app):
            assert_refused(every_request(alice), "orders_app")

    reason = "has CREATEROLE, before PostgreSQL 16 a way into every other role"
    assert f"refuses to serve: the role orders_app {reason}{ADVICE}" in caplog.messages


def test_custom_role_under_row_level_security_is_served(server: Server, alice: Client) -> None:
    custom = created_role("tidy", "", "", "orders_app")

    with applied(server, custom), api_on(server.url("tidy")):
        assert [answer.status for answer in every_request(alice)] == [201, 201, 200, 200, 404, 200]


# Cost


def test_role_check_joins_each_connections_first_query_only(server: Server, alice: Client) -> None:
    with proxied(server) as proxy, api_on(f"postgresql://orders_app@/orders?host={proxy.folder}"):
        with proxy.watched() as first:
            assert alice.place().status == 201
        with proxy.watched() as later:
            assert [answer.status for answer in every_request(alice)] == [201, 201, 200, 200, 404, 200]
        connections().pool.empty()
        with proxy.watched() as reconnected:
            assert alice.get("/health/ready").status == 200

    for traffic in (first, reconnected):
        assert [kind for kind in traffic.messages if kind != "X"] == ["startup", "Q"]
    assert first.trips == reconnected.trips == 2
    assert [string.startswith("do $$ declare found") for string in first.statements] == [True]
    assert [string.startswith("do $$ declare found") for string in reconnected.statements] == [True]
    assert later.trips == len(later.statements) == 6
    assert "do $$" not in "".join(later.statements)


def test_failed_first_query_leaves_the_role_unchecked(server: Server, alice: Client) -> None:
    """The check is rolled back with the failed string, so it is sent again."""
    with proxied(server) as proxy, api_on(f"postgresql://orders_app@/orders?host={proxy.folder}"):
        assert alice.place(key="once").status == 201
        connections().pool.empty()
        with proxy.watched() as traffic:
            assert alice.place(key="once").headers["idempotent-replayed"] == "true"

    assert [string.startswith("do $$") for string in traffic.statements] == [True, True]


# DB_ALLOW_UNSAFE_ROLE


def test_db_allow_unsafe_role_serves_and_logs_a_warning(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with proxied(server) as proxy, caplog.at_level(logging.WARNING, "order-api"):
        url = f"postgresql://postgres@/orders?host={proxy.folder}"
        with api_on(url, DB_ALLOW_UNSAFE_ROLE="1"), proxy.watched() as traffic:
            assert [answer.status for answer in every_request(alice)] == [201, 201, 200, 200, 404, 200]

    assert "do $$" not in "".join(traffic.statements)
    assert caplog.messages == [
        "DB_ALLOW_UNSAFE_ROLE=1: no check that row-level security binds the database's role"
    ]


@pytest.mark.parametrize("value", ["", "0"])
def test_other_values_still_refuse_an_unsafe_role(server: Server, alice: Client, value: str) -> None:
    with api_on(server.url("postgres"), DB_ALLOW_UNSAFE_ROLE=value):
        assert_refused(every_request(alice), "postgres")


# Changes while serving


def test_new_connections_refuse_a_role_changed_while_serving(server: Server, alice: Client) -> None:
    """Open connections are served until DB_POOL_RECYCLE; neither change needs a restart."""
    with api_on(server.urls.app, DB_POOL_SIZE="1", DB_POOL_MAX="1", DB_POOL_RECYCLE="1"):
        assert alice.place().status == 201
        with applied(server, GIVEN_BYPASSRLS):
            connections().pool.empty()
            assert_refused(every_request(alice), "orders_app")
        assert alice.place().status == 201


def test_recycled_connection_is_checked_again(
    server: Server, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api_on(server.urls.app, DB_POOL_SIZE="1", DB_POOL_MAX="1"):
        assert alice.place().status == 201
        pool: Any = connections().pool
        monkeypatch.setattr(pool, "_recycle", 0)
        with applied(server, GIVEN_BYPASSRLS):
            assert_refused([alice.get("/orders")], "orders_app")


# Behind a pooler


def test_pooler_sessions_have_their_role_checked(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The role of the server session counts, not the one that the API logs in with."""
    with pgbouncer(server.url("postgres")) as as_superuser, api_on(as_superuser.url, DB_PREPARE="off"):
        assert_refused(every_request(alice), "postgres")
    with pgbouncer(server.urls.app) as as_app, api_on(as_app.url, DB_PREPARE="off"):
        assert [answer.status for answer in every_request(alice)] == [201, 201, 200, 200, 404, 200]

    assert f"refuses to serve: the role postgres is a superuser{ADVICE}" in caplog.text
