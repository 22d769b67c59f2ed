"""The services that `make bench` compares us with follow our API contract, so that it compares equal work."""

import base64
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from bench import contenders
from bench.contenders import CHALICE_ORM, FASTAPI, POWERTOOLS, Contender
from local.database import Urls
from local.hosts import START_TIMEOUT
from tests.conftest import NewClient
from tests.support.cognito import UserPool
from tools.client import SEED_BYTES, Answer, Client, Transport, free_port, item, over_http, seed
from tools.postgres_proxy import Proxy
from tools.postgres_server import connected

Json = dict[str, Any]
pytestmark = pytest.mark.slow

BARE_PYTHON = [sys.executable, "-I", "-S", "-B", "-c"]
"""Isolated: nothing of this virtual environment can be imported."""
WORKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from main import handler

for line in sys.stdin:
    print(json.dumps(handler(json.loads(line), None)), flush=True)
"""
UVICORN = """
import sys
sys.path.insert(0, sys.argv[1])
import uvicorn

uvicorn.run("main:app", port=int(sys.argv[2]), log_level="warning")
"""


class Peer:
    """A peer's process: reads API Gateway events and writes results, one line of JSON each."""

    def __init__(self, tree: Path, database_url: str, proxy: Proxy) -> None:
        self.proxy = proxy
        self._process = subprocess.Popen(
            [*BARE_PYTHON, WORKER, tree],
            env={"DATABASE_URL": database_url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._process.communicate(timeout=10)

    def client(self, token: str) -> Client:
        """A client whose claims arrive as if API Gateway had verified them."""
        (payload,) = token.split(".")[1:2]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

        def send(method: str, target: str, headers: Any, body: bytes) -> Answer:
            result = self._call(event(method, target, dict(headers), body, claims))
            response_headers = {name.lower(): values[-1] for name, values in all_headers(result).items()}
            return Answer(result["statusCode"], response_headers, result["body"].encode())

        return Client(send, token)

    def _call(self, event: Json) -> Json:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(event) + "\n")
        self._process.stdin.flush()
        result: Json = json.loads(self._process.stdout.readline())
        assert not result.get("isBase64Encoded")
        return result


def event(method: str, target: str, headers: dict[str, str], body: bytes, claims: Json) -> Json:
    """The event that API Gateway sends to a function; claims are strings."""
    path, _, query = target.partition("?")
    parameters = parse_qs(query)
    order_id = path.removeprefix("/orders").removeprefix("/")
    resource = "/orders/{order_id}" if order_id else "/orders"
    return {
        "resource": resource,
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": {name: values[-1] for name, values in parameters.items()} or None,
        "multiValueQueryStringParameters": parameters or None,
        "pathParameters": {"order_id": order_id} if order_id else None,
        "stageVariables": None,
        "requestContext": {
            "resourcePath": resource,
            "httpMethod": method,
            "path": f"/dev{path}",
            "stage": "dev",
            "requestId": str(uuid4()),
            "identity": {"sourceIp": "127.0.0.1"},
            "authorizer": {"claims": {name: str(value) for name, value in claims.items()}},
        },
        "body": body.decode() or None,
        "isBase64Encoded": False,
    }


def all_headers(result: Json) -> dict[str, list[str]]:
    single = {name: [value] for name, value in (result.get("headers") or {}).items()}
    return {**single, **(result.get("multiValueHeaders") or {})}


@pytest.fixture(scope="module")
def peer_role(admin_url: str) -> Iterator[str]:
    """The database role of the peers; it bypasses row-level security."""
    with connected(admin_url) as connection, connection.cursor() as cursor:
        cursor.execute("create role bench_peer login bypassrls")
        cursor.execute("grant usage on schema public to bench_peer")
        cursor.execute("grant select, insert on orders, order_items, idempotency_keys to bench_peer")
        yield "bench_peer"
        cursor.execute("drop owned by bench_peer; drop role bench_peer")


@contextmanager
def proxied(database: Urls, role: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of the database, and a database URL through it."""
    with (
        tempfile.TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), Path(parse_dsn(database.app)["host"]))) as proxy,
    ):
        yield proxy, f"postgresql://{role}@/orders?host={folder}&port=5432"


@pytest.fixture(scope="module", params=[FASTAPI, POWERTOOLS, CHALICE_ORM], ids=lambda peer: peer.key)
def peer(request: pytest.FixtureRequest, database: Urls, peer_role: str) -> Iterator[Peer]:
    with (
        proxied(database, peer_role) as (proxy, url),
        closing(Peer(tree(request.param), url, proxy)) as running,
    ):
        yield running


def tree(contender: Contender) -> Path:
    contenders.install([contender], advance=lambda _: None)
    return contender.trees.without_bytecode


@pytest.fixture
def peer_client(peer: Peer, user_pool: UserPool, tenant: str) -> Client:
    """alice as a client of the peer."""
    return peer.client(user_pool.token(tenant))


@pytest.fixture(scope="module")
def uvicorn(database: Urls, peer_role: str, user_pool: UserPool) -> Iterator[Transport]:
    """The FastAPI peer without a gateway: it verifies tokens itself."""
    port = free_port()
    process = subprocess.Popen(
        [*BARE_PYTHON, UVICORN, tree(FASTAPI), str(port)],
        env={
            "DATABASE_URL": database.app.replace("orders_app@", f"{peer_role}@"),
            "AUTH_JWKS_URL": user_pool.jwks_url,
            "AUTH_ISSUER": f"https://cognito-idp.eu-west-1.amazonaws.com/{user_pool.id}",
            "AUTH_AUDIENCE": user_pool.client_id,
        },
    )
    try:
        wait_for(port)
        yield over_http("127.0.0.1", port)
    finally:
        process.terminate()
        process.wait(10)


def wait_for(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, "uvicorn does not listen: see its output above"
            time.sleep(0.1)


def masked(created: Answer) -> Json:
    """The response to a create, without generated ids and times."""
    order = created.json["order"]
    return {**created.json, "order": {**order, "order_id": "", "created_at": "", "updated_at": ""}}


def page(client: Client, query: str = "limit=50") -> Json:
    """A page, with the cursor replaced by whether there is one: cursor formats differ between services."""
    answer = client.get(f"/orders?{query}")
    assert answer.status == 200, answer.body
    return {**answer.json, "next_cursor": answer.json["next_cursor"] is not None}


def all_pages(client: Client, limit: int) -> list[list[Json]]:
    """All orders, page by page, following the cursors."""
    pages, query = [], f"limit={limit}"
    while True:
        answer = client.get(f"/orders?{query}").json
        pages.append(answer["orders"])
        assert (answer["offset"], answer["limit"]) == (None if "cursor" in query else 0, limit)
        if answer["next_cursor"] is None:
            return pages
        query = f"limit={limit}&cursor={answer['next_cursor']}"


def test_peer_answers_and_stores_an_order_identically(alice: Client, peer_client: Client) -> None:
    expected, placed = alice.place(), peer_client.place()

    assert placed.status == 201, placed.body
    assert masked(placed) == masked(expected)
    order = placed.json["order"]
    assert order["created_at"] == order["updated_at"]
    assert alice.get(f"/orders/{order['order_id']}").json == {"order": order}


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(seed(), id="seed"),
        pytest.param(
            seed(items=[item(product_sku=f"SKU-{n}", unit_price=n / 4) for n in range(12)]), id="items"
        ),
        pytest.param(seed(customer_phone=None, shipping_address=None, billing_address=None), id="nulls"),
        pytest.param(seed(customer_name='Zoë "Q" Łukasz 雪'), id="unicode"),
        pytest.param(seed(total_amount=999_999_999_999.99), id="much money"),
        pytest.param(seed(currency="JPY", total_amount=100, items=[item(unit_price=50)]), id="no decimals"),
    ],
)
def test_peer_reads_an_order_we_stored_identically(alice: Client, peer_client: Client, order: Json) -> None:
    order_id = alice.place(order).json["order"]["order_id"]

    answer = peer_client.get(f"/orders/{order_id}")

    assert (answer.status, answer.json) == (200, alice.get(f"/orders/{order_id}").json)


def test_peer_returns_identical_pages(alice: Client, peer_client: Client) -> None:
    for number in range(52):
        alice.place(seed(items=[item(quantity=number + 1), item(quantity=1)]))

    assert page(peer_client) == page(alice)
    assert [len(orders) for orders in all_pages(peer_client, 25)] == [25, 25, 2]
    assert all_pages(peer_client, 25) == all_pages(alice, 25)
    assert page(peer_client, "limit=2&offset=51") == page(alice, "limit=2&offset=51")
    assert page(peer_client, "limit=2&offset=99") == page(alice, "limit=2&offset=99")


def test_peer_filters_my_orders_by_user(
    peer: Peer, client: NewClient, peer_client: Client, user_pool: UserPool, tenant: str
) -> None:
    mine = client().place().json["order"]
    peer.client(user_pool.token(tenant, "bob")).place()

    assert page(peer_client, "my_orders=true")["orders"] == [mine]
    assert len(page(peer_client)["orders"]) == 2


def test_peer_honours_idempotency_keys(alice: Client, peer_client: Client) -> None:
    key = uuid4().hex

    first, replayed = peer_client.place(key=key), peer_client.place(key=key)
    another = peer_client.place(seed(customer_name="Jane Doe"), key=key)

    assert [first.status, replayed.status, another.status] == [201, 201, 422]
    assert replayed.json == first.json
    assert [answer.headers.get("idempotent-replayed") for answer in (first, replayed)] == [None, "true"]
    assert page(alice)["orders"] == [first.json["order"]]


def test_peer_hides_orders_from_other_tenants(
    peer: Peer, alice: Client, peer_client: Client, user_pool: UserPool, tenant: str
) -> None:
    order_id = alice.place().json["order"]["order_id"]

    stranger = peer.client(user_pool.token(f"other-{tenant}"))

    assert peer_client.get(f"/orders/{order_id}").status == 200
    assert stranger.get(f"/orders/{order_id}").status == 404
    assert page(stranger)["orders"] == []
    assert peer.client(user_pool.token(None)).get("/orders").status == 403


@pytest.mark.parametrize(
    "changes",
    [
        {"customer_name": "  "},
        {"customer_name": "x" * 256},
        {"customer_email": "john"},
        {"billing_address": "x" * 2001},
        {"total_amount": -1},
        {"total_amount": 1e13},
        {"total_amount": 1.23456},
        {"total_amount": "much"},
        {"currency": "usd"},
        {"items": []},
        {"items": [item()] * 501},
        {"items": [item(quantity=0)]},
        {"items": [item(quantity=1.5)]},
        {"items": [item(unit_price=None)]},
        {"tenant_id": "another"},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_peer_rejects_the_same_invalid_orders(alice: Client, peer_client: Client, changes: Json) -> None:
    assert [client.place(seed(**changes)).status for client in (alice, peer_client)] == [422, 422]
    assert page(alice)["orders"] == []


def test_round_trips_are_counted(
    peer: Peer, peer_client: Client, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A peer may make any number of round trips: they are printed, not compared."""
    key = uuid4().hex
    order_id = peer_client.place(key=key).json["order"]["order_id"]
    for _ in range(50):
        peer_client.place()
    cursor = peer_client.get("/orders?limit=50").json["next_cursor"]
    operations: dict[str, Callable[[], Answer]] = {
        "create": peer_client.place,
        "get": lambda: peer_client.get(f"/orders/{order_id}"),
        "list": lambda: peer_client.get("/orders?limit=50"),
        "cursor": lambda: peer_client.get(f"/orders?limit=50&cursor={cursor}"),
        "replay": lambda: peer_client.place(key=key),
    }
    trips = {}

    for name, operation in operations.items():
        with peer.proxy.watched() as traffic:
            answer = operation()
        assert answer.status in (200, 201), answer.body
        trips[name] = traffic.trips

    with capsys.disabled():
        sys.stdout.write(f"\n{request.node.callspec.id}: round trips {trips}\n")
    assert all(trips.values())


def test_uvicorn_serves_requests_with_a_valid_token(
    uvicorn: Transport, alice: Client, user_pool: UserPool, tenant: str
) -> None:
    uvicorn_client = Client(uvicorn, user_pool.token(tenant))
    key = uuid4().hex

    placed, replayed = uvicorn_client.place(key=key), uvicorn_client.place(key=key)

    assert placed.status == 201, placed.body
    assert replayed.json == placed.json
    assert replayed.headers["idempotent-replayed"] == "true"
    order_id = placed.json["order"]["order_id"]
    assert uvicorn_client.get(f"/orders/{order_id}").json == alice.get(f"/orders/{order_id}").json
    assert page(uvicorn_client) == page(alice)


def test_uvicorn_rejects_missing_and_invalid_tokens(
    uvicorn: Transport, user_pool: UserPool, tenant: str
) -> None:
    good = user_pool.token(tenant)
    another_client = user_pool.tokens(tenant, "alice", user_pool.other_client_id)["IdToken"]
    tokens = [
        None,
        "nonsense",
        good[:-8] + "AAAAAAAA",
        another_client,
        user_pool.token(tenant, kind="AccessToken"),
    ]

    assert [Client(uvicorn, token).place(raw=SEED_BYTES).status for token in tokens] == [401] * 5
