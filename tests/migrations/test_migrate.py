"""`make migrate` from release 1.0.0's schema: step by step, interrupted, concurrently, as SQL, refused."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from alembic.script import ScriptDirectory
from psycopg2.extensions import make_dsn

from chalicelib.database.schema_check import SCHEMA_VERSION
from migrations import migrate as migrating
from migrations.migrate import SCHEMA, alembic_config, migrate, schema_version
from tests.chalicelib.database.test_schema import execute, new_database, owner_url, snapshot
from tests.support.release_1 import Release1, apply_release_1
from tests.support.servers import api_on, private_server
from tools.client import Client
from tools.postgres_server import EMBEDDED, connected

PROJECT = Path(migrating.__file__).parents[1]
SLOW_AUTOVACUUM = [
    """insert into orders
       select 'acme', gen_random_uuid(), 'alice', 'pending', 1, 'John Doe', 'john@example.com', null, null,
              null, 1, 'USD', now(), now()
       from generate_series(1, 20000)""",
    "delete from orders",
    "alter system set autovacuum_naptime = 1",
    "alter system set autovacuum_vacuum_cost_delay = 100",
    "alter system set autovacuum_vacuum_cost_limit = 1",
    "select pg_reload_conf()",
]
WAITING_INDEX = """select from pg_stat_progress_create_index
    where datname = current_database() and phase like 'waiting for %'"""
VACUUM = "select from pg_stat_progress_vacuum where relid = 'orders'::regclass"
VERSIONS = range(2, SCHEMA_VERSION + 1)


@pytest.fixture
def release_1(admin_url: str) -> Iterator[str]:
    """The superuser's URL of a database of release 1.0.0."""
    with new_database(admin_url) as url:
        apply_release_1(owner_url(url))
        yield url


def app_url(url: str) -> str:
    return make_dsn(url, user="orders_app")


def migrate_to(url: str, version: int) -> None:
    """Some of the migrations, as a run that was interrupted leaves them."""
    if version > 2:
        migrate(owner_url(url), version)


def wait_for(url: str, query: str) -> None:
    """Until the query has a row."""
    deadline = time.monotonic() + 30
    with connected(url) as connection, connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(query)
            if cursor.rowcount:
                return
            time.sleep(0.05)
    raise TimeoutError(query)


def files(url: str) -> dict[str, int]:
    with connected(url) as connection, connection.cursor() as cursor:
        cursor.execute("select relname, pg_relation_filenode(oid) from pg_class where relkind in ('r', 'i')")
        return dict(cursor.fetchall())


def run_command(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "migrations"],
        cwd=PROJECT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_newest_migration_is_what_the_release_needs() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [f"{SCHEMA_VERSION:04}"]


@pytest.mark.parametrize("version", VERSIONS)
def test_both_releases_serve_at_each_version(
    release_1: str, admin_url: str, version: int, alice: Client, tenant: str
) -> None:
    """An interrupted migration is one of these, and is continued."""
    migrate_to(release_1, version)

    with closing(Release1(app_url(release_1), tenant)) as old, api_on(app_url(release_1)):
        order_id = old.place("old")
        assert old.replay("old") == order_id
        assert alice.get(f"/orders/{order_id}").status == 200
        placed = alice.place(key="new").json["order"]["order_id"]
        assert f'"{placed}"' in old.get(placed)
        assert old.page() == len(alice.get("/orders").json["orders"]) == 2
        migrate(owner_url(release_1))
        assert old.page() == len(alice.get("/orders").json["orders"]) == 2
        assert old.replay("old") == order_id
    assert snapshot(EMBEDDED, release_1) == snapshot(EMBEDDED, admin_url)


def test_index_of_a_failed_run_is_replaced(release_1: str) -> None:
    migrate_to(release_1, 3)
    execute(owner_url(release_1), "create index orders_pkey_c on orders (tenant_id)")

    migrate(owner_url(release_1))

    with connected(release_1) as connection:
        assert schema_version(connection) == SCHEMA_VERSION


def test_swap_rebuilds_and_rewrites_nothing(release_1: str) -> None:
    """The files of tables and indexes are the same, so that the lock is short."""
    migrate_to(release_1, 4)
    before = files(release_1)

    migrate_to(release_1, 5)

    after = files(release_1)
    tables = ("orders", "order_items", "idempotency_keys")
    assert [after[table] for table in tables] == [before[table] for table in tables]
    for index in (*(f"{table}_pkey" for table in tables), "orders_created_by_idx"):
        assert after[index] == before[f"{index}_c"]


def test_concurrent_runs_migrate_once(release_1: str, admin_url: str) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(migrate, [owner_url(release_1)] * 3))

    assert snapshot(EMBEDDED, release_1) == snapshot(EMBEDDED, admin_url)


def test_table_in_use_blocks_requests_briefly(
    release_1: str, alice: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    """The migration gives up its place in the queue of locks, and tries again."""
    migrate_to(release_1, 4)
    with (
        closing(psycopg2.connect(owner_url(release_1))) as user,
        api_on(make_dsn(app_url(release_1), options="-c lock_timeout=1s")),
        ThreadPoolExecutor(1) as pool,
    ):
        user.cursor().execute("select from orders")
        migration = pool.submit(migrate, owner_url(release_1), quiet=False)
        answers, tried_again = [], threading.Event()
        while not (tried_again.is_set() or migration.done()):
            answers.append(alice.place().status)
            if "The tables are in use by orders_owner (pid" in capsys.readouterr().err:
                tried_again.set()
        user.rollback()
        migration.result()

    assert tried_again.is_set()
    assert set(answers) == {201}


def test_autovacuum_is_cancelled_for_a_lock() -> None:
    """On a large table it runs for hours."""
    with private_server() as server:
        apply_release_1(server.urls.owner)
        migrate(server.urls.owner, 4)
        execute(server.url("postgres"), *SLOW_AUTOVACUUM)
        wait_for(server.url("postgres"), VACUUM)

        migrate(server.urls.owner)

        assert "canceling autovacuum task" in (server.folder / "log").read_text()


@pytest.mark.parametrize("version", [2, 5])
def test_sql_for_a_dba_makes_the_same_schema(release_1: str, admin_url: str, version: int) -> None:
    migrate_to(release_1, version)
    printed = run_command(SQL="1", FROM=str(version))
    of_another_version = run_command(SQL="1", FROM=str(version + 1))

    psql = [str(EMBEDDED / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-d", owner_url(release_1)]
    refused = subprocess.run(
        psql, input=of_another_version.stdout, text=True, capture_output=True, check=False
    )
    subprocess.run(psql, input=printed.stdout, text=True, check=True)

    assert f"at schema version {version}, this file begins after version {version + 1}" in refused.stderr
    assert snapshot(EMBEDDED, release_1) == snapshot(EMBEDDED, admin_url)


def test_ctrl_c_ends_a_run_that_can_be_continued(release_1: str, admin_url: str) -> None:
    """Here while it waits for an older transaction, before it builds an index."""
    with closing(psycopg2.connect(release_1)) as old:
        old.cursor().execute("set transaction isolation level repeatable read; select 1")
        with subprocess.Popen(
            [sys.executable, "-m", "migrations"],
            cwd=PROJECT,
            env={**os.environ, "OWNER_DATABASE_URL": owner_url(release_1)},
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            wait_for(release_1, WAITING_INDEX)
            run.send_signal(signal.SIGINT)
            _, output = run.communicate(timeout=10)

    assert run.returncode == 1
    assert output.endswith("Interrupted. The API is not affected: repeat make migrate to continue\n")
    migrate(owner_url(release_1))
    assert snapshot(EMBEDDED, release_1) == snapshot(EMBEDDED, admin_url)


# Refused


@pytest.mark.parametrize(
    ("dependent", "named", "drop"),
    [
        ("create index by_email on orders (tenant_id, customer_email)", "index by_email", "index by_email"),
        ("create view tenants as select tenant_id from orders", "view tenants", "view tenants"),
        (
            "create policy reports on orders to pg_monitor using (status = 'pending')",
            "policy reports on table orders",
            "policy reports on orders",
        ),
        (
            "create table notes (t text, o uuid, foreign key (t, o) references orders (tenant_id, order_id))",
            "constraint notes_t_o_fkey on table notes",
            "table notes",
        ),
    ],
)
def test_what_depends_on_changed_columns_is_named(
    release_1: str, dependent: str, named: str, drop: str
) -> None:
    """Before anything is built or changed: an index would be rebuilt under the lock."""
    execute(owner_url(release_1), dependent)

    refused = run_command(OWNER_DATABASE_URL=owner_url(release_1))
    with connected(release_1) as connection:
        assert schema_version(connection) == 2
    execute(owner_url(release_1), f"drop {drop}")
    migrate(owner_url(release_1))

    assert refused.returncode == 1
    assert "version 5 changes columns that these use: " in refused.stderr
    assert named in refused.stderr


def test_foreign_key_is_validated_again(release_1: str) -> None:
    """Validation sees only the rows that the owner sees."""
    with closing(Release1(app_url(release_1), "acme")) as old:
        old.place("key")
    migrate_to(release_1, 5)
    execute(release_1, "set session_replication_role = replica", "delete from orders")

    with pytest.raises(psycopg2.errors.ForeignKeyViolation):
        migrate(owner_url(release_1))


def test_tables_in_another_schema_are_refused(release_1: str) -> None:
    execute(release_1, "create schema orders_owner authorization orders_owner")

    refused = run_command(OWNER_DATABASE_URL=owner_url(release_1))
    with pytest.raises(psycopg2.errors.RaiseException, match="orders is in another schema"):
        execute(owner_url(release_1), SCHEMA.read_text())

    assert "the tables are in the schema public, not in orders_owner" in refused.stderr
    with connected(release_1) as connection:
        assert schema_version(connection) == 2


def test_lost_version_is_refused(release_1: str) -> None:
    execute(release_1, "delete from schema_version")

    refused = run_command(OWNER_DATABASE_URL=owner_url(release_1))

    assert refused.returncode == 1
    assert "no version of it in schema_version" in refused.stderr


def test_version_1_is_refused(release_1: str) -> None:
    execute(release_1, "delete from schema_version where version = 2")

    refused = run_command(OWNER_DATABASE_URL=owner_url(release_1))

    assert refused.returncode == 1
    assert "at schema version 1, migrations start at version 2" in refused.stderr
    assert "schema.sql of release 1.0.0" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_other_roles_than_the_owner_are_refused(release_1: str) -> None:
    refused = run_command(OWNER_DATABASE_URL=release_1)

    assert refused.returncode == 1
    assert "migrations run as orders_owner, who owns the tables, not as postgres" in refused.stderr
    assert "set role orders_owner" in refused.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"OWNER_DATABASE_URL": ""}, "Set OWNER_DATABASE_URL="),
        ({"OWNER_DATABASE_URL": "orders"}, "OWNER_DATABASE_URL is not a connection URL"),
        ({"OWNER_DATABASE_URL": "postgresql://o@127.0.0.1:1/orders"}, "Connection refused"),
        ({"SQL": "1", "FROM": "1"}, "FROM=1: take the database's version"),
        ({"SQL": "1", "FROM": str(SCHEMA_VERSION)}, f"FROM={SCHEMA_VERSION}: take the database's version"),
    ],
)
def test_command_says_what_is_wrong(variables: dict[str, str], message: str) -> None:
    refused = run_command(**variables)

    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr


def test_command_says_what_it_does(release_1: str) -> None:
    done = run_command(OWNER_DATABASE_URL=owner_url(release_1))

    assert done.returncode == 0
    assert "orders: about 0 rows, 8192 bytes" in done.stderr
    assert "The indexes of version 4 take about 0 s; requests are served meanwhile" in done.stderr
    for version in VERSIONS[1:]:
        assert f"Version {version} in " in done.stderr
    assert done.stdout == f"The database is at version {SCHEMA_VERSION}\n"
