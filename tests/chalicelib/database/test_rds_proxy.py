"""What RDS Proxy pins a session for, the API never sends with DB_PREPARE=off.

A pinned session serves one client until that hangs up:
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

LONGEST = 16 * 1024
"""Bytes of a statement, beyond which the proxy pins."""
HARMLESS = {"select", "insert", "with", "do"}
"""What a statement may begin with: not SET, RESET, PREPARE, EXECUTE, DEALLOCATE, DISCARD, LISTEN, DECLARE,
LOAD, LOCK or CREATE."""
STATEFUL = re.compile(
    r"\b(set_config|nextval|setval|currval|lastval|pg_(try_)?advisory_\w+|pg_export_snapshot|temp|temporary)\b"
)
LITERAL = re.compile(r"'(?:[^']|'')*'")
BLOCK = re.compile(r"\$\$.*?\$\$", re.DOTALL)


@pytest.fixture
def traffic(app: object, database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (its environment)
    """A new proxy in front of the database, which has seen nothing yet."""
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-wire-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}", DB_PREPARE="off"),
        proxy.watched(),
    ):
        yield proxy


def everything(client: Client, tenant: str, url: str) -> None:
    """Each operation, in each of its forms, by requests and by a host that says when it will end."""
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
    for mine in ("", "&my_orders=true"):
        page = client.get(f"/orders?limit=1{mine}")
        further = client.get(f"/orders?limit=1{mine}&cursor={page.json['next_cursor']}")
        statuses += [page.status, further.status, client.get(f"/orders?offset=1{mine}").status]
    scope_of(tenant, deadline=time.monotonic() + 5).read(ORDER_BY_ID, order_id=order_id)
    with limited(url, "5/h"):
        statuses.append(client.get("/orders").status)
    assert statuses == [201, 201, 201, 422, 200, 304, 404, 200, *[200] * 7]


def pins(traffic: Traffic) -> list[str]:
    """What of this traffic would pin a session."""
    found = [f"the message {kind}" for kind in set(traffic.messages) - {"startup", "Q", "X"}]
    for startup in traffic.startups:
        # Every session of pgjdbc's begins with these too.
        unknown = set(startup) - {"user", "database", "application_name", "client_encoding", "datestyle"}
        found += [f"the parameter {name}" for name in unknown]
    for string in traffic.statements:
        found += [f"{len(string.encode())} bytes"] if len(string.encode()) > LONGEST else []
        bare = LITERAL.sub("''", BLOCK.sub("$$ $$", string)).lower()
        verbs = {statement.split()[0] for statement in bare.split(";") if statement.strip()}
        found += sorted(verbs - HARMLESS)
        found += [match[0] for match in STATEFUL.finditer(LITERAL.sub("''", string).lower())]
    return found


def test_db_prepare_off_pins_no_session(alice: Client, tenant: str, traffic: Proxy) -> None:
    everything(alice, tenant, f"postgresql://orders_app@/orders?host={traffic.folder}")

    assert len(traffic.traffic.startups) >= 1
    assert len(traffic.traffic.statements) > 15
    assert pins(traffic.traffic) == []


def test_prepared_statements_pin_sessions(alice: Client, tenant: str, traffic: Proxy) -> None:
    """And so the test above can fail."""
    url = f"postgresql://orders_app@/orders?host={traffic.folder}"
    with api_on(url, DB_PREPARE="on"), traffic.watched() as seen:
        everything(alice, tenant, url)

    assert set(pins(seen)) == {"prepare", "execute"}


@pytest.mark.parametrize(("items", "is_pinned"), [(100, False), (500, True)])
def test_only_a_very_large_order_pins_its_session(
    alice: Client, traffic: Proxy, items: int, is_pinned: bool
) -> None:
    """Its statement is longer than the proxy reads: docs/database.md says so."""
    alice.get("/health/ready")
    with traffic.watched() as seen:
        assert alice.place(seed(items=[item()] * items), key=uuid4().hex).status == 201

    assert bool(pins(seen)) is is_pinned, pins(seen)
