"""`chalice local`: its gateway does not verify tokens, so the app does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chalicelib.settings.environment import SettingsError
from tests.support.cognito import UserPool
from tests.support.issuer import SigningKey, decoded, encoded
from tests.support.log_leak_plugin import check_log
from tools.client import SEED_BYTES, Answer, Client, Transport, free_port, over_http

pytestmark = pytest.mark.slow

Rows = Callable[..., list[tuple[Any, ...]]]

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chalice_local(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Transport]:
    """`chalice local` from the command line, with Lambda's variable; test_chalice_door.py has it without."""
    port = free_port()
    log = (tmp_path_factory.mktemp("chalice-local") / "log").open("w+")
    process = subprocess.Popen(
        [Path(sys.executable).with_name("chalice"), "local", "--no-autoreload", "--port", str(port)],
        cwd=PROJECT,
        env={**os.environ, **environment, "AWS_LAMBDA_FUNCTION_NAME": "order-api-dev"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    transport = over_http("127.0.0.1", port)
    try:
        wait_for(transport, process, Path(log.name))
        yield transport
    finally:
        process.terminate()
        process.wait(10)
        log.close()
        check_log(Path(log.name))


def wait_for(transport: Transport, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            assert transport("GET", "/health", {}, b"").status == 200
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"chalice local does not answer:\n{log.read_text()}")


def assert_unauthorized(answer: Answer) -> None:
    assert (answer.status, answer.slug) == (401, "unauthorized"), answer
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == "*"


def test_chalice_local_accepts_a_valid_token(
    chalice_local: Transport, user_pool: UserPool, tenant: str
) -> None:
    alice = Client(chalice_local, user_pool.token(tenant))

    placed = alice.place()

    order = placed.json["order"]
    assert (placed.status, order["tenant_id"]) == (201, tenant)
    assert alice.get(f"/{placed.headers['location']}").json == {"order": order}
    assert alice.get("/orders?limit=1").json["orders"] == [order]
    assert Client(chalice_local, user_pool.token(f"{tenant}-2")).get("/orders").json["orders"] == []


def test_chalice_local_accepts_a_token_without_bearer(
    chalice_local: Transport, user_pool: UserPool, tenant: str
) -> None:
    answer = chalice_local("GET", "/orders", {"authorization": user_pool.token(tenant)}, b"")

    assert answer.status == 200


def test_chalice_local_rejects_a_missing_token(chalice_local: Transport) -> None:
    anonymous = Client(chalice_local, None)

    assert_unauthorized(anonymous.get("/orders"))
    assert_unauthorized(anonymous.place())


@pytest.mark.parametrize("forgery", ["alg none", "no signature", "changed payload", "another key"])
def test_chalice_local_refuses_a_forged_token(
    chalice_local: Transport, user_pool: UserPool, rows: Rows, tenant: str, forgery: str
) -> None:
    header, payload, signature = user_pool.token(tenant).split(".")
    victim = f"victim-{tenant}"
    claims = {**decoded(payload), "custom:tenant_id": victim}
    forged = {
        "alg none": f"{encoded({**decoded(header), 'alg': 'none'})}.{encoded(claims)}.",
        "no signature": f"{header}.{encoded(claims)}.",
        "changed payload": f"{header}.{encoded(claims)}.{signature}",
        "another key": SigningKey("another").token(claims, kid=decoded(header)["kid"]),
    }[forgery]
    mallory = Client(chalice_local, forged)

    assert_unauthorized(mallory.place())
    assert_unauthorized(mallory.get("/orders"))
    assert rows("select count(*) from orders where tenant_id = %s", victim) == [(0,)]


def test_chalice_local_forbids_a_token_without_a_tenant(
    chalice_local: Transport, user_pool: UserPool
) -> None:
    answer = Client(chalice_local, user_pool.token(None)).get("/orders")

    assert (answer.status, answer.slug) == (403, "missing-tenant")


@pytest.mark.parametrize("authorization", ["garbage", "Bearer garbage", "Bearer", "Basic YTpi", "a.b.c"])
def test_chalice_local_drops_connections_with_unreadable_tokens(
    chalice_local: Transport, authorization: str
) -> None:
    """Chalice 1.34 drops the connection: its gateway fails on the token before it calls the app."""
    headers = {"authorization": authorization, "content-type": "application/json"}
    for method, body in (("GET", b""), ("POST", SEED_BYTES)):
        with pytest.raises(ConnectionResetError):
            chalice_local(method, "/orders", headers, body)
    assert chalice_local("GET", "/health", {}, b"").status == 200


def test_local_server_refuses_aws_lambda_function_name(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from local import docs
    from local.server import serve

    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "order-api-dev")

    with pytest.raises(SettingsError, match="AWS_LAMBDA_FUNCTION_NAME"):
        serve(app, "127.0.0.1", 0, docs.page)
