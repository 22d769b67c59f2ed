"""Requests that repeat an Idempotency-Key place one order."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from local.database import Urls
from tests.conftest import NewClient
from tools.client import SEED_BYTES, Answer, Client, seed
from tools.postgres_server import connected

Rows = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def order_count(rows: Rows) -> Callable[[str], int]:
    def count(tenant: str) -> int:
        return int(rows("select count(*) from orders where tenant_id = %s", tenant)[0][0])

    return count


def test_same_key_replays_the_same_order(
    alice: Client, tenant: str, order_count: Callable[[str], int]
) -> None:
    first = alice.place(key="k1")
    replayed = alice.place(key="k1")

    assert (first.status, replayed.status) == (201, 201)
    assert replayed.body == first.body
    assert (replayed.headers["location"], replayed.headers["etag"]) == (
        first.headers["location"],
        first.headers["etag"],
    )
    assert "idempotent-replayed" not in first.headers
    assert replayed.headers["idempotent-replayed"] == "true"
    assert order_count(tenant) == 1


def test_each_request_without_a_key_places_an_order(
    alice: Client, tenant: str, order_count: Callable[[str], int]
) -> None:
    for _ in range(2):
        alice.place()

    assert order_count(tenant) == 2


@pytest.mark.parametrize(("bare", "quoted"), [("abc", '"abc"'), (r"a\b", r'"a\\b"'), ("it's", '"it\'s"')])
def test_bare_and_quoted_key_are_equal(alice: Client, bare: str, quoted: str) -> None:
    assert alice.place(key=quoted).body == alice.place(key=bare).body


def test_reformatted_order_with_same_key_is_replayed(alice: Client) -> None:
    first = alice.place(key="k1")
    reformatted = SEED_BYTES.replace(b"99.99", b"99.9900").replace(b'"John Doe"', b'" John Doe "')

    replayed = alice.place(raw=reformatted.replace(b", ", b",\n  "), key="k1")

    assert (replayed.body, replayed.headers["idempotent-replayed"]) == (first.body, "true")


@pytest.mark.parametrize(
    "change",
    [
        {"total_amount": 99.98},
        {"currency": "EUR"},
        {"customer_name": "Jane Doe"},
        {"customer_phone": None},
        {"items": seed()["items"] * 2},
    ],
)
def test_the_same_key_with_another_order_is_refused(
    alice: Client, tenant: str, order_count: Callable[[str], int], change: dict[str, Any]
) -> None:
    alice.place(key="k1")

    answer = alice.place(seed(**change), key="k1")

    assert (answer.status, answer.slug) == (422, "idempotency-mismatch")
    assert order_count(tenant) == 1


def test_key_is_scoped_to_tenant_and_user(alice: Client, client: NewClient, other_tenant: Client) -> None:
    answers = [caller.place(key="k1") for caller in (alice, client(user="bob"), other_tenant)]

    assert [answer.status for answer in answers] == [201] * 3
    assert len({answer.headers["location"] for answer in answers}) == 3
    assert not any("idempotent-replayed" in answer.headers for answer in answers)


def test_rejected_order_does_not_use_up_its_key(alice: Client) -> None:
    assert alice.place(seed(total_amount=-1), key="k1").status == 422

    assert alice.place(key="k1").status == 201


def test_concurrent_requests_with_one_key_place_one_order(
    client: NewClient, tenant: str, rows: Rows, order_count: Callable[[str], int]
) -> None:
    for round_no in range(5):
        key, start, alice = f"k{round_no}", threading.Barrier(20), client()

        def place(_: int, alice: Client = alice, key: str = key, start: threading.Barrier = start) -> Answer:
            start.wait()
            return alice.place(key=key)

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(place, range(20)))

        assert {answer.status for answer in answers} == {201}
        assert len({answer.body for answer in answers}) == 1
        assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
        assert order_count(tenant) == round_no + 1
    assert rows("select count(*) from order_items where tenant_id = %s", tenant) == [(5,)]


def test_key_in_flight_too_long_is_a_conflict(
    alice: Client, user_id: str, tenant: str, database: Urls, order_count: Callable[[str], int]
) -> None:
    with connected(database.app) as connection, connection.cursor() as cursor:
        cursor.execute("begin; select set_tenant(%s)", (tenant,))
        cursor.execute(
            "insert into idempotency_keys values (%s, %s, 'k1', %s, %s, now())",
            (tenant, user_id, "0" * 64, str(uuid4())),
        )
        started = time.monotonic()
        answer = alice.place(key="k1")
        elapsed = time.monotonic() - started
        cursor.execute("rollback")

    assert (answer.status, answer.slug) == (409, "idempotency-in-flight")
    assert answer.headers["retry-after"] == "1"
    assert elapsed < 4  # the role's lock_timeout is 2 s
    assert order_count(tenant) == 1  # placed by the fixture user_id
    assert alice.place(key="k1").status == 201


def test_retry_after_post_commit_crash_replays_the_order(
    alice: Client, tenant: str, order_count: Callable[[str], int], app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is lost after the commit; the client retries."""
    lost_bodies: list[str] = []

    def crash(event: Any, get_response: Callable[[Any], Any]) -> Any:
        lost_bodies.append(get_response(event).body)
        raise ConnectionError("the answer never arrives")

    monkeypatch.setattr(app, "middleware_handlers", [*app.middleware_handlers, (crash, "http")])
    assert alice.place(key="k1").status == 500
    monkeypatch.undo()

    retry = alice.place(key="k1")

    assert retry.body.decode() == lost_bodies[0]
    assert retry.headers["idempotent-replayed"] == "true"
    assert order_count(tenant) == 1


@pytest.fixture
def user_id(alice: Client) -> str:
    """The `sub` of alice, read from an order that she placed."""
    return str(alice.place().json["order"]["created_by"])
