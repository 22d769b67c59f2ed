"""With DB_PREPARE=off the API sends nothing that makes RDS Proxy pin a session.

A pinned session serves only one client until that client disconnects:
https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy-pinning.html
"""

import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.orders.statements import ORDER_BY_ID
from local.database import Urls
from tests.support.servers import api_on, limited, scope_of
from tools.client import Client, item, seed
from tools.postgres_proxy import Proxy
from tools.postgres_traffic import Traffic

MAX_UNPINNED_BYTES = 16 * 1024
"""Longest statement, in bytes, that does not pin."""
UNPINNED_VERBS = {"select", "insert", "with", "do"}
"""First words of statements that do not pin. SET, RESET, PREPARE, EXECUTE, DEALLOCATE, DISCARD, LISTEN,
DECLARE, LOAD, LOCK and CREATE do."""
STATEFUL = re.compile(
    r"\b(set_config|nextval|setval|currval|lastval|pg_(try_)?advisory_\w+|pg_export_snapshot|temp|temporary)\b"
)
LITERAL = re.compile(r"'(?:[^']|'')*'")
BLOCK = re.compile(r"\$\$.*?\$\$", re.DOTALL)


@pytest.fixture
def traffic(app: object, database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (its environment)
    """A new proxy in front of the database, recording."""
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}", DB_PREPARE="off"),
        proxy.watched(),
    ):
        yield proxy


def call_every_operation(client: Client, tenant: str, url: str) -> None:
    """Calls each operation in each variant, also with a host deadline and with a rate limit."""
    key = uuid4().hex
    order_id = client.place(key=key).json["order"]["order_id"]
    statuses = [
        client.place().status,
        client.place(seed(items=[item()] * 20)).status,
        client.place(key=key).status,
        client.place(seed(customer_name="Jane"), key=key).status,
        client.get(f"/orders/{order_id}").status,
        client.get(f"/orders/{order_id}", if_none_match='"1"').status,
        client.get(f"/orders/{uuid4()}").status,
        client.get("/health/ready").status,
    ]
    for owner_filter in ("", "&my_orders=true"):
        page = client.get(f"/orders?limit=1{owner_filter}")
        next_page = client.get(f"/orders?limit=1{owner_filter}&cursor={page.json['next_cursor']}")
        statuses += [page.status, next_page.status, client.get(f"/orders?offset=1{owner_filter}").status]
    scope_of(tenant, deadline=time.monotonic() + 5).read(ORDER_BY_ID, order_id=order_id)
    with limited(url, "5/h"):
        statuses.append(client.get("/orders").status)
    assert statuses == [201, 201, 201, 422, 200, 304, 404, 200, *[200] * 7]


def pinning_parts(traffic: Traffic) -> list[str]:
    """The parts of this traffic that pin a session."""
    reasons = [f"the message {kind}" for kind in set(traffic.messages) - {"startup", "Q", "X"}]
    for startup in traffic.startups:
        # pgjdbc sends these at startup too.
        unknown = set(startup) - {"user", "database", "application_name", "client_encoding", "datestyle"}
        reasons += [f"the parameter {name}" for name in unknown]
    for string in traffic.statements:
        reasons += [f"{len(string.encode())} bytes"] if len(string.encode()) > MAX_UNPINNED_BYTES else []
        without_literals = LITERAL.sub("''", BLOCK.sub("$$ $$", string)).lower()
        verbs = {statement.split()[0] for statement in without_literals.split(";") if statement.strip()}
        reasons += sorted(verbs - UNPINNED_VERBS)
        reasons += [match[0] for match in STATEFUL.finditer(LITERAL.sub("''", string).lower())]
    return reasons


def test_db_prepare_off_pins_no_session(alice: Client, tenant: str, traffic: Proxy) -> None:
    call_every_operation(alice, tenant, f"postgresql://orders_app@/orders?host={traffic.folder}")

    assert len(traffic.traffic.startups) >= 1
    assert len(traffic.traffic.statements) > 15
    assert pinning_parts(traffic.traffic) == []


def test_prepared_statements_pin_sessions(alice: Client, tenant: str, traffic: Proxy) -> None:
    """Negative control of the test above."""
    url = f"postgresql://orders_app@/orders?host={traffic.folder}"
    with api_on(url, DB_PREPARE="on"), traffic.watched() as recorded:
        call_every_operation(alice, tenant, url)

    assert set(pinning_parts(recorded)) == {"prepare", "execute"}


@pytest.mark.parametrize(("items", "is_pinned"), [(100, False), (500, True)])
def test_only_a_very_large_order_pins_its_session(
    alice: Client, traffic: Proxy, items: int, is_pinned: bool
) -> None:
    """Its statement exceeds 16 KiB, a limit documented in docs/database.md."""
    alice.get("/health/ready")
    with traffic.watched() as recorded:
        assert alice.place(seed(items=[item()] * items), key=uuid4().hex).status == 201

    assert bool(pinning_parts(recorded)) is is_pinned, pinning_parts(recorded)
