"""Malformed and malicious requests, sent as raw bytes: every door gives the same answer and keeps serving."""

import gzip
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from local import hosts
from tests.conformance.conftest import DOORS
from tests.support.cognito import UserPool
from tests.support.issuer import encoded
from tools.client import SEED_BYTES, Answer, free_port

pytestmark = pytest.mark.slow

Address = tuple[str, int]
Rows = Callable[..., list[tuple[Any, ...]]]

MIB = 1024 * 1024
TIMEOUT = 20
"""Seconds without data after which a door counts as hung."""
REFUSALS = {400, 405, 413, 414, 417, 431, 501, 505}
"""Statuses for invalid or oversized HTTP; most come from a host's own web server."""
PROBLEM_TYPE = b"urn:order-api:problem:"
AUTH = b"Authorization: Bearer {token}"
JSON = b"Content-Type: application/json"
LIST = "/orders?limit=1"


@dataclass(frozen=True)
class Hostile:
    """One request; `{token}` is replaced by a valid token."""

    name: str
    raw: bytes
    status: int
    """The status from our code if the request reaches it; from 400 on with a problem body."""
    may_be_refused: bool = False
    """Invalid HTTP: the server may refuse it or close the connection before our code sees it."""


def refusable(name: str, raw: bytes, status: int) -> Hostile:
    return Hostile(name, raw, status, may_be_refused=True)


def request(line: str | bytes, *headers: str | bytes, body: bytes = b"") -> bytes:
    lines = (line, "Host: x", "Connection: close", *headers)
    return (
        b"\r\n".join(part if isinstance(part, bytes) else part.encode() for part in lines)
        + b"\r\n\r\n"
        + body
    )


def get(target: str | bytes, *headers: str | bytes) -> bytes:
    """A GET with a valid token."""
    path = target if isinstance(target, bytes) else target.encode()
    return request(b"GET " + path + b" HTTP/1.1", AUTH, *headers)


def post(*headers: str | bytes, body: bytes = SEED_BYTES, auth: tuple[bytes, ...] = (AUTH, JSON)) -> bytes:
    """A POST of the seed order, or of another body, with a correct Content-Length."""
    return request("POST /orders HTTP/1.1", *auth, *headers, f"Content-Length: {len(body)}", body=body)


def post_framed(*headers: str | bytes, body: bytes) -> bytes:
    """A POST whose body framing is up to these headers."""
    return request("POST /orders HTTP/1.1", AUTH, JSON, *headers, body=body)


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


# Header values

INJECTED = b"X-Injected: yes"
VALUES = {
    "an encoded line break": b"a%0d%0a" + INJECTED,
    "Latin-1": b"\xfc\xff",
    "UTF-8": "李".encode(),
    "U+0085 in Latin-1": b"a\x85" + INJECTED,
    "a tab": b"a\tb",
}
CONTROL_CHARACTERS = {
    "a folded line": b"a\r\n " + INJECTED,
    "a line folded with a tab": b"a\r\n\t" + INJECTED,
    "NUL": b"a\x00b",
    "a vertical tab": b"a\x0b" + INJECTED,
    "a form feed": b"a\x0c" + INJECTED,
    "an escape": b"\x1b[31m",
    "DEL": b"a\x7fb",
}
"""RFC 9110, section 5.5: no control characters."""
BARE_LINE_BREAKS = {"a line feed": b"a\n" + INJECTED, "a carriage return": b"a\r" + INJECTED}
"""A lenient server parses these as two lines: a header with the value `a`, and an injected header."""


def in_header(name: str, value: bytes) -> bytes:
    header = name.encode() + b": " + value
    if name == "Idempotency-Key":
        return post(header)
    if name == "Content-Type":
        return post(header, auth=(AUTH,))
    if name == "Authorization":
        return request(f"GET {LIST} HTTP/1.1", header)
    return get(LIST, header)


def header_values() -> Iterator[Hostile]:
    expected = {
        "Idempotency-Key": 400,
        "Content-Type": 415,
        "Authorization": 401,
        "If-None-Match": 200,
        "X-Request-Id": 200,
        "Origin": 200,
    }
    for name, status in expected.items():
        for kind, value in VALUES.items():
            yield Hostile(f"{kind} in {name}", in_header(name, value), status)
        for kind, value in CONTROL_CHARACTERS.items():
            yield refusable(f"{kind} in {name}", in_header(name, value), status)
        for kind, value in BARE_LINE_BREAKS.items():
            yield refusable(
                f"{kind} in {name}", in_header(name, value), 201 if name == "Idempotency-Key" else status
            )
    for blank in (b"", b"  "):
        yield Hostile(f"{blank!r} for a key", in_header("Idempotency-Key", blank), 400)
        yield Hostile(f"{blank!r} for a token", in_header("Authorization", blank), 401)
        yield Hostile(f"{blank!r} for tags", in_header("If-None-Match", blank), 200)
        yield Hostile(f"{blank!r} for a media type", in_header("Content-Type", blank), 201)


# Header lines

HEADERS = [
    Hostile("a header of 7 KB", get(LIST, "X-Big: " + "x" * 7000), 200),
    refusable("a header of 16 KB", get(LIST, "X-Big: " + "x" * 16384), 200),
    refusable("a header of 70 KB", get(LIST, "X-Big: " + "x" * 70_000), 200),
    Hostile("85 headers", get(LIST, *(f"X-H{n}: {n}" for n in range(85))), 200),
    refusable("200 headers", get(LIST, *(f"X-H{n}: {n}" for n in range(200))), 200),
    refusable(
        "a token of 16 KB",
        request(f"GET {LIST} HTTP/1.1", "Authorization: Bearer " + "x" * 16384),
        401,
    ),
    refusable("a name that is empty", get(LIST, ": x"), 200),
    refusable("a name with a blank", get(LIST, "X Y: x"), 200),
    refusable("a name with a blank behind it", get(LIST, "X-Y : x"), 200),
    refusable("a name of Latin-1", get(LIST, b"X-\xfc: x"), 200),
    Hostile("a name of signs", get(LIST, "!#$%&'*+-.^`|~: x"), 200),
    refusable("a line without a colon", get(LIST, "XY"), 200),
    refusable("lines that end with LF alone", get(LIST).replace(b"\r\n", b"\n"), 200),
    refusable("two hosts", get(LIST, "Host: evil.example"), 200),
    refusable("a host with markup", get(LIST).replace(b"Host: x", b'Host: evil.example"><x'), 200),
    refusable("a host with a path", post().replace(b"Host: x", b"Host: evil.example/?x#"), 201),
    Hostile("Authorization as hop by hop", get(LIST, "Connection: close, Authorization"), 200),
    Hostile("a range", get(LIST, "Range: bytes=0-3"), 200),
    refusable("contradicting schemes", get(LIST, "X-Forwarded-Ssl: on", "X-Forwarded-Proto: http"), 200),
    Hostile("a name with _ for the key", post("Idempotency_Key: a b"), 201),
    Hostile("a name with _ for the type", post("Content_Type: text/plain"), 201),
    Hostile("a name with _ for the length", post("Content_Length: 5"), 201),
]

# Targets

TARGETS = [
    refusable(f"{kind} in {where}", get(target.replace(b"{}", value)), status)
    for kind, value in {
        **CONTROL_CHARACTERS,
        **BARE_LINE_BREAKS,
        "a blank": b"a b",
        "a line break": b"a\r\n" + INJECTED,
    }.items()
    for where, target, status in (
        ("a path", b"/orders/{}", 404),
        ("a query", b"/orders?cursor={}", 400),
    )
] + [
    Hostile("an encoded line break in a path", get("/orders/a%0d%0aX-Injected:%20yes"), 404),
    Hostile("an encoded line break nowhere", get("/a%0d%0aX-Injected:%20yes"), 404),
    Hostile("an encoded line break in a query", get("/orders?cursor=%0d%0aX-Injected:%20yes"), 400),
    Hostile("what Latin-1 makes a line break of", get("/orders/%E5%98%8A%E5%98%8DX-Injected:yes"), 404),
    Hostile("a lone surrogate in a path", get("/orders/%ED%A0%80"), 404),
    Hostile("a lone surrogate in a query", get("/orders?cursor=%ED%A0%80"), 400),
    refusable("bare UTF-8 in a path", get("/orders/ü".encode()), 404),
    refusable("bare Latin-1 in a path", get(b"/orders/\xfc"), 404),
    refusable("bare Latin-1 in a query", get(b"/orders?\xfc=1"), 400),
    refusable("an absolute form", get("http://evil.example/orders"), 404),
    refusable("an absolute form without a path", get("http://evil.example"), 404),
    refusable("an absolute form of https", get("https://evil.example/health"), 404),
    refusable("an absolute form of no host", get("http://[evil/orders"), 404),
    refusable("a fragment", get("/orders#x"), 404),
    refusable("a fragment on a public path", get("/health#x"), 404),
    refusable("a fragment behind a query", get("/orders?limit=1#x"), 400),
    refusable("a query inside a fragment", get("/orders#x?limit=1"), 404),
    Hostile("an encoded fragment", get("/orders%23x"), 404),
    Hostile("another host after //", get("//evil.example/orders"), 404),
    Hostile("a public path after //", get("//evil.example/health"), 404),
    Hostile("three slashes", get("///orders"), 404),
    Hostile("half an IPv6 host after //", get("//[evil/orders"), 404),
    Hostile("a bracket in a path", get("/orders/[x"), 404),
    refusable("a user for a host", get("@evil.example/health"), 404),
    refusable("a port for a host", get(":99999/health"), 404),
    refusable("no slash", get("orders"), 404),
    refusable("a star", get("*"), 404),
    Hostile("a path's parameter", get("/orders;x=1"), 404),
    Hostile("a public path's parameter", get("/health;x=1"), 404),
    Hostile("an encoded question mark", get("/orders%3Flimit=1"), 404),
    Hostile("encoded dots", get("/health/%2e%2e/orders"), 404),
    Hostile("a dot", get("/./orders"), 404),
    Hostile("a backslash", get("/orders\\x"), 404),
    Hostile("a percent sign at the end", get("/orders/%"), 404),
    Hostile("a path of the Functions host", get("/admin/host/status"), 404),
    Hostile("a path of the framework", get("/robots.txt"), 404),
    Hostile("a semicolon in a query", get("/orders?limit=1;offset=2"), 400),
    Hostile("two question marks", get("/orders?limit=1?offset=2"), 400),
    Hostile("a name that is nothing", get("/orders?=1"), 400),
    Hostile("brackets in a name", get("/orders?limit[]=1"), 400),
    Hostile("600 names", get("/orders?" + "&".join(f"a{n}" for n in range(600))), 400),
    refusable("a cursor of 8 KB", get("/orders?cursor=" + "x" * 8200), 400),
    refusable("a query of 16 KB", get("/orders?" + "x" * 16384), 400),
]

# Versions and methods

LINES = [
    Hostile("HTTP/1.0", request(f"GET {LIST} HTTP/1.0", AUTH), 200),
    refusable("HTTP/0.9", b"GET /health\r\n\r\n", 200),
    refusable("HTTP/2.0", request(f"GET {LIST} HTTP/2.0", AUTH), 200),
    refusable("HTTP/9", request(f"GET {LIST} HTTP/9", AUTH), 200),
    refusable("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
    refusable("an upgrade", get(LIST, "Connection: upgrade", "Upgrade: h2c, websocket"), 200),
    refusable("a method in small letters", request("get /orders HTTP/1.1"), 405),
    refusable("CONNECT", request("CONNECT evil.example:443 HTTP/1.1"), 404),
    refusable("bytes of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20 + b"\r\n\r\n", 400),
    refusable("nothing but a line", b"\r\n\r\n", 400),
]

# Bodies

CHUNK_WITH_TRAILER = b"%x;name=value\r\n%s\r\n0\r\n%s\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"
BODIES = [
    Hostile("chunks", post_framed(CHUNKED, body=chunks(SEED_BYTES[:50], SEED_BYTES[50:])), 201),
    Hostile("chunks of more than 1 MiB", post_framed(CHUNKED, body=chunks(*[b" " * 65536] * 20)), 413),
    Hostile(
        "chunks with a trailer",
        post_framed(CHUNKED, body=CHUNK_WITH_TRAILER % (len(SEED_BYTES), SEED_BYTES, INJECTED)),
        201,
    ),
    refusable(
        "chunks with a token behind",
        post_framed(
            CHUNKED, body=CHUNK_WITH_TRAILER % (len(SEED_BYTES), SEED_BYTES, b"Authorization: Bearer a.b.c")
        ),
        201,
    ),
    *(
        refusable(
            f"a chunk of size {size!r}",
            post_framed(CHUNKED, body=b"%s\r\n%s\r\n0\r\n\r\n" % (size, SEED_BYTES)),
            400,
        )
        for size in (b"zz", b"", b"-5", b"+5", b"0x5", b"1_0", b"F" * 17)
    ),
    refusable(
        "chunks and a length",
        post_framed(CHUNKED, f"Content-Length: {len(chunks(SEED_BYTES))}", body=chunks(SEED_BYTES)),
        400,
    ),
    *(
        refusable(f"a length of {length!r}", post_framed(f"Content-Length: {length}", body=SEED_BYTES), 400)
        for length in (
            "",
            "-1",
            f"+{len(SEED_BYTES)}",
            "0x5",
            "5.0",
            "1_0",
            f"{len(SEED_BYTES)}, {len(SEED_BYTES)}",
        )
    ),
    refusable("two lengths", post(f"Content-Length: {len(SEED_BYTES)}"), 400),
    refusable("two different lengths", post("Content-Length: 5"), 400),
    *(
        refusable(
            f"a transfer coding {coding!r}",
            post_framed(b"Transfer-Encoding: " + coding, body=chunks(gzip.compress(SEED_BYTES))),
            400,
        )
        for coding in (
            b"gzip",
            b"gzip, chunked",
            b"identity",
            b"xchunked",
            b"\x0bchunked",
            b"chunked, chunked",
        )
    ),
    refusable("a length and another coding", post("Transfer-Encoding: identity"), 400),
    Hostile("a body with gzip", post("Content-Encoding: gzip", body=gzip.compress(SEED_BYTES)), 400),
    Hostile("a body with deflate", post("Content-Encoding: deflate", body=zlib.compress(SEED_BYTES)), 400),
    Hostile("a bomb of gzip", post("Content-Encoding: gzip", body=gzip.compress(b" " * 64 * MIB)), 400),
    Hostile("a body of 2 MiB", post(body=b" " * 2 * MIB), 413),
    Hostile("a body of 12 MiB", post(body=b" " * 12 * MIB), 413),
    Hostile("a body of 12 MiB without a token", post(body=b" " * 12 * MIB, auth=(JSON,)), 401),
    Hostile("a body on GET", get(LIST, JSON, "Content-Length: 5") + b"{\xff{{{", 200),
    Hostile(
        "a form with files",
        post("Content-Type: multipart/form-data; boundary=x", body=b"--x\r\n\r\n--x--", auth=(AUTH,)),
        415,
    ),
    Hostile("a form without a boundary", post("Content-Type: multipart/form-data", auth=(AUTH,)), 415),
    Hostile("a message in a message", post("Content-Type: message/rfc822", auth=(AUTH,)), 415),
    Hostile("an event of the cloud's", post("Content-Type: application/cloudevents+json", auth=(AUTH,)), 415),
    refusable("an unknown expectation", post("Expect: 200-ok"), 201),
]

CASES = [*header_values(), *HEADERS, *TARGETS, *LINES, *BODIES]

# Forged headers of the clouds' platforms

FORGED = encoded(
    {"auth_typ": "aad", "claims": [{"typ": "tid", "val": "victim"}], "tid": "victim", "sub": "mallory"}
)
CLAIMS = '{"custom:tenant_id": "victim", "tenant_id": "victim", "tid": "victim", "sub": "mallory"}'
SPOOFED = [
    f"X-MS-CLIENT-PRINCIPAL: {FORGED}",
    "X-MS-CLIENT-PRINCIPAL-ID: victim",
    "X-MS-CLIENT-PRINCIPAL-NAME: victim",
    "X-MS-TOKEN-AAD-ID-TOKEN: a.b.c",
    f"X-Apigateway-Api-Userinfo: {FORGED}",
    f"X-Endpoint-API-UserInfo: {FORGED}",
    f"X-Apigateway-Event: {CLAIMS}",
    f"X-Apigateway-Context: {CLAIMS}",
    f"X-Amzn-Request-Context: {CLAIMS}",
    f"X-Amzn-Lambda-Context: {CLAIMS}",
    f"X-Amzn-Oidc-Data: {FORGED}.{FORGED}.",
    "X-Amzn-Oidc-Identity: victim",
    f"Lambda-Runtime-Cognito-Identity: {CLAIMS}",
    "X-Goog-Authenticated-User-Email: accounts.google.com:victim@example.com",
    f"X-Goog-Iap-Jwt-Assertion: {FORGED}.{FORGED}.",
    "Function-Execution-Id: client-0000",
    "X-Cloud-Trace-Context: client-0000/1;o=1",
    "Ce-Id: client-0000",
    "Ce-Type: victim",
    "Ce-Source: victim",
    "Ce-Specversion: 1.0",
    "Fn-Intent: cloudevent",
    "Fn-Call-Id: client-0000",
    "Fn-Http-Method: DELETE",
    "Fn-Http-Request-Url: /health",
    "Fn-Http-Status: 500",
    f"Fn-Http-H-Claims: {CLAIMS}",
    "Oci-Subject-Id: victim",
    "X-Forwarded-Host: evil.example",
    "X-Forwarded-Prefix: /evil",
    "X-Forwarded-User: victim",
    "X-Original-URL: /health",
    "X-Rewrite-URL: /health",
    "X-HTTP-Method-Override: DELETE",
    "Script-Name: /orders",
    "SCRIPT_NAME: /orders",
    "PATH_INFO: /health",
    "REMOTE_USER: victim",
    "X-Tenant-Id: victim",
    "tenant_id: victim",
    "custom:tenant_id: victim",
    f"claims: {CLAIMS}",
    f"authorizer: {CLAIMS}",
    "X-Request-Id: client-0000",
    "X-Invocation-Id: client-0000",
]
OTHER_HEADERS = [
    "Proxy-Authorization",
    "X-Forwarded-Authorization",
    "X-Serverless-Authorization",
    "X-Authorization",
    "X-Amz-Security-Token",
    "X-Api-Key",
    "X-MS-TOKEN-AAD-ID-TOKEN",
    "Authorization_",
    "HTTP_AUTHORIZATION",
    "Fn-Http-H-Authorization",
    "Fn-Http-H-Fn-Http-H-Authorization",
    "Cookie",
]
"""Headers that are not Authorization."""


@pytest.fixture(scope="module", params=DOORS)
def door(
    request: pytest.FixtureRequest, environment: dict[str, str], built: Callable[[str], Path]
) -> Iterator[Address]:
    """Address of a host."""
    if request.param == "local":
        yield request.getfixturevalue("server")
        return
    address = ("127.0.0.1", free_port())
    with hosts.serving(request.param, built(request.param), environment, *address):
        yield address


@pytest.fixture
def token(user_pool: UserPool) -> bytes:
    return user_pool.token("hostile").encode()


def exchange(door: Address, raw: bytes, *, half_close: bool = False) -> list[Answer]:
    """All answers until the server closes; `half_close` shuts down the sending side after the request."""
    received = b""
    with socket.create_connection(door, TIMEOUT) as connection:
        try:
            connection.sendall(raw)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                received += data
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server refused the request before it had read all of it
    return list(parsed(received))


def parsed(received: bytes) -> Iterator[Answer]:
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        assert status_line.startswith("HTTP/1."), f"an answer without a status line: {status_line}"
        headers: Mapping[str, str] = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        status = int(status_line.split()[1])
        length = 0 if status == 100 else int(headers.get("content-length", len(received)))
        body, received = received[:length], received[length:]
        yield Answer(status, headers, body)


def is_refused(answer: Answer) -> bool:
    return answer.status in REFUSALS and (
        PROBLEM_TYPE not in answer.body or answer.slug == "malformed-request"
    )


def mismatch(case: Hostile, answers: list[Answer]) -> str:
    """How the answers differ from the expected one; empty if they do not."""
    if not answers:
        return "" if case.may_be_refused else "the connection was closed"
    (answer,) = answers
    if case.may_be_refused and is_refused(answer):
        return ""
    if answer.status == case.status and (PROBLEM_TYPE in answer.body) == (case.status >= 400):
        return ""
    return f"{answer.status} {answer.body[:200]!r}"


def assert_no_leak(answer: Answer) -> None:
    """No response header contains client input, and the body contains no internals."""
    head, body = str(answer.headers), answer.body.decode(errors="replace")
    assert not [word for word in ("inject", "evil", "victim", "client-0000") if word in head.lower()]
    assert not [word for word in ("Traceback", 'File "', "client-0000") if word in body]


def assert_healthy(door: Address) -> None:
    (answer,) = exchange(door, request("GET /health HTTP/1.1"))
    assert (answer.status, answer.body) == (200, b'{"status":"ok"}')


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_host_answers_hostile_requests_alike(door: Address, token: bytes, case: Hostile) -> None:
    answers = exchange(door, case.raw.replace(b"{token}", token), half_close=True)

    assert mismatch(case, answers) == ""
    for answer in answers:
        assert_no_leak(answer)
    assert_healthy(door)


@pytest.mark.parametrize("spoofed", SPOOFED)
def test_spoofed_header_is_unauthorized(door: Address, spoofed: str) -> None:
    (answer,) = exchange(door, request("GET /orders HTTP/1.1", spoofed))

    assert (answer.status, answer.slug) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert_no_leak(answer)


@pytest.mark.parametrize("name", OTHER_HEADERS)
def test_valid_token_in_another_header_is_unauthorized(door: Address, token: bytes, name: str) -> None:
    header = name.encode() + (b": authorization=" if name == "Cookie" else b": Bearer ") + token

    (answer,) = exchange(door, request("GET /orders HTTP/1.1", header))

    assert (answer.status, answer.slug) == (401, "unauthorized")


def test_spoofed_headers_beside_a_valid_token_are_ignored(
    door: Address, user_pool: UserPool, rows: Rows, tenant: str
) -> None:
    raw = post(*SPOOFED).replace(b"{token}", user_pool.token(tenant).encode())

    (answer,) = exchange(door, raw)

    assert (answer.status, answer.json["order"]["tenant_id"]) == (201, tenant)
    assert_no_leak(answer)
    assert rows(
        "select count(*) from orders where tenant_id = %s or created_by = %s", "victim", "victim"
    ) == [(0,)]


@pytest.mark.parametrize("first", ["the stranger's", "the tenant's", "garbage"])
def test_first_of_two_authorization_headers_is_never_used(
    door: Address, user_pool: UserPool, tenant: str, first: str
) -> None:
    """Some hosts join repeated headers, others pass on only the last: no host uses the first alone."""
    tokens = {"the stranger's": user_pool.token("stranger"), "the tenant's": user_pool.token(tenant)}
    second = "the stranger's" if first == "the tenant's" else "the tenant's"
    auth = tuple(b"Authorization: Bearer " + tokens.get(name, "a.b.c").encode() for name in (first, second))

    (answer,) = exchange(door, post(auth=(*auth, JSON)))

    assert answer.status in (201, 401)
    if answer.status == 201:
        assert answer.json["order"]["tenant_id"] == ("stranger" if second == "the stranger's" else tenant)


def test_pipelined_requests_are_answered_in_order(door: Address, token: bytes) -> None:
    keep_alive = b"Connection: keep-alive"
    pipeline = (
        get("/orders?limit=0") + request("GET /orders HTTP/1.1") + post() + request("HEAD /health HTTP/1.1")
    )
    *earlier, last = pipeline.split(b"Connection: close")
    raw = keep_alive.join(earlier) + b"Connection: close" + last

    answers = exchange(door, raw.replace(b"{token}", token))

    assert [answer.status for answer in answers] == [400, 401, 201, 200]


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_body_is_never_parsed_as_the_next_request(door: Address, token: bytes, framing: str) -> None:
    hidden = get("/orders").replace(b"{token}", token)
    raw = {
        "a length": post(body=hidden, auth=(JSON,)),
        "chunks": request("POST /orders HTTP/1.1", JSON, CHUNKED, body=chunks(hidden)),
    }[framing]

    (answer,) = exchange(door, raw)

    assert answer.status == 401


def test_expect_100_continue_is_answered_on_every_host(door: Address, token: bytes) -> None:
    head, _, body = post("Expect: 100-continue").replace(b"{token}", token).partition(b"\r\n\r\n")
    with socket.create_connection(door, TIMEOUT) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        received = b"".join(iter(lambda: connection.recv(65536), b""))

    (answer,) = (response for response in parsed(received) if response.status != 100)
    assert answer.status == 201


@pytest.mark.parametrize("framing", ["a length", "chunks"])
def test_truncated_body_places_no_order(
    door: Address, user_pool: UserPool, rows: Rows, tenant: str, framing: str
) -> None:
    raw = {
        "a length": post_framed(f"Content-Length: {len(SEED_BYTES) + 9}", body=SEED_BYTES),
        "chunks": post_framed(CHUNKED, body=chunks(SEED_BYTES)[:-5]),
    }[framing]

    answers = exchange(door, raw.replace(b"{token}", user_pool.token(tenant).encode()), half_close=True)

    assert [answer.status for answer in answers] in ([], [400])
    assert rows("select count(*) from orders where tenant_id = %s", tenant) == [(0,)]
    assert_healthy(door)


def test_host_keeps_serving_after_clients_disconnect(door: Address, token: bytes) -> None:
    for raw in (b"", b"GET", get(LIST)[:-4], post()[:-20], post(body=b" " * MIB)):
        with socket.create_connection(door, TIMEOUT) as connection:
            connection.sendall(raw.replace(b"{token}", token))

    assert_healthy(door)


def test_duplicate_idempotency_key_headers_replay_one_order(door: Address, token: bytes) -> None:
    key = f"Idempotency-Key: {uuid4()}"
    raw = post(key, key).replace(b"{token}", token)

    first, replayed = exchange(door, raw), exchange(door, raw)

    assert [first[0].status, replayed[0].status] == [201, 201]
    assert first[0].json == replayed[0].json
