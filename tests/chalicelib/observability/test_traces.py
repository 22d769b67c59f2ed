"""W3C Trace Context: which headers are valid, and where the trace is propagated."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from chalicelib.http.current_request import Invocation
from chalicelib.identity import key_set as token_keys
from chalicelib.observability import request_log, traces
from local.database import Urls
from tests.support.log_lines import lines
from tests.support.servers import api_on, pgbouncer
from tools.client import SEED_BYTES, Client
from tools.postgres_proxy import Proxy

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"
COMMENT = re.compile(rf" /\*traceparent='00-{TRACE}-([0-9a-f]{{16}})-01'\*/\Z")


@pytest.fixture(scope="module")
def proxy(app: Any, database: Urls) -> Iterator[Proxy]:  # noqa: ARG001 (its environment)
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}"),
    ):
        yield proxy


@pytest.mark.parametrize(
    ("header", "propagated"),
    [
        (GOOD, f"00-{TRACE}-.-01"),
        (f"00-{TRACE}-{PARENT}-00", f"00-{TRACE}-.-00"),
        pytest.param(f"00-{TRACE}-{PARENT}-03", f"00-{TRACE}-.-03", id="random trace id"),
        pytest.param(f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-.-03", id="undefined flags"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01", f"00-{TRACE}-.-01", id="a later version"),
        pytest.param(
            f"cc-{TRACE}-{PARENT}-01-what", f"00-{TRACE}-.-01", id="a later version with more fields"
        ),
        pytest.param(f" {GOOD}\t", f"00-{TRACE}-.-01", id="white space around it"),
    ],
)
def test_valid_traceparent_continues_with_a_new_span(header: str, propagated: str) -> None:
    trace = traces.received(header)

    assert trace is not None
    assert trace.trace_id == TRACE
    assert re.fullmatch(propagated.replace(".", "[0-9a-f]{16}"), trace.traceparent)
    assert trace.span_id not in (PARENT, "0" * 16, traces.received(header).span_id)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "x",
        GOOD.upper(),
        GOOD[:-1],
        GOOD[:-3],
        f"{GOOD}-",
        f"{GOOD}-what",
        f"{GOOD}, {GOOD}",
        f"ff-{TRACE}-{PARENT}-01",
        f"0-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-0x",
        f"00-{TRACE}-{PARENT}-01\n",
        f"00-{TRACE}'-{PARENT[1:]}-01",
        f"00-{TRACE[:-1]}\u0661-{PARENT}-01",
    ],
)
def test_malformed_traceparent_is_ignored(header: str | None) -> None:
    assert traces.received(header) is None


@pytest.mark.parametrize("prepares", ["on", "off"])
def test_sql_comment_carries_the_trace_without_extra_trips(
    proxy: Proxy, alice: Client, capsys: pytest.CaptureFixture[str], prepares: str
) -> None:
    key = uuid4().hex
    headers = {"content-type": "application/json", "idempotency-key": key, "traceparent": GOOD}
    with api_on(f"postgresql://orders_app@/orders?host={proxy.folder}", DB_PREPARE=prepares):
        alice.get("/health/ready")
        capsys.readouterr()
        with proxy.watched() as traffic:
            created = alice.send("POST", "/orders", SEED_BYTES, headers)
            read = alice.get(f"/orders/{created.json['order']['order_id']}", traceparent=GOOD)
            listed = alice.get("/orders", traceparent=GOOD)
            replayed = alice.send("POST", "/orders", SEED_BYTES, headers)
            ready = alice.get("/health/ready", traceparent=GOOD)

    spans = [line["span_id"] for line in lines(capsys.readouterr().out)]
    comments = [COMMENT.search(statement) for statement in traffic.statements]
    assert [answer.status for answer in (created, read, listed, replayed, ready)] == [201, 200, 200, 201, 200]
    assert read.json["order"] == created.json["order"] == replayed.json["order"] == listed.json["orders"][0]
    assert traffic.trips == len(comments) == 6
    assert [comment and comment[1] for comment in comments] == [*spans[:3], spans[3], spans[3], spans[4]]
    assert len(set(spans)) == 5


def test_no_trace_is_sent_without_a_valid_header(
    proxy: Proxy, alice: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    with proxy.watched() as traffic:
        alice.get("/orders")
        alice.get("/orders", traceparent="00-1-2-3")

    assert len(traffic.statements) >= 2
    assert not [statement for statement in traffic.statements if "/*" in statement]
    assert not [line for line in lines(capsys.readouterr().out) if "trace_id" in line or "span_id" in line]


def test_trace_comment_works_behind_a_pooler(alice: Client, database: Urls) -> None:
    with pgbouncer(database.app) as pooler, api_on(pooler.url, DB_PREPARE="off"):
        placed = alice.send("POST", "/orders", SEED_BYTES, {"traceparent": GOOD})
        listed = alice.get("/orders", traceparent=GOOD)

    assert (placed.status, listed.json["orders"]) == (201, [placed.json["order"]])


@pytest.mark.parametrize("sent", [[GOOD], [GOOD, GOOD]])
def test_repeated_traceparent_on_lambda_is_ignored(
    app: Any, capsys: pytest.CaptureFixture[str], sent: list[str]
) -> None:
    """API Gateway's event has the last value in `headers` and all values in `multiValueHeaders`."""
    event = {
        "headers": {"Traceparent": sent[-1]},
        "multiValueHeaders": {"Traceparent": sent},
        "multiValueQueryStringParameters": None,
        "pathParameters": None,
        "stageVariables": None,
        "requestContext": {"resourcePath": "/health", "httpMethod": "GET", "requestId": uuid4().hex},
        "body": None,
    }

    app(event, Invocation(claims={}))

    (line,) = lines(capsys.readouterr().out)
    assert line.get("trace_id") == (TRACE if len(sent) == 1 else None)


@pytest.mark.parametrize("header", [GOOD, None])
def test_key_server_request_carries_the_trace(header: str | None) -> None:
    received: list[str | None] = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers["traceparent"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"keys": []}')

    with ThreadingHTTPServer(("127.0.0.1", 0), Keys) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        record = request_log.open_record(uuid4().hex, "local")
        record.describe("GET", "/orders", header)
        with pytest.raises(token_keys.NoSuchKey):
            token_keys.KeySet(f"http://127.0.0.1:{server.server_port}/").get("1")
        request_log.close_record(record, 200)
        server.shutdown()

    assert received == [record.trace.traceparent if record.trace else None]
    assert (record.trace is None) == (header is None)
