"""Settings of the role or the database that change how PostgreSQL reads and prints text change no answer."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.database.statement import Statement
from local.database import apply_schema
from tests.chalicelib.database.test_role_check import UNSAFE, applied, assert_refused
from tests.chalicelib.database.test_schema import new_database, owner_url, snapshot, without_timestamps
from tests.conftest import NewClient
from tests.support.cognito import UserPool
from tests.support.servers import api_on, limited, private_server, scope_of
from tools.client import Client, Transport, item, seed
from tools.postgres_server import EMBEDDED, INSTALLED, Server, connected

pytestmark = pytest.mark.slow

MATRIX: Mapping[str, tuple[str, ...]] = {
    "DateStyle": ("German, DMY", "SQL, DMY", "Postgres, YMD"),
    "IntervalStyle": ("sql_standard", "iso_8601", "postgres_verbose"),
    "TimeZone": ("Asia/Kathmandu", "America/St_Johns"),
    "array_nulls": ("off",),
    "backslash_quote": ("on", "off"),
    "bytea_output": ("escape",),
    "client_encoding": ("LATIN1", "SJIS", "SQL_ASCII"),
    "client_min_messages": ("debug5", "error"),
    "default_text_search_config": ("pg_catalog.simple",),
    "escape_string_warning": ("off",),
    "extra_float_digits": ("-15", "3"),
    "lc_messages": ("POSIX",),
    "lc_monetary": ("POSIX",),
    "lc_numeric": ("POSIX",),
    "lc_time": ("POSIX",),
    "plpgsql.extra_errors": ("all",),
    "plpgsql.variable_conflict": ("use_variable", "use_column"),
    "quote_all_identifiers": ("on",),
    "standard_conforming_strings": ("off",),
    "synchronize_seqscans": ("off",),
    "timezone_abbreviations": ("Australia", "India"),
    "transform_null_equals": ("on",),
    "xmlbinary": ("hex",),
    "xmloption": ("document",),
}
NO_TEXT: Mapping[str, str] = {
    "access": "restrict_nonsystem_relation_kind row_security search_path",
    "checks of new objects": "check_function_bodies createrole_self_grant icu_validation_level",
    "files of the server": "dynamic_library_path extension_control_path local_preload_libraries"
    " session_preload_libraries",
    "PL/pgSQL's diagnostics": "plpgsql.check_asserts plpgsql.extra_warnings plpgsql.print_strict_params",
    "storage": "default_table_access_method default_tablespace default_toast_compression gin_fuzzy_search_limit"
    " gin_pending_list_limit lo_compat_privileges temp_tablespaces",
    "timeouts": "idle_in_transaction_session_timeout idle_session_timeout lock_timeout statement_timeout"
    " transaction_timeout",
    "transactions": "default_transaction_deferrable default_transaction_isolation default_transaction_read_only"
    " transaction_deferrable transaction_isolation transaction_read_only",
    "triggers": "event_triggers session_replication_role",
    "vacuum": "vacuum_failsafe_age vacuum_freeze_min_age vacuum_freeze_table_age vacuum_multixact_failsafe_age"
    " vacuum_multixact_freeze_min_age vacuum_multixact_freeze_table_age",
}
"""By what they change."""
NO_TEXT_CATEGORIES = (
    "Connections and Authentication",
    "Developer Options",
    "Error Handling",
    "File Locations",
    "Lock Management",
    "Query Tuning",
    "Replication",
    "Reporting and Logging",
    "Resource Usage",
    "Statistics",
    "Vacuuming",
    "Write-Ahead Log",
)
CASES = [(name, value) for name, values in MATRIX.items() for value in values]
SCOPES = ("role orders_app", "database orders")
every_setting = pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{n}={v}" for n, v in CASES])
DIFFICULT = r"""O'Neil \' \\ "q" % %s %(x)s $1 $$ :x ? é☃💩"""


ORDERS = [
    seed(
        customer_name=DIFFICULT,
        currency=currency,
        total_amount=amount,
        items=[item(product_name=DIFFICULT, product_sku="\\x41\\", unit_price=amount)],
    )
    for currency, amount in (("JPY", 100), ("BHD", 1234.5), ("USD", 999999999.99))
]
Answers = list[tuple[int, bytes]]


@pytest.fixture(scope="module", params=[EMBEDDED, *INSTALLED], ids=lambda binaries: binaries.parent.name)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with private_server(request.param) as server:
        apply_schema(server.urls.owner)
        yield server


@pytest.fixture(scope="module")
def catalog(server: Server) -> list[str]:
    """What schema.sql makes of an empty database."""
    with new_database(server.url("postgres")) as url:
        apply_schema(owner_url(url))
        return without_timestamps(snapshot(server.binaries, url))


@pytest.fixture(scope="module")
def stored(in_process: Transport, user_pool: UserPool) -> Client:
    """A user of a tenant whose orders were placed under PostgreSQL's defaults."""
    return Client(in_process, user_pool.token("long-known", "alice"))


@pytest.fixture(scope="module")
def answers(server: Server, stored: Client) -> Answers:
    """What the API answers about those orders under PostgreSQL's defaults."""
    with api_on(server.urls.app):
        for number, order in enumerate(ORDERS):
            assert stored.place(order, key=f"key-{number}").status == 201
        return read_all(stored)


def read_all(stored: Client) -> Answers:
    newest = stored.get("/orders?limit=1")
    order_id = newest.json["orders"][0]["order_id"]
    answers = [
        newest,
        stored.get(f"/orders?limit=1&cursor={newest.json['next_cursor']}"),
        stored.get("/orders?offset=1"),
        stored.get("/orders?my_orders=true&limit=2"),
        stored.get(f"/orders/{order_id}"),
        stored.get("/health/ready"),
        *[stored.place(order, key=f"key-{number}") for number, order in enumerate(ORDERS)],
    ]
    return [(answer.status, answer.body) for answer in answers]


def sent(order: dict[str, Any]) -> dict[str, Any]:
    """The members of an answered order that its client sent."""
    items = [{name: line[name] for name in ORDERS[0]["items"][0]} for line in order["items"]]
    return {**{name: order[name] for name in ORDERS[0]}, "items": items}


@contextmanager
def setting(server: Server, name: str, value: str, *scopes: str) -> Iterator[None]:
    set_it = "; ".join(f"alter {scope} set {name} = '{value}'" for scope in scopes)
    reset_it = "; ".join(f"alter {scope} reset {name}" for scope in scopes)
    with connected(server.url("postgres", "postgres")) as connection, connection.cursor() as cursor:
        cursor.execute(set_it)
        try:
            yield
        finally:
            cursor.execute(reset_it)


def test_every_setting_is_classified(server: Server) -> None:
    """A new version's new setting belongs into MATRIX, or into NO_TEXT if it changes no text."""
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("do $$ begin end $$")  # loads PL/pgSQL with its settings
        cursor.execute(
            "select name from pg_settings where context in ('user', 'superuser') and category !~ %s",
            [f"^({'|'.join(NO_TEXT_CATEGORIES)})( / |$)"],
        )
        found = {name for (name,) in cursor.fetchall()}

    no_text = {name for names in NO_TEXT.values() for name in names.split()}
    assert not found - {*MATRIX, *no_text}
    assert not {*MATRIX} - found
    assert not no_text & {*MATRIX}


@every_setting
def test_setting_changes_no_answer(
    server: Server,
    stored: Client,
    answers: Answers,
    other_tenant: Client,
    client: NewClient,
    tenant: str,
    name: str,
    value: str,
) -> None:
    alice = client(tenant=f"{tenant} {DIFFICULT}")
    for scope, prepare in product(SCOPES, ("on", "off")):
        with setting(server, name, value, scope), api_on(server.urls.app, DB_PREPARE=prepare):
            assert read_all(stored) == answers
            for order in ORDERS:
                placed = alice.place(order)
                assert placed.status == 201
                assert sent(placed.json["order"]) == order
                path = "/" + placed.headers["location"]
                read = alice.get(path)
                assert read.json["order"] == placed.json["order"]
                assert placed.body.endswith(read.body.removeprefix(b"{"))
                assert other_tenant.get(path).status == 404
            assert other_tenant.get("/orders").json["orders"] == []


@every_setting
def test_setting_changes_no_rate_limit(server: Server, client: NewClient, name: str, value: str) -> None:
    for scope in SCOPES:
        alice = client(tenant=f"{scope} {name} {value}")
        with setting(server, name, value, scope), limited(server.urls.app, "5/h"):
            counted = [alice.get("/orders") for _ in range(6)]

        assert [answer.status for answer in counted] == [*[200] * 5, 429]
        headers = [re.findall(r"\d+", answer.headers["ratelimit"]) for answer in counted]
        assert [int(left) for left, _ in headers] == [4, 3, 2, 1, 0, 0]
        for (_, seconds), turns in zip(headers, (1, 2, 3, 4, 5, 1), strict=True):
            assert 0 <= turns * 720 - int(seconds) < 60


@every_setting
def test_setting_changes_no_timeout(server: Server, tenant: str, name: str, value: str) -> None:
    timeout = Statement("select current_setting('statement_timeout')", None)
    for scope in SCOPES:
        with setting(server, name, value, scope), api_on(server.urls.app):
            assert scope_of(tenant).read(timeout) == [("5s",)]
            ((shortened,),) = scope_of(tenant, deadline=time.monotonic() + 3).read(timeout)
            assert 1 < int(shortened.removesuffix("ms")) <= 2000


@every_setting
def test_loose_policy_is_refused_under_setting(server: Server, alice: Client, name: str, value: str) -> None:
    for case in ("a policy with an exception", "a policy without a write check"):
        with (
            applied(server, UNSAFE[case]),
            setting(server, name, value, *SCOPES),
            api_on(server.urls.app),
        ):
            assert_refused([alice.get("/orders")], "orders_app")


@every_setting
def test_schema_is_the_same_under_setting(server: Server, catalog: list[str], name: str, value: str) -> None:
    with new_database(server.url("postgres")) as url:
        scopes = ("role orders_owner", f"database {parse_dsn(url)['dbname']}")
        with setting(server, name, value, *scopes):
            apply_schema(owner_url(url))
            apply_schema(owner_url(url))
        assert without_timestamps(snapshot(server.binaries, url)) == catalog
