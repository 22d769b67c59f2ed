"""Tenant isolation: in the API, in the database, and between threads."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
from chalice.app import Chalice, CORSConfig

from chalicelib.caller import Caller
from chalicelib.database.statement import Statement
from chalicelib.errors import MissingTenant, Unauthorized
from chalicelib.orders.statements import ORDER_BY_ID
from local.database import Urls
from tests.conftest import NewClient
from tests.support.servers import scope_of
from tools.client import Client, seed
from tools.postgres_server import connected

Rows = Callable[..., list[tuple[Any, ...]]]
TABLES = ("orders", "order_items", "idempotency_keys")


def as_app(database: Urls, tenant: str | None, statement: str) -> list[tuple[Any, ...]] | int:
    """Runs a statement as the API's role, without the API's tenant filter."""
    with connected(database.app) as connection, connection.cursor() as cursor:
        cursor.execute("begin")
        if tenant is not None:
            cursor.execute("select set_tenant(%s)", (tenant,))
        cursor.execute(statement)
        result: list[tuple[Any, ...]] | int = cursor.fetchall() if cursor.description else cursor.rowcount
        cursor.execute("commit")
        return result


@pytest.mark.parametrize("table", TABLES)
def test_unfiltered_select_sees_only_its_own_tenant(
    database: Urls, alice: Client, other_tenant: Client, tenant: str, table: str, rows: Rows
) -> None:
    alice.place(key="k1")
    other_tenant.place(key="k1")

    assert as_app(database, tenant, f"select distinct tenant_id from {table}") == [(tenant,)]
    assert as_app(database, None, f"select * from {table}") == []
    assert as_app(database, "", f"select * from {table}") == []
    assert len(rows(f"select distinct tenant_id from {table}")) > 1


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("statement", ["update {} set tenant_id = 'acme'", "delete from {}", "truncate {}"])
def test_api_role_cannot_update_delete_or_truncate(
    database: Urls, alice: Client, tenant: str, table: str, statement: str
) -> None:
    alice.place(key="k1")

    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        as_app(database, tenant, statement.format(table))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("statement", ["update {} set tenant_id = tenant_id", "delete from {}"])
def test_granted_update_and_delete_skip_foreign_rows(
    admin_url: str, other_tenant: Client, alice: Client, tenant: str, table: str, statement: str, rows: Rows
) -> None:
    """Row-level security alone: the missing privileges are granted for one transaction."""
    alice.place(key="k1")
    other_tenant.place(key="k1")
    before = rows(f"select * from {table} where tenant_id <> %s order by 1, 2, 3", tenant)

    with connected(admin_url) as connection, connection.cursor() as cursor:
        cursor.execute(f"begin; grant update, delete on {table} to orders_app; set local role orders_app")
        cursor.execute("select set_tenant(%s)", (f"unused-{uuid4().hex}",))
        cursor.execute(statement.format(table))
        affected = cursor.rowcount
        cursor.execute("rollback")

    assert affected == 0
    assert rows(f"select * from {table} where tenant_id <> %s order by 1, 2, 3", tenant) == before


def test_rows_cannot_be_inserted_for_another_tenant(
    database: Urls, alice: Client, other_tenant: Client, tenant: str
) -> None:
    own = alice.place().json["order"]
    foreign = other_tenant.place().json["order"]

    for table, values in (
        (
            "orders",
            f"select '{foreign['tenant_id']}', '{uuid4()}', created_by, status, version, customer_name, "
            "customer_email, null, null, null, total_amount, currency, created_at, updated_at from orders",
        ),
        (
            "order_items",
            f"values ('{foreign['tenant_id']}', '{foreign['order_id']}'::uuid, 2, 'W', 'S', 1, 1)",
        ),
        (
            "idempotency_keys",
            f"values ('{foreign['tenant_id']}', 'u', 'k', repeat('0', 64), '{own['order_id']}'::uuid, now())",
        ),
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
            as_app(database, tenant, f"insert into {table} {values}")


def test_table_owner_is_bound_by_row_level_security(database: Urls, alice: Client) -> None:
    alice.place()

    with connected(database.owner) as connection, connection.cursor() as cursor:
        cursor.execute("select count(*) from orders")
        assert cursor.fetchone() == (0,)
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="row-level security"):
            cursor.execute(f"insert into idempotency_keys values ('acme', 'u', 'k', '', '{uuid4()}', now())")


def test_two_tenants_can_have_the_same_order_id(rows: Rows, alice: Client, other_tenant: Client) -> None:
    """A unique key over order_id alone would reveal whether another tenant's order exists."""
    order_id = alice.place().json["order"]["order_id"]
    scope = scope_of(other_tenant.place().json["order"]["tenant_id"])
    copy = Statement(
        f"insert into orders select tenant_id, '{order_id}', created_by, status, version, customer_name, "
        "customer_email, null, null, null, total_amount, currency, created_at, updated_at from orders"
        " where tenant_id = %(tenant_id)s",
        prepared=None,
    )

    scope.write((copy, [{}]))

    assert rows("select count(*) from orders where order_id = %s", order_id) == [(2,)]


@pytest.mark.parametrize("tenant_id", ["", None, " ", "a\x00b", "a\nb", "x" * 256, 7, ["acme"]])
def test_caller_without_a_valid_tenant_is_rejected(tenant_id: Any) -> None:
    with pytest.raises(MissingTenant):
        Caller(tenant_id=tenant_id, user_id="alice")
    with pytest.raises(MissingTenant):
        Caller.from_claims({"custom:tenant_id": tenant_id, "sub": "alice"})


def test_caller_without_a_user_is_rejected() -> None:
    with pytest.raises(Unauthorized):
        Caller.from_claims({"custom:tenant_id": "acme"})


def test_scope_without_a_tenant_is_rejected() -> None:
    with pytest.raises(ValueError, match="needs a tenant"):
        scope_of("")


def test_tenant_id_parameter_cannot_override_the_scope(tenant: str, other_tenant: Client) -> None:
    foreign = other_tenant.place().json["order"]

    orders = scope_of(tenant).read(ORDER_BY_ID, order_id=foreign["order_id"], tenant_id=foreign["tenant_id"])

    assert orders == []


def test_inserted_row_gets_the_scopes_tenant(tenant: str, rows: Rows) -> None:
    key = Statement(
        "insert into idempotency_keys values (%(tenant_id)s, 'u', 'k', '', gen_random_uuid(), now())", None
    )

    scope_of(tenant).write((key, [{"tenant_id": "globex"}]))

    assert rows("select count(*) from idempotency_keys where tenant_id = %s", tenant) == [(1,)]


def test_tenant_comes_only_from_the_token(alice: Client, other_tenant: Client, tenant: str) -> None:
    foreign = other_tenant.place().json["order"]
    headers = {"x-tenant-id": foreign["tenant_id"], "custom:tenant_id": foreign["tenant_id"]}

    assert alice.send("GET", f"/orders/{foreign['order_id']}", headers=headers).status == 404
    assert alice.send("GET", "/orders", headers=headers).json["orders"] == []
    assert alice.place(seed(tenant_id=foreign["tenant_id"])).fields == ["tenant_id"]
    assert alice.place().json["order"]["tenant_id"] == tenant


# Threads share one app object

THREADS, TENANTS, REQUESTS = 8, 4, 4000


def test_concurrent_threads_never_mix_tenants(client: NewClient) -> None:
    tenants = [f"parallel-{uuid4().hex[:12]}" for _ in range(TENANTS)]
    clients = {tenant: client(tenant=tenant) for tenant in tenants}
    placed: dict[str, list[str]] = {
        tenant: [clients[tenant].place().json["order"]["order_id"] for _ in range(3)] for tenant in tenants
    }

    def send_request(number: int) -> list[str]:
        """Sends one random request; returns what is wrong with the answer."""
        rng = random.Random(number)
        tenant, foreign = rng.sample(tenants, 2)
        own_client = clients[tenant]
        kind = rng.choice(["place", "read", "list", "cross_tenant_request"])
        if kind == "place":
            tenants_seen = {own_client.place().json["order"]["tenant_id"]}
        elif kind == "read":
            answer = own_client.get(f"/orders/{rng.choice(placed[tenant])}")
            tenants_seen = {
                answer.json["order"]["tenant_id"] if answer.status == 200 else f"status {answer.status}"
            }
        elif kind == "list":
            tenants_seen = {order["tenant_id"] for order in own_client.get("/orders?limit=3").json["orders"]}
        else:
            status = own_client.get(f"/orders/{rng.choice(placed[foreign])}").status
            return [] if status == 404 else [f"{tenant} reached {foreign}: {status}"]
        return [] if tenants_seen == {tenant} else [f"{tenant} saw {tenants_seen}"]

    assert in_parallel(send_request, REQUESTS) == []


def test_plain_chalice_mixes_tenants_across_threads() -> None:
    """Chalice itself has this race: its current request is an attribute of the shared app object."""
    plain_app = Chalice("plain", configure_logs=False)
    plain_app.api.cors = CORSConfig()

    @plain_app.route("/who")
    def current_tenant() -> str:
        threading.Event().wait(0.001)  # about as long as a statement
        assert plain_app.current_request is not None
        return str(plain_app.current_request.context["authorizer"]["claims"]["custom:tenant_id"])

    def send_request(number: int) -> list[str]:
        tenant = f"tenant-{number % TENANTS}"
        event = {
            "requestContext": {
                "resourcePath": "/who",
                "httpMethod": "GET",
                "authorizer": {"claims": {"custom:tenant_id": tenant}},
            },
            "headers": {},
            "pathParameters": None,
            "multiValueQueryStringParameters": None,
            "stageVariables": None,
            "body": None,
        }
        answer = plain_app(event, None)["body"]
        return [] if answer == tenant else [f"{tenant} saw {answer}"]

    assert in_parallel(send_request, 200) != []


def in_parallel(send_request: Callable[[int], list[str]], requests: int) -> list[str]:
    with ThreadPoolExecutor(THREADS) as pool:
        return [error for errors in pool.map(send_request, range(requests)) for error in errors]
