"""The services that `make bench` measures us against answer our contract: it compares the same work."""

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
"""Nothing of this environment can be imported."""
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
    """A peer's process: events of API Gateway go in as lines of JSON, results come out."""

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
        """A caller whose claims a gateway has verified."""
        (payload,) = token.split(".")[1:2]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

        def send(method: str, target: str, headers: Any, body: bytes) -> Answer:
            result = self._call(event(method, target, dict(headers), body, claims))
            found = {name.lower(): values[-1] for name, values in all_headers(result).items()}
            return Answer(result["statusCode"], found, result["body"].encode())

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
    """What API Gateway calls a function with; it passes claims as text."""
    path, _, query = target.partition("?")
    asked = parse_qs(query)
    order_id = path.removeprefix("/orders").removeprefix("/")
    resource = "/orders/{order_id}" if order_id else "/orders"
    return {
        "resource": resource,
        "path": path,
        "httpMethod": method,
        "headers": headers,
        "multiValueHeaders": {name: [value] for name, value in headers.items()},
        "queryStringParameters": {name: values[-1] for name, values in asked.items()} or None,
        "multiValueQueryStringParameters": asked or None,
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
    """Who the peers log in as; row-level security does not bind them."""
    with connected(admin_url) as connection, connection.cursor() as cursor:
        cursor.execute("create role bench_peer login bypassrls")
        cursor.execute("grant usage on schema public to bench_peer")
        cursor.execute("grant select, insert on orders, order_items, idempotency_keys to bench_peer")
        yield "bench_peer"
        cursor.execute("drop owned by bench_peer; drop role bench_peer")


@contextmanager
def proxied(database: Urls, role: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of the database, and the URL that leads through it."""
    with (
        tempfile.TemporaryDirectory(prefix="order-api-wire-") as folder,
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
def theirs(peer: Peer, user_pool: UserPool, tenant: str) -> Client:
    """alice, as the peer knows her."""
    return peer.client(user_pool.token(tenant))


@pytest.fixture(scope="module")
def uvicorn(database: Urls, peer_role: str, user_pool: UserPool) -> Iterator[Transport]:
    """The FastAPI peer without a gateway: it verifies the tokens itself."""
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


def masked(placed: Answer) -> Json:
    """What is answered to a create, without what every create makes up."""
    order = placed.json["order"]
    return {**placed.json, "order": {**order, "order_id": "", "created_at": "", "updated_at": ""}}


def page(client: Client, query: str = "limit=50") -> Json:
    """A page, and whether there is a next one: each service has cursors of its own."""
    answer = client.get(f"/orders?{query}")
    assert answer.status == 200, answer.body
    return {**answer.json, "next_cursor": answer.json["next_cursor"] is not None}


def all_pages(client: Client, limit: int) -> list[list[Json]]:
    """Their orders, page by page along the cursors."""
    pages, query = [], f"limit={limit}"
    while True:
        answer = client.get(f"/orders?{query}").json
        pages.append(answer["orders"])
        assert (answer["offset"], answer["limit"]) == (None if "cursor" in query else 0, limit)
        if answer["next_cursor"] is None:
            return pages
        query = f"limit={limit}&cursor={answer['next_cursor']}"


def test_peer_answers_and_stores_an_order_identically(alice: Client, theirs: Client) -> None:
    ours, placed = alice.place(), theirs.place()

    assert placed.status == 201, placed.body
    assert masked(placed) == masked(ours)
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
def test_peer_reads_an_order_we_stored_identically(alice: Client, theirs: Client, order: Json) -> None:
    order_id = alice.place(order).json["order"]["order_id"]

    answer = theirs.get(f"/orders/{order_id}")

    assert (answer.status, answer.json) == (200, alice.get(f"/orders/{order_id}").json)


def test_peer_returns_identical_pages(alice: Client, theirs: Client) -> None:
    for number in range(52):
        alice.place(seed(items=[item(quantity=number + 1), item(quantity=1)]))

    assert page(theirs) == page(alice)
    assert [len(orders) for orders in all_pages(theirs, 25)] == [25, 25, 2]
    assert all_pages(theirs, 25) == all_pages(alice, 25)
    assert page(theirs, "limit=2&offset=51") == page(alice, "limit=2&offset=51")
    assert page(theirs, "limit=2&offset=99") == page(alice, "limit=2&offset=99")


def test_peer_filters_my_orders_by_user(
    peer: Peer, client: NewClient, theirs: Client, user_pool: UserPool, tenant: str
) -> None:
    mine = client().place().json["order"]
    peer.client(user_pool.token(tenant, "bob")).place()

    assert page(theirs, "my_orders=true")["orders"] == [mine]
    assert len(page(theirs)["orders"]) == 2


def test_peer_honours_idempotency_keys(alice: Client, theirs: Client) -> None:
    key = uuid4().hex

    first, again = theirs.place(key=key), theirs.place(key=key)
    another = theirs.place(seed(customer_name="Jane Doe"), key=key)

    assert [first.status, again.status, another.status] == [201, 201, 422]
    assert again.json == first.json
    assert [answer.headers.get("idempotent-replayed") for answer in (first, again)] == [None, "true"]
    assert page(alice)["orders"] == [first.json["order"]]


def test_peer_hides_orders_from_other_tenants(
    peer: Peer, alice: Client, theirs: Client, user_pool: UserPool, tenant: str
) -> None:
    order_id = alice.place().json["order"]["order_id"]

    stranger = peer.client(user_pool.token(f"other-{tenant}"))

    assert theirs.get(f"/orders/{order_id}").status == 200
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
def test_peer_rejects_the_same_invalid_orders(alice: Client, theirs: Client, changes: Json) -> None:
    assert [client.place(seed(**changes)).status for client in (alice, theirs)] == [422, 422]
    assert page(alice)["orders"] == []


def test_round_trips_are_counted(
    peer: Peer, theirs: Client, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are theirs to choose: printed, and not judged."""
    key = uuid4().hex
    order_id = theirs.place(key=key).json["order"]["order_id"]
    for _ in range(50):
        theirs.place()
    cursor = theirs.get("/orders?limit=50").json["next_cursor"]
    operations: dict[str, Callable[[], Answer]] = {
        "create": theirs.place,
        "get": lambda: theirs.get(f"/orders/{order_id}"),
        "list": lambda: theirs.get("/orders?limit=50"),
        "cursor": lambda: theirs.get(f"/orders?limit=50&cursor={cursor}"),
        "replay": lambda: theirs.place(key=key),
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
    theirs = Client(uvicorn, user_pool.token(tenant))
    key = uuid4().hex

    placed, again = theirs.place(key=key), theirs.place(key=key)

    assert placed.status == 201, placed.body
    assert again.json == placed.json
    assert again.headers["idempotent-replayed"] == "true"
    order_id = placed.json["order"]["order_id"]
    assert theirs.get(f"/orders/{order_id}").json == alice.get(f"/orders/{order_id}").json
    assert page(theirs) == page(alice)


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
