"""docs/operations.md: its statements run, and each log line matches the right row of the runbook."""

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from psycopg2.extras import RealDictCursor

from chalicelib.database.errors import Refused
from chalicelib.database.statement import Statement
from migrations.migrate import migrate
from tests.support.servers import api_on, private_server, scope_of
from tests.support.waiting import until
from tools.client import Client
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text()
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| .+ \|$", PAGE.split("## Server errors")[1].split("```")[0], re.M)
CONNECTIONS, RESERVED = 8, 2
"""max_connections of the small server, and how many are reserved for superusers."""


def runbook_cause(line: str) -> str:
    """The cause in the first row of the runbook with a quotation that matches this log line."""
    for symptom, cause in ROWS:
        for quoted in re.findall(r"`(.+?)`", symptom):
            if re.search(".*".join(map(re.escape, re.split(r"\.{3}|NAME|TABLE", quoted))), line):
                return str(cause)
    pytest.fail(f"no row of the runbook fits {line!r}")


def statements() -> list[str]:
    text = "\n".join(re.findall(r"^ *```sql\n(.*?)^ *```$", PAGE, re.M | re.S))
    return [part.strip() for part in re.sub("--.*", "", text).split(";") if part.strip()]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with private_server() as server:
        migrate(server.urls.owner)
        server.stop()
        server.options = "-c shared_preload_libraries=pg_stat_statements"
        server.start()
        yield server


@pytest.fixture
def small_server() -> Iterator[Server]:
    with private_server() as server:
        migrate(server.urls.owner)
        server.stop()
        server.options = (
            f"-c max_connections={CONNECTIONS} -c superuser_reserved_connections={RESERVED} "
            "-c max_wal_senders=0"
        )
        server.start()
        yield server


def logged_line(
    server: Server,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    method: str = "GET",
    **variables: str,
) -> str:
    """The error that a failing request to this server logs before its request line."""
    with api_on(server.urls.app, **variables):
        answer = client.get("/orders") if method == "GET" else client.place()
    assert answer.status in (500, 503)
    record = [record for record in caplog.records if record.name == "order-api"][-1]
    error = record.exc_info[1] if record.exc_info else None
    return f"{type(error).__name__}: {error}" if error else record.getMessage()


def test_every_statement_of_the_runbook_runs(server: Server) -> None:
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("create extension pg_stat_statements")
        for statement in statements():
            cursor.execute(statement)

    assert len(statements()) == 8


def test_runbook_finds_and_ends_a_blocking_session(server: Server) -> None:
    (find_holder,) = [text for text in statements() if "pg_blocking_pids" in text]
    (terminate,) = [text for text in statements() if "pg_terminate_backend" in text]
    with (
        ThreadPoolExecutor(1) as pool,
        connected(server.urls.owner) as waiting,
        connected(server.url("postgres")) as superuser,
        # Closed first, so that the blocked statement continues before the test waits for it.
        connected(f"{server.urls.owner}&application_name=migration") as holder,
    ):
        holder.cursor().execute("begin")
        holder.cursor().execute("delete from schema_version")
        holder.cursor().execute("lock table orders; select 'ann@example.com'")
        blocked = pool.submit(waiting.cursor().execute, "select from orders")
        cursor = superuser.cursor(cursor_factory=RealDictCursor)
        until(lambda: cursor.execute(find_holder) or cursor.rowcount)
        (row,) = cursor.fetchall()
        cursor.execute(terminate.replace("1234", str(row["holder"])))
        blocked.result(timeout=10)
        cursor.execute("select count(*) from schema_version")
        remaining = cursor.fetchone()

    holder_row = (row["usename"], row["application_name"], row["state"], row["holds"])
    assert holder_row == (
        "orders_owner",
        "migration",
        "idle in transaction",
        "lock table orders; select '..'",
    )
    assert row["pid"] != row["holder"]
    assert row["held_for"] >= row["waits"]
    assert remaining == {"count": 1}  # the holder's delete was rolled back


def test_runbook_covers_exhausted_connections_before_general_failures(
    small_server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    lines = []
    with ExitStack() as connections:
        with connected(small_server.url("postgres")) as superuser:
            superuser.cursor().execute("alter role orders_app connection limit 0")
        lines.append(logged_line(small_server, alice, caplog))
        with connected(small_server.url("postgres")) as superuser:
            superuser.cursor().execute("alter role orders_app connection limit -1")
        for _ in range(CONNECTIONS - RESERVED):
            connections.enter_context(connected(small_server.urls.owner))
        lines.append(logged_line(small_server, alice, caplog))
        for _ in range(RESERVED):
            connections.enter_context(connected(small_server.url("postgres")))
        lines.append(logged_line(small_server, alice, caplog))

    assert "too many connections for role" in lines[0]
    assert "slots are reserved" in lines[1]
    assert "too many clients" in lines[2]
    assert [runbook_cause(line) for line in lines] == [runbook_cause(lines[0])] * 3
    assert "used up" in runbook_cause(lines[0])


def test_runbook_covers_an_unreachable_database(alice: Client, caplog: pytest.LogCaptureFixture) -> None:
    for address in ("127.0.0.1:1", "nowhere.invalid"):
        with api_on(f"postgresql://orders_app@{address}/orders"):
            assert alice.get("/orders").status == 503
        line = [record.getMessage() for record in caplog.records if record.name == "order-api"][-1]
        assert "no route to the database" in runbook_cause(line)


def test_runbook_covers_silent_locked_and_read_only_databases(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(server.url("postgres")) as superuser:
        cursor = superuser.cursor()
        cursor.execute("alter role orders_app set default_transaction_read_only = on")
        read_only = logged_line(server, alice, caplog, method="POST")
        cursor.execute("alter role orders_app set default_transaction_read_only = off")
        cursor.execute("begin; lock table orders")
        locked = logged_line(server, alice, caplog)
        silent = logged_line(server, alice, caplog, DB_READ_TIMEOUT="1")
        cursor.execute("rollback")

    assert "default_transaction_read_only" in runbook_cause(read_only)
    assert "lock" in runbook_cause(locked)
    assert "does not respond" in runbook_cause(silent)


@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        ("alter role orders_app superuser", "alter role orders_app nosuperuser"),
        ("create policy everybody on orders using (true)", "drop policy everybody on orders"),
        ("drop policy tenant_isolation on orders", ""),
        ("alter table orders no force row level security", ""),
    ],
)
def test_runbook_fix_for_a_refused_role_works(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture, fault: str, fix: str
) -> None:
    with connected(server.url("postgres")) as superuser:
        superuser.cursor().execute(fault)
        line = logged_line(server, alice, caplog)
        superuser.cursor().execute(fix or "select")
    migrate(server.urls.owner)

    assert line.startswith("refuses to serve: the role orders_app ")
    assert runbook_cause(line) != "row-level security would not bind this role" or "superuser" in fault
    with api_on(server.urls.app):
        assert alice.get("/orders").status == 200


def test_runbook_covers_an_outdated_schema(server: Server) -> None:
    """A statement that needs the missing function fails; see docs/database.md, Applying it."""
    with connected(server.urls.owner) as owner:
        owner.cursor().execute("drop function set_tenant(text, integer)")
        try:
            with api_on(server.urls.app), pytest.raises(Refused) as refused:
                scope_of("acme", time.monotonic() + 3).read(Statement("select 1", None))
        finally:
            migrate(server.urls.owner)

    assert "older than the release" in runbook_cause(f"Refused: {refused.value}")


def test_runbook_fix_for_revoked_plpgsql_works(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(server.url("postgres")) as superuser:
        superuser.cursor().execute("revoke usage on language plpgsql from public")
        line = logged_line(server, alice, caplog)
        (fix,) = re.findall(r"`(grant usage on language .+?)`", PAGE)
        superuser.cursor().execute(fix)

    assert line == "Refused: SQLSTATE 42501: permission denied for language plpgsql"
    assert "revoked USAGE" in runbook_cause(line)
    with api_on(server.urls.app):
        assert alice.get("/orders").status == 200
