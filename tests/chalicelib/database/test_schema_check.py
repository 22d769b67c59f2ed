"""Grants to other roles, and a schema that is older than the release: prevented, else logged."""

import logging
from collections.abc import Iterator

import psycopg2
import pytest

from chalicelib.composition import connections
from chalicelib.database.schema_check import SCHEMA_VERSION
from migrations.migrate import migrate
from tests.chalicelib.database.test_schema import execute
from tests.support.release_1 import apply_release_1
from tests.support.servers import api_on, private_server
from tools.client import Client
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

TABLES = ("orders", "order_items", "idempotency_keys", "rate_limits", "schema_version")
FORBIDDEN = [
    *(f"select from {table}" for table in TABLES),
    *(f"insert into {table} default values" for table in TABLES),
    *(f"delete from {table}" for table in TABLES),
    *(f"truncate {table} cascade" for table in TABLES),
    "update orders set status = 'pending'",
    "update schema_version set version_num = '1'",
    "create table copy (t text, o uuid, foreign key (t, o) references orders (tenant_id, order_id))",
    "create trigger spy before insert on orders execute function suppress_redundant_updates_trigger()",
    "select set_tenant('acme')",
    "select set_tenant('acme', 1000)",
]
EVERYTHING = """
    create role anon login;
    revoke connect on database orders from public;
    grant connect on database orders to anon;
    grant all on schema public to anon;
    alter default privileges for role orders_owner grant all on tables to anon, public;
    alter default privileges for role orders_owner grant all on functions to anon, public"""


@pytest.fixture(scope="module", params=["new", "migrated"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server where roles get everything on new tables and functions, as on Supabase."""
    with private_server() as server:
        execute(server.url("postgres"), EVERYTHING)
        if request.param == "migrated":
            apply_release_1(server.urls.owner)
        migrate(server.urls.owner)
        yield server


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_default_privileges_give_other_roles_nothing(server: Server, statement: str) -> None:
    with connected(server.url("anon")) as connection, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        connection.cursor().execute(statement)


def test_api_serves_where_public_may_not_connect(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with api_on(server.urls.app):
        assert [alice.place().status, alice.get("/health/ready").status] == [201, 200]

    assert warnings(caplog) == []


@pytest.mark.parametrize("migrated", [False, True])
def test_missing_right_to_connect_is_explained(migrated: bool) -> None:
    """The owner of the tables does not own the database, and may not grant it."""
    with private_server() as server:
        if migrated:
            apply_release_1(server.urls.owner)
        execute(
            server.url("postgres"),
            "alter database orders owner to postgres",
            "revoke connect on database orders from public",
            "grant connect on database orders to orders_owner",
            "grant create, usage on schema public to orders_owner",
        )

        with pytest.raises(psycopg2.errors.RaiseException, match="may not let orders_app connect") as error:
            migrate(server.urls.owner)
        if not migrated:  # the file's own role was rolled back with it
            settings = ("statement_timeout = '5s'", "lock_timeout = '2s'")
            execute(server.url("postgres"), "create role orders_app login")
            execute(server.url("postgres"), *(f"alter role orders_app set {setting}" for setting in settings))
        execute(server.url("postgres"), "grant connect on database orders to orders_app")
        migrate(server.urls.owner)

    assert "grant connect on database orders to orders_app" in str(error.value.diag.message_hint)


def test_later_grants_are_kept_and_logged_once(
    server: Server, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    grants = (
        "select on orders to anon; grant truncate on order_items to orders_app;"
        "grant update (version_num) on schema_version to anon"
    )
    execute(server.urls.owner, f"grant {grants}", "grant execute on function set_tenant(text) to public")

    migrate(server.urls.owner)
    with api_on(server.urls.app):
        assert alice.place().status == 201
        connections().pool.empty()
        assert alice.get("/orders").status == 200

    execute(server.urls.owner, f"revoke {grants.replace(' to ', ' from ').replace('grant', 'revoke')}")
    execute(server.urls.owner, "revoke execute on function set_tenant(text) from public")
    assert warnings(caplog) == [
        "roles have privileges that schema.sql does not grant: TRUNCATE on order_items to orders_app; "
        "SELECT on orders to anon; UPDATE on schema_version to anon; EXECUTE on set_tenant to public"
    ]


def test_statements_that_the_server_logs_to_clients_are_not_logged(
    alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """They have the request's values."""
    settings = ("client_min_messages = log", "log_statement = 'all'", "log_min_duration_statement = 0")
    with private_server(log_may_hold_values=True) as server:
        migrate(server.urls.owner)
        execute(server.url("postgres"), *(f"alter role orders_app set {setting}" for setting in settings))
        with api_on(server.urls.app):
            assert alice.place().status == 201

    assert [record for record in caplog.records if record.name == "order-api" and record.levelno > 20] == []


@pytest.mark.parametrize("version", [2, 6])
def test_older_schema_serves_but_is_not_ready(
    version: int, alice: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with private_server() as server:
        apply_release_1(server.urls.owner)
        if version > 2:
            migrate(server.urls.owner, version)
        with api_on(server.urls.app):
            assert [alice.place().status, alice.get("/orders").status] == [201, 200]
            ready = alice.get("/health/ready")
            migrate(server.urls.owner)
            assert alice.get("/health/ready").status == 200

    at, needed = f"at version {version}, this release needs", SCHEMA_VERSION
    assert (ready.status, ready.slug, ready.headers["retry-after"]) == (503, "unavailable", "60")
    assert ready.json["detail"] == f"The database's schema is {at} {needed}: run make migrate."
    assert f"the schema is {at} {needed} (make migrate)" in warnings(caplog)


def test_database_without_the_schema_is_not_ready(alice: Client) -> None:
    with private_server() as server:
        execute(server.url("postgres"), "create role orders_app login")
        with api_on(server.urls.app):
            ready = alice.get("/health/ready")

    assert ready.status == 503
    assert "run make migrate" in ready.json["detail"]
