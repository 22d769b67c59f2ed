"""schema.sql: its constraints and privileges, applying it repeatedly, and supported PostgreSQL versions."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.extensions import make_dsn
from sqlalchemy import Table
from sqlalchemy.dialects import postgresql
from sqlmodel import SQLModel

from chalicelib.database.statement import Statement
from chalicelib.orders import statements
from chalicelib.orders.tables import IdempotencyKey, Order, OrderItem
from local.database import Urls
from migrations.migrate import SCHEMA, migrate
from tests.support.servers import api_on, private_server
from tools.client import Client
from tools.postgres_server import EMBEDDED, INSTALLED, connected

Rows = Callable[..., list[tuple[Any, ...]]]
TENANT_TABLES = ("idempotency_keys", "order_items", "orders", "rate_limits")
ORDER_ID = "01936f3c-3b5e-7cc0-98c4-dc0c0c07398f"
NOW = "2026-11-22T09:00:00Z"
ROWS: Mapping[str, Mapping[str, Any]] = {
    "orders": {
        "tenant_id": "acme",
        "order_id": ORDER_ID,
        "created_by": "alice",
        "status": "pending",
        "version": 1,
        "customer_name": "John Doe",
        "customer_email": "john@example.com",
        "total_amount": "99.99",
        "currency": "USD",
        "created_at": NOW,
        "updated_at": NOW,
    },
    "order_items": {
        "tenant_id": "acme",
        "order_id": ORDER_ID,
        "line_no": 1,
        "product_name": "Widget",
        "product_sku": "WDG-001",
        "quantity": 2,
        "unit_price": "49.99",
    },
    "idempotency_keys": {
        "tenant_id": "acme",
        "created_by": "alice",
        "idempotency_key": "key",
        "fingerprint": "0" * 64,
        "order_id": ORDER_ID,
        "created_at": NOW,
    },
    "rate_limits": {"tenant_id": "acme", "taken_until": 0},
}
VIOLATIONS = [
    ("orders", {"tenant_id": ""}, "orders_tenant_named"),
    ("orders", {"tenant_id": "t" * 256}, "orders_tenant_named"),
    ("orders", {"status": "shipped"}, "orders_status_known"),
    ("orders", {"version": 0}, "orders_version_counts"),
    ("orders", {"total_amount": "-0.01"}, "orders_amount_range"),
    ("orders", {"total_amount": "1000000000000"}, "orders_amount_range"),
    ("orders", {"total_amount": "0.00001"}, "orders_amount_range"),
    ("orders", {"total_amount": "NaN"}, "orders_amount_range"),
    ("orders", {"total_amount": "Infinity"}, "orders_amount_range"),
    ("orders", {"currency": "usd"}, "orders_currency_code"),
    ("orders", {"currency": "US"}, "orders_currency_code"),
    ("orders", {"currency": "U$D"}, "orders_currency_code"),
    ("orders", {}, "orders_pkey"),
    ("order_items", {"tenant_id": ""}, "order_items_tenant_named"),
    ("order_items", {"line_no": 0}, "order_items_line_range"),
    ("order_items", {"line_no": 501}, "order_items_line_range"),
    ("order_items", {"line_no": 2, "quantity": 0}, "order_items_quantity_range"),
    ("order_items", {"line_no": 2, "quantity": 1_000_001}, "order_items_quantity_range"),
    ("order_items", {"line_no": 2, "unit_price": "-1"}, "order_items_amount_range"),
    ("order_items", {"line_no": 2, "unit_price": "999999999999.9991"}, "order_items_amount_range"),
    ("order_items", {"line_no": 2, "unit_price": "0.00001"}, "order_items_amount_range"),
    ("order_items", {"tenant_id": "globex"}, "order_items_order_fkey"),
    ("order_items", {}, "order_items_pkey"),
    ("idempotency_keys", {"tenant_id": ""}, "idempotency_keys_tenant_named"),
    ("idempotency_keys", {}, "idempotency_keys_pkey"),
    ("rate_limits", {"tenant_id": ""}, "rate_limits_tenant_named"),
    ("rate_limits", {}, "rate_limits_pkey"),
]


def snapshot(binaries: Path, admin_url: str) -> str:
    """Everything that applying schema.sql can change: objects, owners, grants, roles, settings, versions."""
    dump = subprocess.run(
        [binaries / "pg_dump", "--schema-only", "--dbname", admin_url],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    state = [line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
    with connected(admin_url) as connection, connection.cursor() as cursor:
        for query in (
            "select * from pg_roles where rolname !~ '^pg_' order by rolname",
            "select * from pg_auth_members order by roleid, member",
            "select * from pg_db_role_setting order by setrole, setdatabase",
            "select * from schema_version",
        ):
            cursor.execute(query)
            state += map(repr, cursor.fetchall())
    return "\n".join(state)


@contextmanager
def new_database(url: str) -> Iterator[str]:
    """An empty database of orders_owner on the same server; yields its superuser URL."""
    name = f"orders_{uuid4().hex[:8]}"
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(f"create database {name} owner orders_owner")
        try:
            yield make_dsn(url, dbname=name)
        finally:
            cursor.execute(f"drop database {name} with (force)")


def owner_url(admin_url: str) -> str:
    return make_dsn(admin_url, user="orders_owner")


@pytest.fixture
def empty_database(admin_url: str) -> Iterator[str]:
    with new_database(admin_url) as url:
        yield url


@pytest.fixture
def kept_role_settings(rows: Rows, admin_url: str) -> Iterator[None]:
    """Restores orders_app's settings afterwards: roles are shared by all databases of the server."""
    ((settings,),) = rows("select setconfig from pg_db_role_setting where setrole = 'orders_app'::regrole")
    yield
    execute(admin_url, "alter role orders_app reset all")
    for setting in settings:
        name, value = setting.split("=", 1)
        execute(admin_url, f"alter role orders_app set {name} = '{value}'")


def execute(url: str, *statements: str) -> None:
    with connected(url) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


# Applying it


def test_applying_the_schema_twice_changes_nothing(database: Urls, admin_url: str) -> None:
    before = snapshot(EMBEDDED, admin_url)

    migrate(database.owner)

    assert snapshot(EMBEDDED, admin_url) == before


def test_schema_can_be_applied_concurrently(admin_url: str, empty_database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, [owner_url(empty_database)] * 4))

    sequential, concurrent = (snapshot(EMBEDDED, url) for url in (admin_url, empty_database))
    assert concurrent == sequential


def test_applying_the_schema_again_takes_no_blocking_locks(empty_database: str) -> None:
    migrate(owner_url(empty_database))

    with connected(empty_database) as connection, connection.cursor() as cursor:
        cursor.execute("begin; " + insert("orders"), ROWS["orders"])
        migrate(make_dsn(owner_url(empty_database), options="-c lock_timeout=2s"))
        cursor.execute("rollback")


@pytest.mark.parametrize(
    ("version", "hint"), [(6, "make migrate OWNER_DATABASE_URL=..."), (8, "newest deployed release")]
)
def test_schema_file_refuses_other_versions(empty_database: str, version: int, hint: str) -> None:
    migrate(owner_url(empty_database))
    execute(empty_database, f"update schema_version set version_num = {version}", "drop table rate_limits")
    before = snapshot(EMBEDDED, empty_database)

    with pytest.raises(psycopg2.errors.RaiseException) as error:
        execute(owner_url(empty_database), SCHEMA.read_text())

    assert error.value.diag.message_primary == (
        f"this database is at schema version {version}, this file is version 7"
    )
    assert hint in str(error.value.diag.message_hint)
    assert snapshot(EMBEDDED, empty_database) == before


@pytest.mark.usefixtures("kept_role_settings")
@pytest.mark.parametrize("setting", ["statement_timeout=9s", "plan_cache_mode=auto"])
def test_operators_role_settings_are_kept(database: Urls, rows: Rows, admin_url: str, setting: str) -> None:
    name, _, value = setting.partition("=")
    execute(admin_url, f"alter role orders_app set {name} = '{value}'")

    migrate(database.owner)

    assert setting in role_settings(rows)


@pytest.mark.usefixtures("kept_role_settings")
def test_timeouts_are_set_beside_other_operator_settings(database: Urls, rows: Rows, admin_url: str) -> None:
    execute(admin_url, "alter role orders_app reset all", "alter role orders_app set work_mem = '8MB'")

    migrate(database.owner)

    assert set(role_settings(rows)) == {"work_mem=8MB", *ROLE_SETTINGS}


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_non_utf8_database_is_refused(database: Urls, admin_url: str, encoding: str) -> None:
    name = f"as_{encoding.lower()}"
    execute(
        admin_url,
        f"create database {name} owner orders_owner encoding '{encoding}' locale 'C' template template0",
    )

    with pytest.raises(psycopg2.errors.RaiseException, match="UTF8 is needed"):
        migrate(database.owner.replace("/orders?", f"/{name}?"))

    execute(admin_url, f"drop database {name}")


@pytest.mark.usefixtures("kept_role_settings")
def test_timeouts_are_set_despite_settings_for_another_database(
    database: Urls, rows: Rows, admin_url: str
) -> None:
    command = "alter role orders_app in database template1 {} statement_timeout"
    execute(admin_url, "alter role orders_app reset all", command.format("set") + " = '60s'")

    migrate(database.owner)

    execute(admin_url, command.format("reset"))
    assert set(role_settings(rows)) == ROLE_SETTINGS


ROLE_SETTINGS = {"statement_timeout=5s", "lock_timeout=2s", "plan_cache_mode=force_generic_plan"}


def role_settings(rows: Rows) -> list[str]:
    ((settings,),) = rows("select setconfig from pg_db_role_setting where setrole = 'orders_app'::regrole")
    return list(settings)


# Tenancy


def test_every_index_and_key_starts_with_the_tenant(rows: Rows) -> None:
    indexes = rows(
        "select indexrelid::regclass::text, attname from pg_index"
        " join pg_attribute on attrelid = indrelid and attnum = indkey[0]"
        " where indrelid::regclass::text = any(%s)",
        list(TENANT_TABLES),
    )
    foreign_keys = rows(
        "select conname, here.attname, there.attname from pg_constraint"
        " join pg_attribute here on here.attrelid = conrelid and here.attnum = conkey[1]"
        " join pg_attribute there on there.attrelid = confrelid and there.attnum = confkey[1]"
        " where contype = 'f'"
    )

    assert set(indexes) == {
        (name, "tenant_id")
        for name in (
            "orders_pkey",
            "order_items_pkey",
            "idempotency_keys_pkey",
            "rate_limits_pkey",
            "orders_created_by_idx",
        )
    }
    assert foreign_keys == [("order_items_order_fkey", "tenant_id", "tenant_id")]


def test_compared_text_is_in_byte_order(rows: Rows) -> None:
    """Another collation follows the operating system's library: its upgrade would reorder the indexes."""
    compared = rows(
        "select attrelid::regclass::text, attname::text, collname::text from pg_attribute"
        " join pg_class on pg_class.oid = attrelid join pg_collation on pg_collation.oid = attcollation"
        " where relkind = 'r' and relnamespace = 'public'::regnamespace and ("
        "  exists (select from pg_constraint"
        "          where conrelid = attrelid and contype <> 'n' and attnum = any(conkey))"
        "  or exists (select from pg_index where indrelid = attrelid and attnum = any(indkey)))"
    )

    assert ("orders", "tenant_id", "C") in compared
    assert [column for column in compared if column[2] != "C"] == []


def test_row_level_security_is_forced_on_every_tenant_table(rows: Rows) -> None:
    tables = rows(
        "select relname::text, relrowsecurity, relforcerowsecurity from pg_class join pg_attribute"
        " on attrelid = pg_class.oid where relkind in ('r', 'p') and attname = 'tenant_id' order by 1"
    )
    policies = rows(
        "select tablename::text, permissive, roles::text, cmd, qual, with_check from pg_policies order by 1"
    )

    own = "(tenant_id = current_setting('app.tenant_id'::text, true))"
    assert tables == [(table, True, True) for table in TENANT_TABLES]
    assert policies == [(table, "PERMISSIVE", "{public}", "ALL", own, own) for table in TENANT_TABLES]


# The API's role


def test_api_role_has_no_special_attributes(rows: Rows) -> None:
    role = rows(
        "select rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication, rolpassword"
        " from pg_authid where rolname = 'orders_app'"
    )
    member_of = rows("select from pg_auth_members where member = 'orders_app'::regrole")
    owns = rows("select from pg_shdepend where refobjid = 'orders_app'::regrole and deptype = 'o'")

    assert role == [(True, False, False, False, False, False, None)]
    assert (member_of, owns) == ([], [])


def test_api_role_has_its_settings(database: Urls) -> None:
    with connected(database.app) as connection, connection.cursor() as cursor:
        for setting in ROLE_SETTINGS:
            name, _, value = setting.partition("=")
            cursor.execute("select current_setting(%s)", [name])
            assert cursor.fetchone() == (value,)


def test_api_role_has_exactly_the_needed_privileges(rows: Rows) -> None:
    on_tables = rows(
        "select relname::text, privilege_type from pg_class, aclexplode(relacl)"
        " where relnamespace = 'public'::regnamespace and grantee in (0, 'orders_app'::regrole)"
    )
    on_columns = rows("select from pg_attribute where attacl is not null and attrelid >= 16384")
    on_functions = rows(
        "select proname::text, grantee::regrole::text from pg_proc, aclexplode(proacl)"
        " where pronamespace = 'public'::regnamespace and grantee <> proowner"
    )
    on_the_schema = rows(
        "select privilege from unnest(array['USAGE', 'CREATE']) as privilege"
        " where has_schema_privilege('orders_app', 'public', privilege)"
    )

    assert set(on_tables) == {
        *((table, privilege) for table in TENANT_TABLES for privilege in ("SELECT", "INSERT")),
        ("rate_limits", "UPDATE"),
        ("schema_version", "SELECT"),
    }
    assert on_columns == []
    assert on_functions == [("set_tenant", "orders_app")] * 2
    assert on_the_schema == [("USAGE",)]


# Constraints


def insert(table: str, values: Mapping[str, Any] | None = None) -> str:
    names = values or ROWS[table]
    return f"insert into {table} ({', '.join(names)}) values ({', '.join(f'%({name})s' for name in names)})"


@pytest.fixture
def good_rows(admin_url: str) -> Iterator[Any]:
    """A superuser's transaction with one valid row in every table; policies do not apply to it."""
    connection = psycopg2.connect(admin_url)
    try:
        with connection.cursor() as cursor:
            for table, row in ROWS.items():
                cursor.execute(insert(table), row)
            yield cursor
    finally:
        connection.rollback()
        connection.close()


@pytest.mark.parametrize(("table", "change", "constraint"), VIOLATIONS)
def test_row_violating_a_constraint_is_rejected(
    good_rows: Any, table: str, change: Mapping[str, Any], constraint: str
) -> None:
    with pytest.raises(psycopg2.IntegrityError) as error:
        good_rows.execute(insert(table), {**ROWS[table], **change})

    assert error.value.diag.constraint_name == constraint


def test_every_constraint_is_named_and_tested(rows: Rows) -> None:
    constraints = rows(
        "select conrelid::regclass::text, conname::text from pg_constraint"
        " where conrelid::regclass::text = any(%s) and contype <> 'n'",
        list(TENANT_TABLES),
    )

    assert set(constraints) == {(table, constraint) for table, _, constraint in VIOLATIONS}


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("orders", {"total_amount": "0"}),
        ("orders", {"total_amount": "999999999999.999", "currency": "KWD"}),
        ("orders", {"total_amount": "0.0001", "currency": "CLF"}),
        ("order_items", {"unit_price": "0", "quantity": 1, "line_no": 500}),
        ("order_items", {"unit_price": "999999999999.999", "quantity": 1_000_000, "line_no": 2}),
    ],
)
def test_table_limits_are_inclusive(good_rows: Any, table: str, change: Mapping[str, Any]) -> None:
    new_id = {"order_id": str(uuid4())} if table == "orders" else {}

    good_rows.execute(insert(table), {**ROWS[table], **new_id, **change})


# The models


@pytest.mark.parametrize("model", [Order, OrderItem, IdempotencyKey])
def test_the_models_have_the_columns_of_the_tables(rows: Rows, model: type[SQLModel]) -> None:
    table: Table = model.__table__  # type: ignore[attr-defined]
    in_database = rows(
        "select column_name::text, is_nullable = 'YES', data_type from information_schema.columns"
        " where table_name = %s order by ordinal_position",
        table.name,
    )
    key = rows(
        "select attname::text from pg_index join pg_attribute on attrelid = indrelid and attnum = any(indkey)"
        " where indisprimary and indrelid = %s::regclass",
        table.name,
    )

    assert [(column.name, column.nullable, type_name(column.type)) for column in table.columns] == [
        (name, nullable, {"text": "character varying", "character": "character varying"}.get(kind, kind))
        for name, nullable, kind in in_database
    ]
    assert {(column.name,) for column in table.primary_key} == set(key)


def type_name(kind: Any) -> str:
    """A column type as information_schema names it."""
    text = str(kind.compile(dialect=postgresql.dialect())).lower()  # type: ignore[no-untyped-call]
    return "character varying" if text.startswith("varchar") else text


# Plans


@pytest.fixture(scope="module")
def many_orders(admin_url: str) -> Iterator[str]:
    """Thirty tenants with 300 orders of ten users each."""
    with new_database(admin_url) as url:
        migrate(owner_url(url))
        execute(
            url,
            "insert into orders select 'tenant-' || n % 30, gen_random_uuid(), 'user-' || n % 10, 'pending',"
            " 1, 'J', 'j@x', null, null, null, 1, 'USD', now(), now() from generate_series(1, 9000) n",
            "insert into order_items select tenant_id, order_id, 1, 'W', 'S', 1, 1 from orders",
            "insert into idempotency_keys"
            " select tenant_id, created_by, order_id, repeat('0', 64), order_id, created_at from orders",
            "analyze",
        )
        yield make_dsn(url, user="orders_app")


@pytest.mark.parametrize(
    ("statement", "index", "condition"),
    [
        (statements.ORDER_BY_ID, "orders_pkey", "order_id ="),
        (statements.ORDER_BY_KEY, "orders_pkey", "order_id ="),
        (statements.ORDER_BY_KEY, "idempotency_keys_pkey", "idempotency_key)::text ="),
        (statements.ORDERS_PAGES[False, "newest"], "orders_pkey", "tenant_id ="),
        (statements.ORDERS_PAGES[False, "offset"], "orders_pkey", "tenant_id ="),
        (statements.ORDERS_PAGES[False, "cursor"], "orders_pkey", "order_id <"),
        (statements.ORDERS_PAGES[True, "newest"], "orders_created_by_idx", "created_by)::text ="),
        (statements.ORDERS_PAGES[True, "offset"], "orders_created_by_idx", "created_by)::text ="),
        (statements.ORDERS_PAGES[True, "cursor"], "orders_created_by_idx", "order_id <"),
    ],
)
def test_statements_use_indexes_and_read_no_extra_rows(
    many_orders: str, statement: Statement[Any], index: str, condition: str
) -> None:
    nodes = plan(many_orders, statement)

    used = {node["Index Name"]: node["Index Cond"] for node in nodes if "Index Name" in node}
    assert condition in used[index]
    assert "tenant_id" in used[index]
    assert "order_items_pkey" in used
    assert not {node["Node Type"] for node in nodes} & {"Seq Scan", "Bitmap Heap Scan"}
    rows_read = [node["Actual Rows"] for node in nodes if node.get("Relation Name") == "orders"]
    assert max(rows_read) <= 3


def test_planner_statistics_expect_many_orders_per_tenant(many_orders: str) -> None:
    """Otherwise a generic plan may read all orders of the largest tenant."""
    with connected(make_dsn(many_orders, user="postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("select n_distinct from pg_stats where tablename = 'orders' and attname = 'tenant_id'")
        assert cursor.fetchone() == (pytest.approx(-0.001),)


def plan(url: str, statement: Statement[Any]) -> list[dict[str, Any]]:
    """The executed plan's nodes, as the API's role, for the second page of a tenant."""
    values = {
        "tenant_id": "tenant-1",
        "created_by": "user-1",
        "order_id": ORDER_ID,
        "idempotency_key": "key",
        "after": "80000000-0000-4000-8000-000000000000",
        "limit": 3,
        "offset": 0,
    }
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute(
            b"select set_tenant('tenant-1'); explain (analyze, format json) "
            + cursor.mogrify(statement.text, values)
        )
        ((result,),) = cursor.fetchall()
    nodes, unvisited = [], [result[0]["Plan"]]
    while unvisited:
        nodes.append(unvisited.pop())
        unvisited += nodes[-1].get("Plans", [])
    return nodes


# Other versions of PostgreSQL


@pytest.mark.slow
@pytest.mark.parametrize("binaries", INSTALLED or [Path("none/bin")], ids=lambda path: path.parent.name)
def test_schema_works_on_other_postgresql_versions(
    alice: Client, other_tenant: Client, binaries: Path
) -> None:
    if not INSTALLED:
        reason = "there is no other PostgreSQL in /usr/lib/postgresql: apt-get install postgresql-15"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    with private_server(binaries) as server:
        migrate(server.urls.owner)
        before = snapshot(binaries, server.url("postgres"))
        migrate(server.urls.owner)
        assert snapshot(binaries, server.url("postgres")) == before

        with api_on(server.urls.app):
            placed = [alice.place(key=key).json["order"] for key in ("one", "two", "one")]
            assert placed[2] == placed[0] != placed[1]
            assert alice.get(f"/orders/{placed[1]['order_id']}").json["order"] == placed[1]
            assert alice.get("/orders?my_orders=true").json["orders"] == [placed[1], placed[0]]
            assert other_tenant.get(f"/orders/{placed[1]['order_id']}").status == 404
            assert other_tenant.get("/orders").json["orders"] == []
