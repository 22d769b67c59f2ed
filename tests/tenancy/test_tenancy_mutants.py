"""Tenant filter and row-level security: with either one removed, the other still isolates tenants."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from chalicelib.database.statement import Insert
from chalicelib.orders import repository as orders
from local import hosts
from migrations.migrate import migrate
from tests.support.cognito import UserPool
from tests.support.cross_tenant_requests import WAYS_AT_ONCE, Way
from tests.support.mutants import NO_ROW_LEVEL_SECURITY
from tests.support.servers import api_on, private_server
from tests.support.tenancy_rule import Operation, Rows, Scene
from tools.client import Client, Transport, free_port, over_http
from tools.postgres_server import Server, connected

pytestmark = pytest.mark.slow

WAYS_TO_THE_DATABASE = [
    way for way in WAYS_AT_ONCE if way.by not in ("token", "query", "body", "path", "no id")
]
"""The ways to name the victim that are not rejected before a query."""
TABLES = {"INSERT_ORDER": "orders", "INSERT_ITEMS": "order_items", "INSERT_KEY": "idempotency_keys"}


@pytest.fixture(scope="module")
def server_without_rls() -> Iterator[Server]:
    """A separate server without row-level security."""
    with private_server() as server:
        migrate(server.urls.owner)
        with connected(server.urls.owner) as connection:
            connection.cursor().execute(NO_ROW_LEVEL_SECURITY)
            connection.cursor().execute("alter role orders_app set synchronous_commit = off")
        yield server


@pytest.fixture
def scene(app: Any, user_pool: UserPool, rows: Rows, in_process: Transport) -> Scene:
    document = in_process("GET", "/openapi.json", {}, b"").json
    return Scene(app, document, user_pool, rows, baseline=in_process)


def rows_of(server: Server) -> Rows:
    def query_rows(query: str, *values: Any) -> list[tuple[Any, ...]]:
        with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
            cursor.execute(query, values)
            result: list[tuple[Any, ...]] = cursor.fetchall()
            return result

    return query_rows


def is_protected(operation: Operation) -> bool:
    return operation.protected


def isolation_errors(scene: Scene, send: Transport, ways: Sequence[Way] = WAYS_AT_ONCE) -> list[str]:
    errors = [error for way in ways for error in scene.cross_tenant_requests(way, send, is_protected)]
    return [*errors, *scene.replays(send)]


# Without the filter


def test_row_level_security_isolates_without_the_filter(
    scene: Scene, in_process: Transport, drop_tenant_filter: Callable[[], None]
) -> None:
    drop_tenant_filter()

    assert isolation_errors(scene, in_process) == []


def test_host_isolates_tenants_without_the_filter(
    scene: Scene, mutant: Path, environment: dict[str, str]
) -> None:
    port = free_port()
    with hosts.serving("gcp", mutant, environment, "127.0.0.1", port):
        assert isolation_errors(scene, over_http("127.0.0.1", port), WAYS_TO_THE_DATABASE) == []


# Without row-level security


def test_filter_isolates_without_row_level_security(
    scene: Scene, in_process: Transport, server_without_rls: Server
) -> None:
    scene = Scene(scene.app, scene.document, scene.pool, rows_of(server_without_rls), in_process)

    with api_on(server_without_rls.urls.app, DB_ALLOW_UNSAFE_ROLE="1"):
        assert isolation_errors(scene, in_process, WAYS_TO_THE_DATABASE) == []


# Negative control: without both guards the checks above fail


def test_matrix_detects_leaks_without_both_guards(
    scene: Scene, in_process: Transport, server_without_rls: Server, drop_tenant_filter: Callable[[], None]
) -> None:
    scene = Scene(scene.app, scene.document, scene.pool, rows_of(server_without_rls), in_process)
    drop_tenant_filter()

    with api_on(server_without_rls.urls.app, DB_ALLOW_UNSAFE_ROLE="1"):
        errors = {
            str(way): scene.cross_tenant_requests(way, in_process, is_protected)
            for way in WAYS_AT_ONCE
            if way.by in ("nothing", "id", "mine")
        }
        replays = scene.replays(in_process)

    assert any("a stranger, GET /orders, nothing: : says owner-" in error for error in errors["nothing: "])
    assert any(
        "a stranger, GET /orders/{order_id}, id: as it is: says" in error for error in errors["id: as it is"]
    )
    assert any("a namesake, GET /orders, mine: : says owner-" in error for error in errors["mine: "])
    assert any(error.startswith("a namesake: ") for error in replays)


# An INSERT that names another tenant


@pytest.fixture
def misdirect_insert(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes an INSERT of this process's API write this tenant, whoever the caller is."""

    def misdirect(statement: str, tenant: str) -> None:
        original: Insert = getattr(orders, statement)
        row_values = original.row_values.replace("%(tenant_id)s", f"'{tenant}'")
        monkeypatch.setattr(orders, statement, Insert(original.head, row_values, original.tail))

    return misdirect


def rows_written(rows: Rows, tenant: str) -> dict[str, int]:
    counts = {
        table: rows(f"select count(*) from {table} where tenant_id = %s", tenant) for table in TABLES.values()
    }
    return {table: count for table, [(count,)] in counts.items() if count}


@pytest.mark.parametrize("statement", [*TABLES, "all of them"])
def test_an_insert_that_names_another_tenant_writes_nothing(
    statement: str, alice: Client, tenant: str, rows: Rows, misdirect_insert: Callable[[str, str], None]
) -> None:
    for name in TABLES if statement == "all of them" else [statement]:
        misdirect_insert(name, f"victim-{tenant}")

    answers = [alice.place(key="k1"), alice.place(key="k1"), alice.place(key="k2")]

    assert [(answer.status, answer.slug) for answer in answers] == [(500, "internal")] * 3
    assert f"victim-{tenant}" not in "".join(answer.body.decode() for answer in answers)
    assert rows_written(rows, f"victim-{tenant}") == {}
    assert rows_written(rows, tenant) == {}


def test_misdirected_insert_succeeds_without_row_level_security(
    alice: Client, tenant: str, server_without_rls: Server, misdirect_insert: Callable[[str, str], None]
) -> None:
    for name in TABLES:
        misdirect_insert(name, f"victim-{tenant}")

    with api_on(server_without_rls.urls.app, DB_ALLOW_UNSAFE_ROLE="1"):
        assert alice.place(key="k1").status == 201

    assert rows_written(rows_of(server_without_rls), f"victim-{tenant}") == dict.fromkeys(TABLES.values(), 1)
