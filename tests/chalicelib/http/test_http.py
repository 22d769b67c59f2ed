"""HTTP: the local server over real sockets, and the headers of every answer."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from uuid import uuid4

import pytest

from tests.conftest import NewClient
from tests.support.cognito import UserPool
from tools.client import SEED_BYTES, Answer, Client, Transport, seed

PROJECT = Path(__file__).parents[3]
MIB = 1024 * 1024
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
JSON = {"content-type": "application/json"}
ORDER_ID = "019b0000-0000-7000-8000-000000000000"
ALLOWED = {
    "/orders": "GET, HEAD, POST",
    f"/orders/{ORDER_ID}": "GET, HEAD",
    "/health": "GET, HEAD",
    "/health/ready": "GET, HEAD",
    "/openapi.json": "GET, HEAD",
}
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-headers": "Authorization,Content-Type,Idempotency-Key,If-None-Match,"
    "X-Amz-Date,X-Amz-Security-Token,X-Api-Key,traceparent,tracestate",
}


@pytest.fixture
def bearer(user_pool: UserPool, tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {user_pool.token(tenant)}"}


@pytest.fixture
def buyer(client: NewClient, http: Transport) -> Client:
    """alice, over sockets."""
    return client(transport=http)


@pytest.fixture
def passer_by(http: Transport) -> Client:
    """A caller without a token, over sockets."""
    return Client(http, None)


@pytest.fixture
def connection(server: tuple[str, int]) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(*server, timeout=30)
    yield connection
    connection.close()


@pytest.fixture
def wire(server: tuple[str, int]) -> Callable[..., Answer]:
    """Sends bytes as they are and reads one answer."""

    def exchange(head: str, body: bytes = b"") -> Answer:
        with socket.create_connection(server, timeout=30) as line:
            line.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            response = http.client.HTTPResponse(line, method=head.partition(" ")[0])
            response.begin()
            return read(response)

    return exchange


def read(response: http.client.HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def head(bearer: Mapping[str, str], *lines: str) -> str:
    """The head of a POST of an order, without Content-Length or Transfer-Encoding."""
    authorization = f"Authorization: {bearer['authorization']}"
    return "\n".join(
        ["POST /orders HTTP/1.1", "Host: x", authorization, "Content-Type: application/json", *lines]
    )


# Framing of bodies


def test_a_chunked_body_is_read(connection: http.client.HTTPConnection, bearer: dict[str, str]) -> None:
    pieces = (SEED_BYTES[start : start + 7] for start in range(0, len(SEED_BYTES), 7))

    connection.request("POST", "/orders", pieces, {**bearer, **JSON}, encode_chunked=True)

    assert read(connection.getresponse()).status == 201


@pytest.mark.parametrize("coding", ["Chunked", "CHUNKED ", "chunked"])
def test_chunk_extensions_and_trailers_are_ignored(
    wire: Callable[..., Answer], bearer: dict[str, str], coding: str
) -> None:
    body = b"%X;name=value\r\n%s\r\n0\r\nX-Trailer: x\r\n\r\n" % (len(SEED_BYTES), SEED_BYTES)

    assert wire(head(bearer, f"Transfer-Encoding: {coding}"), body).status == 201


@pytest.mark.parametrize("size", [MIB + 1, 3 * MIB])
def test_oversized_body_gets_413_and_keeps_the_connection(
    connection: http.client.HTTPConnection, bearer: dict[str, str], size: int
) -> None:
    pieces = (b"x" * 65_536 for _ in range(size // 65_536 + 1))

    connection.request("POST", "/orders", b"x" * size, {**bearer, **JSON})
    plain = read(connection.getresponse())
    connection.request("POST", "/orders", pieces, {**bearer, **JSON}, encode_chunked=True)
    in_chunks = read(connection.getresponse())
    connection.request("POST", "/orders", SEED_BYTES, {**bearer, **JSON})
    after = read(connection.getresponse())

    for answer in (plain, in_chunks):
        assert (answer.status, answer.slug) == (413, "payload-too-large")
    assert after.status == 201


def test_one_mebibyte_body_is_accepted_in_both_framings(
    connection: http.client.HTTPConnection, bearer: dict[str, str]
) -> None:
    body = SEED_BYTES.ljust(MIB)

    connection.request("POST", "/orders", body, {**bearer, **JSON})
    plain = read(connection.getresponse())
    connection.request("POST", "/orders", iter([body[:9], body[9:]]), {**bearer, **JSON}, encode_chunked=True)
    in_chunks = read(connection.getresponse())

    assert (plain.status, in_chunks.status) == (201, 201)


def test_conflicting_body_framings_are_rejected(wire: Callable[..., Answer], bearer: dict[str, str]) -> None:
    for framing in (
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", f"Content-Length: {len(SEED_BYTES)}"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: identity", "Transfer-Encoding: chunked"],
    ):
        answer = wire(head(bearer, *framing), chunked(SEED_BYTES))
        assert answer.status == 400, framing
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: x",
        "Content-Length: -1",
        "Content-Length: +5",
        "Content-Length: 5.0",
        "Content-Length: 0x5",
        "Content-Length: 1_0",
        "Content-Length: 5, 5",
        "Content-Length: \xb2",
        "Content-Length:",
        f"Content-Length: {'9' * 5_000}",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
    ],
    ids=lambda framing: framing[:40],
)
def test_invalid_content_length_is_rejected(
    wire: Callable[..., Answer], bearer: dict[str, str], framing: str
) -> None:
    answer = wire(head(bearer, framing))

    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(
    "line",
    [
        "foo bar\nContent-Length: 38",
        "X-Foo\nContent-Length: 38",
        "Content-Length : 38",
        "Content-Length:\n 38",
        "Transfer-Encoding:\n chunked",
    ],
)
def test_malformed_header_line_cannot_smuggle_a_request(
    server: tuple[str, int], bearer: dict[str, str], line: str
) -> None:
    smuggled = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    request = f"POST /orders HTTP/1.1\nHost: x\nAuthorization: {bearer['authorization']}\n{line}\n\n"
    with socket.create_connection(server, timeout=30) as wire:
        wire.sendall(request.replace("\n", "\r\n").encode() + smuggled)
        answers = b"".join(iter(lambda: wire.recv(65536), b""))

    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_unknown_method_is_rejected_with_json(wire: Callable[..., Answer]) -> None:
    answer = wire('G"\\T /orders HTTP/1.1\nHost: x')

    assert (answer.status, answer.json["status"]) == (400, 400)


def test_many_tiny_chunks_are_read_quickly(
    connection: http.client.HTTPConnection, bearer: dict[str, str]
) -> None:
    started = time.monotonic()

    connection.request("POST", "/orders", (b"x" for _ in range(200_000)), bearer, encode_chunked=True)

    assert connection.getresponse().status == 400
    assert time.monotonic() - started < 20


SIZE = f"{len(SEED_BYTES):x}"


@pytest.mark.parametrize(
    "size",
    ["x", "", " ", f"-{SIZE}", f"+{SIZE}", f"0x{SIZE}", f"{SIZE[0]}_{SIZE[1:]}", f"{SIZE}h"],
    ids=lambda size: size[:9],
)
def test_invalid_chunk_size_is_rejected(
    wire: Callable[..., Answer], bearer: dict[str, str], size: str
) -> None:
    body = b"%s\r\n%s\r\n0\r\n\r\n" % (size.encode(), SEED_BYTES)

    answer = wire(head(bearer, "Transfer-Encoding: chunked"), body)

    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_truncated_body_places_no_order(
    server: tuple[str, int], bearer: dict[str, str], alice: Client
) -> None:
    for framing, body in (
        (f"Content-Length: {len(SEED_BYTES) + 9}", SEED_BYTES),
        ("Transfer-Encoding: chunked", chunked(SEED_BYTES)[:-5]),
    ):
        with socket.create_connection(server, timeout=30) as line:
            line.sendall(head(bearer, framing).replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
            line.shutdown(socket.SHUT_WR)
            while line.recv(65_536):
                pass

    assert alice.get("/orders").json["orders"] == []


def test_expect_100_continue_is_answered(server: tuple[str, int], bearer: dict[str, str]) -> None:
    with socket.create_connection(server, timeout=30) as line:
        expecting = head(bearer, f"Content-Length: {len(SEED_BYTES)}", "Expect: 100-continue")
        line.sendall(expecting.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        assert line.recv(1_000).startswith(b"HTTP/1.1 100 ")
        line.sendall(SEED_BYTES)
        response = http.client.HTTPResponse(line)
        response.begin()
        assert response.status == 201


# Paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "//",
        "/orders/",
        "//orders",
        "/orders//",
        "/orders/x/y",
        "/orders/x/",
        "/orders%2F",
        "/Orders",
        "/order",
        "/health/",
        "/docs/",
        "/docs/nothing",
        "/health/ready/",
        "/health/live",
        "/openapi.json/",
        "/openapi",
        "/.env",
        "/orders/../health",
        "/v1/orders",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path_is_404_with_and_without_token(
    wire: Callable[..., Answer], bearer: dict[str, str], method: str, path: str
) -> None:
    for authorization in ("X: y", f"Authorization: {bearer['authorization']}"):
        answer = wire(f"{method} {path} HTTP/1.1\nHost: x\n{authorization}")
        assert (answer.status, answer.slug) == (404, "not-found")


@pytest.mark.parametrize("path", ALLOWED)
def test_method_not_allowed_lists_the_allowed_methods(buyer: Client, passer_by: Client, path: str) -> None:
    for method in METHODS:
        if method in ALLOWED[path].split(", "):
            continue
        for caller in (buyer, passer_by):
            answer = caller.send(method, path, b"{", {"content-type": "text/plain"})
            assert (answer.status, answer.slug) == (405, "method-not-allowed")
            assert answer.headers["allow"] == ALLOWED[path]


@pytest.mark.parametrize("path", ALLOWED)
def test_allowed_methods_are_not_405(buyer: Client, path: str) -> None:
    for method in ALLOWED[path].split(", "):
        assert buyer.send(method, path).status != 405


@pytest.mark.parametrize("path", ALLOWED)
def test_preflight_gets_the_cors_headers(passer_by: Client, path: str) -> None:
    origin = {"origin": "https://shop.example", "access-control-request-method": "GET"}

    answer = passer_by.send("OPTIONS", path, headers=origin)

    assert answer.status == 200
    assert {name: answer.headers[name] for name in CORS} == CORS
    assert answer.headers["access-control-max-age"] == "3600"
    assert set(ALLOWED[path].split(", ")) <= set(answer.headers["access-control-allow-methods"].split(","))


@pytest.mark.parametrize("host", ["http", "in_process"])
def test_head_matches_get_without_the_body(
    client: NewClient, host: str, request: pytest.FixtureRequest
) -> None:
    transport = request.getfixturevalue(host)
    buyer, passer_by = client(transport=transport), Client(transport, None)
    placed = buyer.place().headers["location"]
    asked: list[tuple[Client, str, dict[str, str]]] = [
        (buyer, "/orders", {}),
        (buyer, "/orders?limit=0", {}),
        (buyer, f"/{placed}", {}),
        (buyer, f"/{placed}", {"if-none-match": '"1"'}),
        (buyer, f"/{placed}", {"if-none-match": '"2"'}),
        (buyer, f"/orders/{ORDER_ID}", {}),
        (passer_by, f"/{placed}", {}),
        (passer_by, "/orders", {}),
        (passer_by, "/health", {}),
        (passer_by, "/health/ready", {}),
        (passer_by, "/openapi.json", {}),
        (passer_by, "/unknown", {}),
    ]
    for caller, path, headers in asked:
        got, headed = caller.send("GET", path, headers=headers), caller.send("HEAD", path, headers=headers)

        assert (headed.status, headed.body) == (got.status, b""), path
        assert meaningful(headed) == meaningful(got), path
        assert headed.headers.get("content-length") in (None, got.headers.get("content-length")), path


def meaningful(answer: Answer) -> dict[str, str]:
    own = ("date", "server", "x-request-id", "content-length")
    return {name: value for name, value in answer.headers.items() if name not in own}


# Headers of every answer


def test_every_response_has_the_common_headers(buyer: Client, passer_by: Client) -> None:
    mine = {"x-request-id": "mine-4711", "X-Amzn-RequestId": "mine-4711"}
    placed = buyer.place().headers["location"]
    answers = {
        200: buyer.send("GET", f"/{placed}", headers=mine),
        201: buyer.send("POST", "/orders", SEED_BYTES, {**mine, **JSON}),
        304: buyer.send("GET", f"/{placed}", headers={**mine, "if-none-match": "*"}),
        400: buyer.send("POST", "/orders", b"{", {**mine, **JSON}),
        401: passer_by.send("POST", "/orders", SEED_BYTES, {**mine, **JSON}),
        404: passer_by.send("GET", "/unknown", headers=mine),
        405: passer_by.send("DELETE", "/orders", headers=mine),
        413: buyer.send("POST", "/orders", b"x" * (MIB + 1), {**mine, **JSON}),
        415: buyer.send("POST", "/orders", SEED_BYTES, {**mine, "content-type": "text/plain"}),
        422: buyer.send("POST", "/orders", b"{}", {**mine, **JSON}),
    }

    for status, answer in answers.items():
        assert answer.status == status
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert {name: answer.headers[name] for name in CORS} == CORS
        exposed = answer.headers["access-control-expose-headers"].split(",")
        assert {"ETag", "Idempotent-Replayed", "Location", "Retry-After", "X-Request-Id"} <= set(exposed)
        kind = "application/problem+json" if status >= 400 else "application/json"
        assert answer.headers["content-type"] == kind
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
        if status >= 400:
            assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert len({answer.headers["x-request-id"] for answer in answers.values()}) == len(answers)


def test_health_responses_have_the_common_headers(passer_by: Client) -> None:
    for path, status in (("/health", "ok"), ("/health/ready", "ready")):
        answer = passer_by.get(path)
        assert (answer.status, answer.json) == (200, {"status": status})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
        assert {name: answer.headers[name] for name in CORS} == CORS


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/swagger-ui.css"])
def test_docs_responses_have_the_common_headers(passer_by: Client, path: str) -> None:
    page, headed, posted = (passer_by.send(method, path) for method in ("GET", "HEAD", "POST"))

    assert page.status == 200
    assert page.headers["content-type"].startswith("text/")
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-request-id"]
    assert page.headers["access-control-allow-origin"] == "*"
    assert (headed.status, headed.body, meaningful(headed)) == (200, b"", meaningful(page))
    assert (posted.status, posted.slug, posted.headers["allow"]) == (405, "method-not-allowed", "GET, HEAD")


# Connections


def test_a_connection_serves_many_requests(
    connection: http.client.HTTPConnection, bearer: dict[str, str]
) -> None:
    connection.connect()
    line = connection.sock

    for method, path, body, headers, status in (
        ("GET", "/health", None, {}, 200),
        ("HEAD", "/orders", None, bearer, 200),
        ("POST", "/orders", SEED_BYTES, {**bearer, **JSON}, 201),
        ("POST", "/orders", b"{", {**bearer, **JSON}, 400),
        ("POST", "/orders", SEED_BYTES, JSON, 401),
        ("POST", "/unknown", SEED_BYTES, JSON, 404),
        ("PUT", "/orders", SEED_BYTES, JSON, 405),
        ("GET", "/orders", b"a body that nobody reads", bearer, 200),
        ("OPTIONS", "/orders", None, {}, 200),
        ("HEAD", "/unknown", None, {}, 404),
        ("HEAD", "/docs", None, {}, 200),
        ("GET", "/orders", None, bearer, 200),
    ):
        connection.request(method, path, body, headers)
        assert read(connection.getresponse()).status == status
        assert connection.sock is line


def test_connection_stays_usable_after_a_304(
    connection: http.client.HTTPConnection, bearer: dict[str, str], alice: Client
) -> None:
    placed = alice.place().headers["location"]
    for headers, status in (
        ({"If-None-Match": '"1"'}, 304),
        ({}, 200),
        ({"If-None-Match": "*"}, 304),
        ({}, 200),
    ):
        connection.request("GET", f"/{placed}", headers={**bearer, **headers})
        assert read(connection.getresponse()).status == status


def test_fifty_concurrent_connections_get_their_own_responses(client: NewClient, http: Transport) -> None:
    together = Barrier(50, timeout=30)
    buyers = [client(tenant=f"parallel-{uuid4().hex[:12]}", transport=http) for _ in range(5)]

    def buy(number: int) -> str:
        buyer = buyers[number % 5]
        together.wait()
        placed = buyer.place(seed(customer_name=f"Customer {number}"))
        return str(buyer.get(f"/{placed.headers['location']}").json["order"]["customer_name"])

    with ThreadPoolExecutor(50) as pool:
        names = list(pool.map(buy, range(50)))

    assert names == [f"Customer {number}" for number in range(50)]
    assert [len(buyer.get("/orders").json["orders"]) for buyer in buyers] == [10] * 5


# Separate processes


ASK = """
import json, sys, threading
from app import app
from local.server import serve
from tools.client import over_http
server = serve(app, "127.0.0.1", 0, lambda path: None)
threading.Thread(target=server.serve_forever, daemon=True).start()
ask = over_http("127.0.0.1", server.port)
for request in sys.argv[1:]:
    method, path = request.split()
    answer = ask(method, path, {}, b"")
    print(json.dumps([answer.status, dict(answer.headers), answer.body.decode()]))
"""


@pytest.fixture
def elsewhere(environment: dict[str, str]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Sends these requests to the API in a separate process, with another environment."""

    def run(*requests: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", ASK, *requests],
            env={**os.environ, **environment, **variables},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def answers(process: "subprocess.CompletedProcess[str]") -> list[Answer]:
    assert process.returncode == 0, process.stderr
    lines = [
        json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")
    ]  # the rest is log
    return [Answer(status, headers, body.encode()) for status, headers, body in lines]


def test_server_log_omits_request_paths_and_queries(
    passer_by: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert passer_by.get("/orders?access_token=hunter2&?limit=1").status == 401
    assert passer_by.get("/orders/hunter2").status == 401

    assert "hunter2" not in capsys.readouterr().err


def test_health_needs_no_database(elsewhere: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    nowhere = "postgresql://orders_app@127.0.0.1:1/orders"

    health, ready, headed = answers(
        elsewhere("GET /health", "GET /health/ready", "HEAD /health/ready", DATABASE_URL=nowhere)
    )

    assert health.status == 200
    assert (ready.status, ready.slug, headed.status) == (503, "unavailable", 503)
    assert ready.headers["retry-after"]
    assert "127.0.0.1" not in ready.body.decode()


def test_cors_allows_only_the_configured_origin(
    elsewhere: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    origin = "https://shop.example"

    for answer in answers(
        elsewhere(
            "GET /health", "GET /orders", "GET /unknown", "PUT /orders", "OPTIONS /orders", CORS_ORIGIN=origin
        )
    ):
        assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize(
    "origin", ["shop.example", "https://a.example,https://b.example", "https://shop.example/"]
)
def test_malformed_cors_origin_prevents_startup(
    elsewhere: Callable[..., "subprocess.CompletedProcess[str]"], origin: str
) -> None:
    process = elsewhere("GET /health", CORS_ORIGIN=origin)

    assert process.returncode != 0
    assert "CORS_ORIGIN" in process.stderr.splitlines()[-1]
    assert "https://shop.example" in process.stderr.splitlines()[-1]
