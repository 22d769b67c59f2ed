"""A pooler loses its server session but keeps the client's: whether the order was committed is unknown."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from psycopg2.extensions import parse_dsn

from local.database import Urls
from tests.support.refusals import assert_unavailable
from tests.support.servers import api_on
from tools.client import Client
from tools.postgres_proxy import Proxy
from tools.postgres_traffic import error_response

Rows = Callable[..., list[tuple[Any, ...]]]
LOST = ["08006", "08007", "08P01", "40003", "57P01", "57P02"]


@pytest.fixture
def pooler(database: Urls) -> Iterator[Proxy]:
    sockets = Path(parse_dsn(database.app)["host"])
    with (
        TemporaryDirectory(prefix="order-api-proxy-") as folder,
        closing(Proxy(Path(folder), sockets)) as proxy,
        api_on(f"postgresql://orders_app@/orders?host={folder}", DB_PREPARE="off"),
    ):
        yield proxy


@pytest.mark.parametrize("code", LOST)
def test_lost_session_reports_unknown_outcome_without_a_key(
    alice: Client, pooler: Proxy, rows: Rows, tenant: str, code: str
) -> None:
    assert alice.get("/orders").status == 200
    pooler.replacement = error_response(code)
    answer = alice.place()
    pooler.replacement = b""

    assert_unavailable(answer)
    assert "it is not known whether" in answer.json["detail"]
    assert rows("select count(*) from orders where tenant_id = %s", tenant) == [(1,)], "it was committed"
    assert alice.get("/orders").status == 200


@pytest.mark.parametrize("code", LOST)
def test_lost_session_with_a_key_places_one_order(
    alice: Client, pooler: Proxy, rows: Rows, tenant: str, code: str
) -> None:
    key = uuid4().hex
    assert alice.get("/orders").status == 200
    pooler.replacement = error_response(code)
    assert_unavailable(alice.place(key=key))
    pooler.replacement = b""

    assert alice.place(key=key).headers["idempotent-replayed"] == "true"
    assert rows("select count(*) from orders where tenant_id = %s", tenant) == [(1,)]


@pytest.mark.parametrize("code", ["40001", "53300", "57014", "58030"])
def test_rolled_back_error_is_not_reported_as_unknown(alice: Client, pooler: Proxy, code: str) -> None:
    """These errors abort the transaction before its commit, so that a retry is safe."""
    assert alice.get("/orders").status == 200
    pooler.replacement = error_response(code)
    answer = alice.place()
    pooler.replacement = b""

    assert_unavailable(answer)
    assert "it is not known whether" not in answer.json["detail"]
