"""Settings of the role or the database that change how PostgreSQL reads and prints text change no answer."""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.database.statement import Statement
from migrations.migrate import migrate
from tests.chalicelib.database.test_role_check import UNSAFE, applied, assert_refused
from tests.chalicelib.database.test_schema import new_database, owner_url, snapshot
from tests.conftest import NewClient
from tests.support.cognito import UserPool
from tests.support.release_1 import apply_release_1
from tests.support.servers import api_on, limited, private_server, scope_of
from tools.client import Client, Transport, item, seed
from tools.postgres_server import EMBEDDED, INSTALLED, Server, connected

pytestmark = pytest.mark.slow

Settings = Mapping[str, str]
Answers = list[tuple[int, bytes]]

MATRIX: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("quote_all_identifiers", "transform_null_equals"), ("on",)),
    **dict.fromkeys(("array_nulls", "escape_string_warning", "standard_conforming_strings"), ("off",)),
    **dict.fromkeys(("lc_messages", "lc_monetary", "lc_numeric", "lc_time"), ("POSIX",)),
    "DateStyle": ("German, DMY", "SQL, DMY", "Postgres, YMD"),
    "IntervalStyle": ("sql_standard", "iso_8601", "postgres_verbose"),
    "TimeZone": ("Asia/Kathmandu", "America/St_Johns"),
    "backslash_quote": ("on", "off"),
    "bytea_output": ("escape",),
    "client_encoding": ("LATIN1", "SQL_ASCII", "EUC_TW"),
    "client_min_messages": ("debug5", "error"),
    "default_text_search_config": ("pg_catalog.simple",),
    "extra_float_digits": ("-15", "3"),
    "plpgsql.extra_errors": ("all",),
    "plpgsql.variable_conflict": ("use_variable", "use_column"),
    "timezone_abbreviations": ("Australia", "India"),
    "xmlbinary": ("hex",),
    "xmloption": ("document",),
}
"""The settings that change how text is read or printed, and their values other than the default."""
NO_TEXT = {
    "access": "restrict_nonsystem_relation_kind row_security search_path",
    "checks of new objects": "check_function_bodies createrole_self_grant icu_validation_level",
    "diagnostics": "plpgsql.check_asserts plpgsql.extra_warnings plpgsql.print_strict_params",
    "files of the server": "dynamic_library_path extension_control_path local_preload_libraries "
    "session_preload_libraries",
    "order of unsorted rows": "synchronize_seqscans",
    "storage": "default_table_access_method default_tablespace default_toast_compression temp_tablespaces "
    "gin_fuzzy_search_limit gin_pending_list_limit lo_compat_privileges",
    "timeouts": "idle_in_transaction_session_timeout idle_session_timeout lock_timeout statement_timeout "
    "transaction_timeout",
    "transactions": "default_transaction_deferrable default_transaction_isolation transaction_deferrable "
    "transaction_isolation default_transaction_read_only transaction_read_only",
    "triggers": "event_triggers session_replication_role",
    "vacuum": "vacuum_failsafe_age vacuum_freeze_min_age vacuum_freeze_table_age "
    "vacuum_multixact_failsafe_age vacuum_multixact_freeze_min_age vacuum_multixact_freeze_table_age",
}
"""Other settings of the same categories, by what they change."""
NO_TEXT_CATEGORIES = (
    "Connections and Authentication|Developer Options|Error Handling|File Locations|Lock Management|"
    "Query Tuning|Replication|Reporting and Logging|Resource Usage|Statistics|Vacuuming|Write-Ahead Log"
)

SERVERS = [EMBEDDED, *INSTALLED]
SINGLE = [{name: value} for name, values in MATRIX.items() for value in values]
COMBINED = [{name: values[index] for name, values in MATRIX.items()} for index in (0, -1)]
"""All settings together: as good as each by itself, as long as none is a fault."""
ROLE, DATABASE = "role orders_app", "database orders"

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


def label(value: Path | Settings) -> str:
    if isinstance(value, Path):
        return value.parent.name
    return " ".join(f"{name}={each}" for name, each in value.items()) if len(value) == 1 else "combined"


def on_servers(*runs: tuple[Path, Settings]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("server", "settings"), runs, ids=label, indirect=["server"], scope="module"
    )


each_setting = on_servers(
    *[(EMBEDDED, settings) for settings in SINGLE],
    *[(binaries, settings) for binaries in INSTALLED for settings in COMBINED],
)
all_settings = on_servers(*[(binaries, settings) for binaries in SERVERS for settings in COMBINED])


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with private_server(request.param) as server:
        migrate(server.urls.owner)
        yield server


@pytest.fixture(scope="module")
def catalog(server: Server) -> str:
    """What schema.sql makes of an empty database under PostgreSQL's defaults."""
    with new_database(server.url("postgres")) as url:
        migrate(owner_url(url))
        return snapshot(server.binaries, url)


@pytest.fixture(scope="module")
def stored(in_process: Transport, user_pool: UserPool) -> Client:
    """A user whose orders were placed under PostgreSQL's defaults."""
    return Client(in_process, user_pool.token("long-known", "alice"))


@pytest.fixture(scope="module")
def answers(server: Server, stored: Client) -> Answers:
    """What the API answers about those orders under PostgreSQL's defaults."""
    with api_on(server.urls.app):
        return read_all(stored)


def read_all(stored: Client) -> Answers:
    """Places the orders, or repeats them with their keys, and reads them in each way."""
    placed = [stored.place(order, key=f"key-{number}") for number, order in enumerate(ORDERS)]
    newest = stored.get("/orders?limit=1")
    read = [
        newest,
        stored.get(f"/orders?limit=1&cursor={newest.json['next_cursor']}"),
        stored.get("/orders?offset=1"),
        stored.get("/orders?my_orders=true&limit=2"),
        stored.get("/" + placed[0].headers["location"]),
        stored.get("/health/ready"),
    ]
    return [(answer.status, answer.body) for answer in (*placed, *read)]


def sent(order: dict[str, Any]) -> dict[str, Any]:
    """The members of an answered order that its client sent."""
    items = [{name: line[name] for name in ORDERS[0]["items"][0]} for line in order["items"]]
    return {**{name: order[name] for name in ORDERS[0]}, "items": items}


@contextmanager
def applied_settings(server: Server, settings: Settings, *scopes: str) -> Iterator[None]:
    with connected(server.url("postgres", "postgres")) as connection, connection.cursor() as cursor:
        try:
            for scope, (name, value) in product(scopes, settings.items()):
                cursor.execute(f"alter {scope} set {name} = '{value}'")
            yield
        finally:
            for scope, name in product(scopes, settings):
                cursor.execute(f"alter {scope} reset {name}")


@pytest.mark.parametrize("server", SERVERS, ids=label, indirect=True, scope="module")
def test_every_setting_is_classified(server: Server) -> None:
    """A new version's new setting belongs into MATRIX, or into NO_TEXT if it changes no text."""
    with connected(server.url("postgres")) as connection, connection.cursor() as cursor:
        cursor.execute("load 'plpgsql'")
        cursor.execute(
            "select name from pg_settings where context in ('user', 'superuser') and category !~ %s",
            [f"^({NO_TEXT_CATEGORIES})( / |$)"],
        )
        found = {name for (name,) in cursor.fetchall()}

    no_text = set(" ".join(NO_TEXT.values()).split())
    assert found - no_text == set(MATRIX)


@each_setting
@pytest.mark.parametrize(("scope", "prepare"), [(ROLE, "off"), (DATABASE, "on")], ids=["role", "database"])
def test_setting_changes_no_answer(
    server: Server,
    settings: Settings,
    scope: str,
    prepare: str,
    stored: Client,
    answers: Answers,
    client: NewClient,
    tenant: str,
    other_tenant: Client,
) -> None:
    alice = client(tenant=f"{tenant} {DIFFICULT}")
    with applied_settings(server, settings, scope), api_on(server.urls.app, DB_PREPARE=prepare):
        assert read_all(stored) == answers
        for order in ORDERS:
            placed = alice.place(order)
            assert placed.status == 201
            assert sent(placed.json["order"]) == order
            path = "/" + placed.headers["location"]
            assert placed.body.endswith(alice.get(path).body.removeprefix(b"{"))
            assert other_tenant.get(path).status == 404
        assert other_tenant.get("/orders").json["orders"] == []


@each_setting
def test_setting_changes_no_rate_limit(server: Server, settings: Settings, alice: Client) -> None:
    with applied_settings(server, settings, ROLE, DATABASE), limited(server.urls.app, "5/h"):
        counted = [alice.get("/orders") for _ in range(6)]

    assert [answer.status for answer in counted] == [200, 200, 200, 200, 200, 429]
    numbers = [re.findall(r"=(\d+)", answer.headers["ratelimit"]) for answer in counted]
    assert [int(left) for left, _ in numbers] == [4, 3, 2, 1, 0, 0]
    for turns, (_, seconds) in zip([1, 2, 3, 4, 5, 1], numbers, strict=True):
        assert 0 <= turns * 720 - int(seconds) < 15


@each_setting
def test_setting_changes_no_timeout(server: Server, settings: Settings, tenant: str) -> None:
    timeout = Statement("select current_setting('statement_timeout')", None)
    with applied_settings(server, settings, ROLE, DATABASE), api_on(server.urls.app):
        ((own,),) = scope_of(tenant).read(timeout)
        ((shortened,),) = scope_of(tenant, deadline=time.monotonic() + 4).read(timeout)

    assert own == "5s"
    assert 1 <= int(shortened.removesuffix("ms")) <= 2800


@each_setting
@pytest.mark.parametrize("case", ["a policy with an exception", "a policy without a write check"])
def test_setting_hides_no_loose_policy(server: Server, settings: Settings, case: str, alice: Client) -> None:
    with (
        applied(server, UNSAFE[case]),
        applied_settings(server, settings, ROLE, DATABASE),
        api_on(server.urls.app),
    ):
        assert_refused([alice.get("/orders")], "orders_app")


@all_settings
@pytest.mark.parametrize("migrated", [False, True], ids=["schema.sql", "migrations"])
def test_setting_changes_no_schema(server: Server, settings: Settings, migrated: bool, catalog: str) -> None:
    with new_database(server.url("postgres")) as url:
        if migrated:
            apply_release_1(owner_url(url))
        owner, database = "role orders_owner", f"database {parse_dsn(url)['dbname']}"
        with applied_settings(server, settings, owner, database):
            migrate(owner_url(url))
            migrate(owner_url(url))
        assert snapshot(server.binaries, url) == catalog
