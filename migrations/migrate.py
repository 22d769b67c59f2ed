"""Brings a database to this release's schema: schema.sql where it is empty, else the migrations it lacks."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import psycopg2

from chalicelib.database.errors import LOCK_NOT_AVAILABLE
from chalicelib.database.schema_check import SCHEMA_VERSION
from chalicelib.settings.database import parse_database_url

if TYPE_CHECKING:
    from alembic.config import Config

PROJECT = Path(__file__).parent.parent
SCHEMA = PROJECT / "schema.sql"
RETRY_TIMEOUT = 600
"""Seconds in which a migration tries to lock tables that are in use."""
PAUSE = 1
"""Seconds between two attempts, in which the requests run that waited behind the lock."""
DEADLOCK = "40P01"
INDEXES = {"orders": 2}
"""How many indexes of a table version 4 builds, if not one."""
INDEXED_PER_SECOND = 300_000
"""Rows, measured under load on two cores (docs/migrations.md)."""
SIZES = """\
select relname, greatest(reltuples, 0)::bigint, pg_size_pretty(pg_table_size(oid)) from pg_class
where oid in (to_regclass('orders'), to_regclass('order_items'), to_regclass('idempotency_keys'))
order by relname"""
USERS = """\
select distinct coalesce(usename, backend_type), pid from pg_locks join pg_stat_activity using (pid)
where granted and relation in (to_regclass('orders'), to_regclass('order_items'),
                               to_regclass('idempotency_keys'), to_regclass('rate_limits'),
                               to_regclass('schema_version'))"""


def migrate(owner_url: str, version: int = SCHEMA_VERSION, *, quiet: bool = True) -> None:
    """Safe while the API serves, safe to repeat, and safe twice at once: the second run waits for the first.

    Raises psycopg2.Error; SystemExit with what to do where that is known.
    """
    parameters = parse_database_url(owner_url, "OWNER_DATABASE_URL")
    with closing(_connect(parameters)) as connection:
        found = schema_version(connection)
        if found is None or found >= SCHEMA_VERSION:
            connection.cursor().execute(SCHEMA.read_text())
            return
        with _one_run_at_a_time(connection, quiet=quiet):
            _upgrade(parameters, connection, version, quiet=quiet)


def schema_version(connection: Any) -> int | None:
    """None: there is no schema."""
    with connection.cursor() as cursor:
        cursor.execute("select to_regclass('schema_version') is not null")
        if cursor.fetchone() == (False,):
            return None
        cursor.execute("select max(version) from schema_version")
        (version,) = cursor.fetchone()
        return None if version is None else int(version)


def print_sql(start: int) -> None:
    """Print the migrations after version `start`, for psql as the owner of the tables."""
    from migrations.session import ADOPT, EXPECT, SESSION

    expected = EXPECT.format(version=start)
    print(SESSION + ADOPT + expected + migration_sql(f"{start:04}:head"))


def migration_sql(versions: str) -> str:
    """The SQL of some migrations, `0002:head`."""
    from alembic import command

    output = io.StringIO()
    command.upgrade(alembic_config(output), versions, sql=True)
    return output.getvalue()


def _upgrade(parameters: dict[str, str], connection: Any, version: int, *, quiet: bool) -> None:
    """Up to a version. Where a table stays in use for LOCK_TIMEOUT, the rest of the migrations is retried."""
    from alembic import command
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    from migrations.progress import Progress

    progress = Progress(lambda: _connect(parameters), quiet=quiet)
    progress.say(_announcement(connection))
    engine = create_engine("postgresql+psycopg2://", creator=lambda: _session(parameters), poolclass=NullPool)
    deadline = time.monotonic() + RETRY_TIMEOUT
    while True:
        try:
            with engine.connect() as migrating:
                command.upgrade(alembic_config(connection=migrating, progress=progress), f"{version:04}")
            return
        except DBAPIError as error:
            if getattr(error.orig, "pgcode", None) not in (LOCK_NOT_AVAILABLE, DEADLOCK):
                raise (error.orig or error) from None
        users = _users_of_tables(connection)
        if time.monotonic() > deadline:
            raise SystemExit(f"The tables stay in use by {users}: end that, and repeat make migrate")
        progress.say(f"The tables are in use by {users}: trying again in {PAUSE} s")
        time.sleep(PAUSE)


def alembic_config(output: TextIO = sys.stdout, **attributes: Any) -> "Config":
    from alembic.config import Config

    return Config(toml_file=PROJECT / "pyproject.toml", output_buffer=output, attributes=attributes)


def _connect(parameters: dict[str, str]) -> Any:
    defaults: dict[str, Any] = {"connect_timeout": 10, "application_name": "order-api migrate"}
    connection = psycopg2.connect(**{**defaults, **parameters, "client_encoding": "UTF8"})
    connection.autocommit = True
    connection.cursor().execute("set idle_session_timeout = 0")
    return connection


def _session(parameters: dict[str, str]) -> Any:
    """A connection for migrations, with their settings."""
    from migrations.session import ADOPT, SESSION

    connection = _connect(parameters)
    connection.cursor().execute(SESSION + ADOPT)
    connection.autocommit = False
    return connection


@contextmanager
def _one_run_at_a_time(connection: Any, *, quiet: bool) -> Iterator[None]:
    """Holds an advisory lock. It is polled: a statement that waits for it would hold a snapshot, for which an
    index that the other run builds concurrently would wait."""
    with connection.cursor() as cursor:
        while True:
            cursor.execute("select pg_try_advisory_lock(hashtext('order-api migrations'))")
            if cursor.fetchone() == (True,):
                break
            if not quiet:
                sys.stderr.write("Waiting for another run of make migrate\n")
                quiet = True
            time.sleep(PAUSE)
    yield  # the lock is released with the connection


def _announcement(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute(SIZES)
        sizes = cursor.fetchall()
    lines = [f"{table}: about {rows:,} rows, {size}" for table, rows, size in sizes]
    if (schema_version(connection) or 0) < 4:
        seconds = sum(rows * INDEXES.get(table, 1) for table, rows, _ in sizes) / INDEXED_PER_SECOND
        lines.append(f"The indexes of version 4 take about {seconds:.0f} s; requests are served meanwhile")
    return "\n".join(lines)


def _users_of_tables(connection: Any) -> str:
    with connection.cursor() as cursor:
        cursor.execute(USERS)
        return ", ".join(f"{role} (pid {pid})" for role, pid in cursor.fetchall()) or "short transactions"
