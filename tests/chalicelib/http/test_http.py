"""HTTP: the local server over real sockets, and the headers of all answers."""

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
def http_client(client: NewClient, http: Transport) -> Client:
    """User alice, over sockets."""
    return client(transport=http)


@pytest.fixture
def anonymous_http_client(http: Transport) -> Client:
    """A caller without a token, over sockets."""
    return Client(http, None)


@pytest.fixture
def connection(server: tuple[str, int]) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(*server, timeout=30)
    yield connection
    connection.close()


@pytest.fixture
def send_raw(server: tuple[str, int]) -> Callable[..., Answer]:
    """Sends raw bytes and reads one answer."""

    def send(head: str, body: bytes = b"") -> Answer:
        with socket.create_connection(server, timeout=30) as sock:
            sock.sendall(head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body)
            response = http.client.HTTPResponse(sock, method=head.partition(" ")[0])
            response.begin()
            return read(response)

    return send


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
    send_raw: Callable[..., Answer], bearer: dict[str, str], coding: str
) -> None:
    body = b"%X;name=value\r\n%s\r\n0\r\nX-Trailer: x\r\n\r\n" % (len(SEED_BYTES), SEED_BYTES)

    assert send_raw(head(bearer, f"Transfer-Encoding: {coding}"), body).status == 201


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


def test_conflicting_body_framings_are_rejected(
    send_raw: Callable[..., Answer], bearer: dict[str, str]
) -> None:
    for framing in (
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 5"],
        ["Content-Length: 5", f"Content-Length: {len(SEED_BYTES)}"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        ["Transfer-Encoding: identity", "Transfer-Encoding: chunked"],
    ):
        answer = send_raw(head(bearer, *framing), chunked(SEED_BYTES))
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
    send_raw: Callable[..., Answer], bearer: dict[str, str], framing: str
) -> None:
    answer = send_raw(head(bearer, framing))

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
    with socket.create_connection(server, timeout=30) as sock:
        sock.sendall(request.replace("\n", "\r\n").encode() + smuggled)
        answers = b"".join(iter(lambda: sock.recv(65536), b""))

    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1


def test_unknown_method_is_rejected_with_json(send_raw: Callable[..., Answer]) -> None:
    answer = send_raw('G"\\T /orders HTTP/1.1\nHost: x')

    assert (answer.status, answer.json["status"]) == (400, 400)


def test_many_tiny_chunks_are_read_quickly(send_raw: Callable[..., Answer], bearer: dict[str, str]) -> None:
    body = b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n"
    started = time.monotonic()

    answer = send_raw(head(bearer, "Transfer-Encoding: chunked"), body)

    assert (answer.status, answer.slug) == (400, "malformed-request")
    assert time.monotonic() - started < 20


SIZE = f"{len(SEED_BYTES):x}"


@pytest.mark.parametrize(
    "size",
    ["x", "", " ", f"-{SIZE}", f"+{SIZE}", f"0x{SIZE}", f"{SIZE[0]}_{SIZE[1:]}", f"{SIZE}h"],
    ids=lambda size: size[:9],
)
def test_invalid_chunk_size_is_rejected(
    send_raw: Callable[..., Answer], bearer: dict[str, str], size: str
) -> None:
    body = b"%s\r\n%s\r\n0\r\n\r\n" % (size.encode(), SEED_BYTES)

    answer = send_raw(head(bearer, "Transfer-Encoding: chunked"), body)

    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"


def test_truncated_body_places_no_order(
    server: tuple[str, int], bearer: dict[str, str], alice: Client
) -> None:
    for framing, body in (
        (f"Content-Length: {len(SEED_BYTES) + 9}", SEED_BYTES),
        ("Transfer-Encoding: chunked", chunked(SEED_BYTES)[:-5]),
    ):
        with socket.create_connection(server, timeout=30) as sock:
            sock.sendall(head(bearer, framing).replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass

    assert alice.get("/orders").json["orders"] == []


def test_expect_100_continue_is_answered(server: tuple[str, int], bearer: dict[str, str]) -> None:
    with socket.create_connection(server, timeout=30) as sock:
        request_head = head(bearer, f"Content-Length: {len(SEED_BYTES)}", "Expect: 100-continue")
        sock.sendall(request_head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        assert sock.recv(1_000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(SEED_BYTES)
        response = http.client.HTTPResponse(sock)
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
    send_raw: Callable[..., Answer], bearer: dict[str, str], method: str, path: str
) -> None:
    for authorization in ("X: y", f"Authorization: {bearer['authorization']}"):
        answer = send_raw(f"{method} {path} HTTP/1.1\nHost: x\n{authorization}")
        assert (answer.status, answer.slug) == (404, "not-found")


@pytest.mark.parametrize("path", ALLOWED)
def test_method_not_allowed_lists_the_allowed_methods(
    http_client: Client, anonymous_http_client: Client, path: str
) -> None:
    for method in METHODS:
        if method in ALLOWED[path].split(", "):
            continue
        for caller in (http_client, anonymous_http_client):
            answer = caller.send(method, path, b"{", {"content-type": "text/plain"})
            assert (answer.status, answer.slug) == (405, "method-not-allowed")
            assert answer.headers["allow"] == ALLOWED[path]


@pytest.mark.parametrize("path", ALLOWED)
def test_allowed_methods_are_not_405(http_client: Client, path: str) -> None:
    for method in ALLOWED[path].split(", "):
        assert http_client.send(method, path).status != 405


@pytest.mark.parametrize("path", ALLOWED)
def test_preflight_gets_the_cors_headers(anonymous_http_client: Client, path: str) -> None:
    origin = {"origin": "https://shop.example", "access-control-request-method": "GET"}

    answer = anonymous_http_client.send("OPTIONS", path, headers=origin)

    assert answer.status == 200
    assert {name: answer.headers[name] for name in CORS} == CORS
    assert answer.headers["access-control-max-age"] == "3600"
    assert set(ALLOWED[path].split(", ")) <= set(answer.headers["access-control-allow-methods"].split(","))


@pytest.mark.parametrize("host", ["http", "in_process"])
def test_head_matches_get_without_the_body(
    client: NewClient, host: str, request: pytest.FixtureRequest
) -> None:
    transport = request.getfixturevalue(host)
    with_token, without_token = client(transport=transport), Client(transport, None)
    placed = with_token.place().headers["location"]
    requests: list[tuple[Client, str, dict[str, str]]] = [
        (with_token, "/orders", {}),
        (with_token, "/orders?limit=0", {}),
        (with_token, f"/{placed}", {}),
        (with_token, f"/{placed}", {"if-none-match": '"1"'}),
        (with_token, f"/{placed}", {"if-none-match": '"2"'}),
        (with_token, f"/orders/{ORDER_ID}", {}),
        (without_token, f"/{placed}", {}),
        (without_token, "/orders", {}),
        (without_token, "/health", {}),
        (without_token, "/health/ready", {}),
        (without_token, "/openapi.json", {}),
        (without_token, "/unknown", {}),
    ]
    for caller, path, headers in requests:
        get_answer = caller.send("GET", path, headers=headers)
        head_answer = caller.send("HEAD", path, headers=headers)

        assert (head_answer.status, head_answer.body) == (get_answer.status, b""), path
        assert comparable_headers(head_answer) == comparable_headers(get_answer), path
        length = get_answer.headers.get("content-length")
        assert head_answer.headers.get("content-length") in (None, length), path


def comparable_headers(answer: Answer) -> dict[str, str]:
    varying = ("date", "server", "x-request-id", "content-length")
    return {name: value for name, value in answer.headers.items() if name not in varying}


# Common headers


def test_every_response_has_the_common_headers(http_client: Client, anonymous_http_client: Client) -> None:
    sent_id = {"x-request-id": "mine-4711", "X-Amzn-RequestId": "mine-4711"}
    placed = http_client.place().headers["location"]
    answers = {
        200: http_client.send("GET", f"/{placed}", headers=sent_id),
        201: http_client.send("POST", "/orders", SEED_BYTES, {**sent_id, **JSON}),
        304: http_client.send("GET", f"/{placed}", headers={**sent_id, "if-none-match": "*"}),
        400: http_client.send("POST", "/orders", b"{", {**sent_id, **JSON}),
        401: anonymous_http_client.send("POST", "/orders", SEED_BYTES, {**sent_id, **JSON}),
        404: anonymous_http_client.send("GET", "/unknown", headers=sent_id),
        405: anonymous_http_client.send("DELETE", "/orders", headers=sent_id),
        413: http_client.send("POST", "/orders", b"x" * (MIB + 1), {**sent_id, **JSON}),
        415: http_client.send("POST", "/orders", SEED_BYTES, {**sent_id, "content-type": "text/plain"}),
        422: http_client.send("POST", "/orders", b"{}", {**sent_id, **JSON}),
    }

    for status, answer in answers.items():
        assert answer.status == status
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert {name: answer.headers[name] for name in CORS} == CORS
        exposed = answer.headers["access-control-expose-headers"].split(",")
        assert {"ETag", "Idempotent-Replayed", "Location", "Retry-After", "X-Request-Id"} <= set(exposed)
        content_type = "application/problem+json" if status >= 400 else "application/json"
        assert answer.headers["content-type"] == content_type
        assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])
        if status >= 400:
            assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert len({answer.headers["x-request-id"] for answer in answers.values()}) == len(answers)


def test_health_responses_have_the_common_headers(anonymous_http_client: Client) -> None:
    for path, status in (("/health", "ok"), ("/health/ready", "ready")):
        answer = anonymous_http_client.get(path)
        assert (answer.status, answer.json) == (200, {"status": status})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-request-id"]
        assert {name: answer.headers[name] for name in CORS} == CORS


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/swagger-ui.css"])
def test_docs_responses_have_the_common_headers(anonymous_http_client: Client, path: str) -> None:
    page, head_answer, post_answer = (
        anonymous_http_client.send(method, path) for method in ("GET", "HEAD", "POST")
    )

    assert page.status == 200
    assert page.headers["content-type"].startswith("text/")
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-request-id"]
    assert page.headers["access-control-allow-origin"] == "*"
    assert (head_answer.status, head_answer.body) == (200, b"")
    assert comparable_headers(head_answer) == comparable_headers(page)
    assert (post_answer.status, post_answer.slug) == (405, "method-not-allowed")
    assert post_answer.headers["allow"] == "GET, HEAD"


# Connections


def test_a_connection_serves_many_requests(
    connection: http.client.HTTPConnection, bearer: dict[str, str]
) -> None:
    connection.connect()
    sock = connection.sock

    for method, path, body, headers, status in (
        ("GET", "/health", None, {}, 200),
        ("HEAD", "/orders", None, bearer, 200),
        ("POST", "/orders", SEED_BYTES, {**bearer, **JSON}, 201),
        ("POST", "/orders", b"{", {**bearer, **JSON}, 400),
        ("POST", "/orders", SEED_BYTES, JSON, 401),
        ("POST", "/unknown", SEED_BYTES, JSON, 404),
        ("PUT", "/orders", SEED_BYTES, JSON, 405),
        ("GET", "/orders", b"an unexpected body", bearer, 200),
        ("OPTIONS", "/orders", None, {}, 200),
        ("HEAD", "/unknown", None, {}, 404),
        ("HEAD", "/docs", None, {}, 200),
        ("GET", "/orders", None, bearer, 200),
    ):
        connection.request(method, path, body, headers)
        assert read(connection.getresponse()).status == status
        assert connection.sock is sock


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
    barrier = Barrier(50, timeout=30)
    clients = [client(tenant=f"parallel-{uuid4().hex[:12]}", transport=http) for _ in range(5)]

    def place_and_read(number: int) -> str:
        own_client = clients[number % 5]
        barrier.wait()
        placed = own_client.place(seed(customer_name=f"Customer {number}"))
        return str(own_client.get(f"/{placed.headers['location']}").json["order"]["customer_name"])

    with ThreadPoolExecutor(50) as pool:
        names = list(pool.map(place_and_read, range(50)))

    assert names == [f"Customer {number}" for number in range(50)]
    assert [len(own_client.get("/orders").json["orders"]) for own_client in clients] == [10] * 5


# Separate processes


PROGRAM = """
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
def run_api(environment: dict[str, str]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Sends requests to the API in a separate process with changed variables."""

    def run(*requests: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *requests],
            env={**os.environ, **environment, **variables},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def parse_answers(process: "subprocess.CompletedProcess[str]") -> list[Answer]:
    assert process.returncode == 0, process.stderr
    # Lines of the request log begin with "{".
    lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("[")]
    return [Answer(status, headers, body.encode()) for status, headers, body in lines]


def test_server_log_omits_request_paths_and_queries(
    anonymous_http_client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert anonymous_http_client.get("/orders?access_token=hunter2&?limit=1").status == 401
    assert anonymous_http_client.get("/orders/hunter2").status == 401

    assert "hunter2" not in capsys.readouterr().err


def test_health_needs_no_database(run_api: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    unreachable = "postgresql://orders_app@127.0.0.1:1/orders"

    health, ready, head_answer = parse_answers(
        run_api("GET /health", "GET /health/ready", "HEAD /health/ready", DATABASE_URL=unreachable)
    )

    assert health.status == 200
    assert (ready.status, ready.slug, head_answer.status) == (503, "unavailable", 503)
    assert ready.headers["retry-after"]
    assert "127.0.0.1" not in ready.body.decode()


def test_cors_allows_only_the_configured_origin(
    run_api: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    origin = "https://shop.example"

    for answer in parse_answers(
        run_api(
            "GET /health", "GET /orders", "GET /unknown", "PUT /orders", "OPTIONS /orders", CORS_ORIGIN=origin
        )
    ):
        assert answer.headers["access-control-allow-origin"] == origin


def test_malformed_cors_origin_prevents_startup(
    run_api: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    process = run_api("GET /health", CORS_ORIGIN="https://shop.example/")

    assert process.returncode != 0
    assert "CORS_ORIGIN" in process.stderr.splitlines()[-1]
    assert "https://shop.example" in process.stderr.splitlines()[-1]
